"""Connections to PostgreSQL, each under the role that may do what its service has to, and no more."""

import contextlib
import errno
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from shared.runtime.retries import with_retries
from shared.runtime.schema import require_known_schema
from shared.runtime.settings import BadSettingError, Settings

# Away for now: refused, starting up, shutting down, or out of connections. Of what is raised while connecting every
# OSError is the network's; the files that settings name are read before.
AWAY = (
    OSError,
    TimeoutError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ConnectionDoesNotExistError,
)
_GONE = (
    ConnectionError,
    TimeoutError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.PostgresConnectionError,
)
_NO_WAY = frozenset(
    {errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN, errno.ETIMEDOUT, errno.EPIPE}
)
CONNECT_TIMEOUT_SECONDS = 10.0


def is_lost(error: BaseException) -> bool:
    """Whether the error says that the database is away, or went away in between: whatever was open is undone.

    Errors of a program are none of these, however the client classes them: asyncpg's `InterfaceError` covers a value
    that fits no column, a wrong setting and a connection used twice at once as well as one that has been closed.
    """
    if isinstance(error, _GONE):
        return True
    if isinstance(error, asyncpg.InterfaceError):
        return type(error) is asyncpg.InterfaceError and _says_closed(error)
    if isinstance(error, asyncpg.InternalClientError):
        # Raised if the server closes the connection while a statement is being sent.
        return type(error) is asyncpg.InternalClientError
    if isinstance(error, OSError):
        return isinstance(error, socket.gaierror) or error.errno in _NO_WAY or _refused_everywhere(error)
    return False


def _says_closed(error: asyncpg.InterfaceError) -> bool:
    """asyncpg has no class of its own for it; a test fails if its words change."""
    return any(words in str(error) for words in ("is closed", "is closing", "was closed", "closed in the middle"))


def _refused_everywhere(error: OSError) -> bool:
    """asyncio's error if a name has several addresses and none of them could be reached; it has no number."""
    return error.errno is None and str(error).startswith("Multiple exceptions:")


async def create_pool(
    settings: Settings,
    role: str,
    *,
    application_name: str,
    min_size: int = 1,
    max_size: int = 8,
    statement_timeout_seconds: int = 0,
) -> asyncpg.Pool:
    """Open a pool whose connections act as `role`, in UTC, on a database of the schema that this version knows.

    A database that is away is waited for (60 s); after that its error is raised.

    Args:
        settings: where the database is.
        role: one of `shared.runtime.roles`.
        application_name: as `pg_stat_activity` shows it.
        min_size: connections opened at once.
        max_size: connections at most.
        statement_timeout_seconds: after which the server gives a statement up; 0: it may take as long as it needs.

    Raises:
        BadSettingError: the server refuses us, or is not to be trusted; the schema is another.

    """

    async def attempt() -> asyncpg.Pool:
        with refusals_explained(settings):
            return await asyncpg.create_pool(
                **connection_options(settings),
                min_size=min_size,
                max_size=max_size,
                init=require_known_schema,
                server_settings={
                    **_server_settings(role, application_name),
                    "statement_timeout": f"{statement_timeout_seconds}s",
                },
            )

    return await with_retries(attempt, what=where(settings), errors=AWAY)


async def connect(settings: Settings, role: str, application_name: str) -> asyncpg.Connection:
    """Open one connection that acts as `role`; waits and raises like `create_pool`."""

    async def attempt() -> asyncpg.Connection:
        with refusals_explained(settings):
            connection = await asyncpg.connect(
                **connection_options(settings), server_settings=_server_settings(role, application_name)
            )
            try:
                await require_known_schema(connection)
            except BaseException:
                connection.terminate()
                raise
            return connection

    return await with_retries(attempt, what=where(settings), errors=AWAY)


def connection_options(settings: Settings) -> dict[str, Any]:
    """How asyncpg reaches the database: where, who we are, and how either side proves it."""
    options: dict[str, Any] = {
        "dsn": settings.database_url,
        "ssl": _verifying_context(settings) if settings.database_tls == "verify-full" else False,
        "timeout": CONNECT_TIMEOUT_SECONDS,
    }
    if settings.database_password_file is not None and urlsplit(settings.database_url).password is None:
        options["password"] = _password(settings.database_password_file)
    return options


def _password(file: Path) -> str:
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadSettingError(f"DRAWDOWN_DATABASE_PASSWORD_FILE: cannot be read: {error}") from error


@contextlib.contextmanager
def refusals_explained(settings: Settings) -> Iterator[None]:
    """Raise BadSettingError for what waiting does not mend: each names the setting to look at."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise BadSettingError(
            f"DRAWDOWN_DATABASE_CA_FILE: the certificate of {where(settings)} is not trusted: {error.verify_message}"
        ) from error
    except ConnectionError as error:
        # asyncpg's only sign that the server answered, and knows no TLS.
        if "rejected SSL upgrade" not in str(error):
            raise
        raise BadSettingError(
            f"DRAWDOWN_DATABASE_TLS: {where(settings)} does not speak TLS: set ssl = on there"
            " (or DRAWDOWN_DATABASE_TLS=off, where nobody else is on the network between)"
        ) from error
    except asyncpg.ClientConfigurationError as error:
        raise BadSettingError(f"DRAWDOWN_DATABASE_URL: {error}") from error
    except asyncpg.InvalidParameterValueError as error:  # The role to act as, at the start of the session.
        raise BadSettingError(
            f"DRAWDOWN_DATABASE_URL: {where(settings)}: {error}: run `drawdown migrate`, which makes the roles"
        ) from error
    except (
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.InvalidCatalogNameError,
        asyncpg.InsufficientPrivilegeError,
    ) as error:
        raise BadSettingError(f"DRAWDOWN_DATABASE_URL: {where(settings)} refuses us: {error}") from error


def where(settings: Settings) -> str:
    """The server, as a line for people names it."""
    address = urlsplit(settings.database_url)
    return f"PostgreSQL at {address.hostname}:{address.port or 5432}"


def _verifying_context(settings: Settings) -> ssl.SSLContext:
    """The system's authorities, or just those of the file; the certificate must name the host of the URL."""
    try:
        return ssl.create_default_context(cafile=settings.database_ca_file)
    except (OSError, ssl.SSLError) as error:
        raise BadSettingError(f"DRAWDOWN_DATABASE_CA_FILE: it holds no PEM certificates: {error}") from None


def _server_settings(role: str, application_name: str) -> dict[str, str]:
    return {"role": role, "application_name": application_name, "timezone": "UTC"}
