"""Connections to PostgreSQL, each under the role that may do what its service has to, and no more."""

from urllib.parse import urlsplit

import asyncpg

from shared.runtime.retries import with_retries
from shared.runtime.settings import Settings

# Away for now: refused, starting up, shutting down, or out of connections.
AWAY = (
    OSError,
    TimeoutError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ConnectionDoesNotExistError,
)
CONNECT_TIMEOUT_SECONDS = 10.0


async def create_pool(
    settings: Settings, role: str, *, application_name: str, min_size: int = 1, max_size: int = 8
) -> asyncpg.Pool:
    """Open a pool whose connections act as `role`, in UTC.

    A database that is away is waited for (60 s); after that its error is raised.

    Args:
        settings: where the database is.
        role: `drawdown_allocation`, `drawdown_follower`, `drawdown_api` or `drawdown_auditor`.
        application_name: as `pg_stat_activity` shows it.
        min_size: connections opened at once.
        max_size: connections at most.

    """

    async def attempt() -> asyncpg.Pool:
        return await asyncpg.create_pool(
            settings.database_url,
            min_size=min_size,
            max_size=max_size,
            timeout=CONNECT_TIMEOUT_SECONDS,
            server_settings=_server_settings(role, application_name),
        )

    return await with_retries(attempt, what=_where(settings), errors=AWAY)


async def connect(settings: Settings, role: str, application_name: str) -> asyncpg.Connection:
    """Open one connection that acts as `role`; waits like `create_pool`."""

    async def attempt() -> asyncpg.Connection:
        return await asyncpg.connect(
            settings.database_url,
            timeout=CONNECT_TIMEOUT_SECONDS,
            server_settings=_server_settings(role, application_name),
        )

    return await with_retries(attempt, what=_where(settings), errors=AWAY)


def _server_settings(role: str, application_name: str) -> dict[str, str]:
    return {"role": role, "application_name": application_name, "timezone": "UTC"}


def _where(settings: Settings) -> str:
    address = urlsplit(settings.database_url)
    return f"PostgreSQL at {address.hostname or 'localhost'}:{address.port or 5432}"
