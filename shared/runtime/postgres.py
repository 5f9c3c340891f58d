"""Connections to PostgreSQL, each under the role that may do what its service has to, and no more."""

import contextlib
import errno
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final
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

# What a session relies on is said at its start: whoever had the role's password may have set other defaults for the
# role, and those hold until `drawdown migrate` takes them back.
_RELIED_ON: Final = {
    "bytea_output": "hex",
    "client_min_messages": "notice",
    "datestyle": "ISO, MDY",
    "default_tablespace": "",  # Quarantine's next month is a new table.
    "default_transaction_deferrable": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "exit_on_error": "off",
    "geqo": "off",  # It takes as much memory as its settings say, or fails; no statement of ours has so many tables.
    "idle_in_transaction_session_timeout": "120s",  # A broker that is away is waited for as long, within one.
    "idle_session_timeout": "0",
    "intervalstyle": "postgres",
    "local_preload_libraries": "",
    "lock_timeout": "0",
    "max_parallel_workers_per_gather": "0",  # A worker begins by the role's defaults, and these may time it out.
    "quote_all_identifiers": "off",
    "restrict_nonsystem_relation_kind": "",
    "row_security": "on",
    "search_path": "public",
    "standard_conforming_strings": "on",
    "statement_timeout": "0",
    "synchronous_commit": "on",
    "tcp_user_timeout": "0",  # Else a reader that rests a moment is cut off.
    "timezone": "UTC",
    "transaction_timeout": "0",
    "transform_null_equals": "off",
}
_UNKNOWN_TO_OLDER_SERVERS: Final = frozenset({"restrict_nonsystem_relation_kind", "transaction_timeout"})


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


def gave_up(error: BaseException) -> bool:
    """Whether the database is away, or ended a statement that took too long. For a caller that is the same."""
    return is_lost(error) or isinstance(error, (asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError))


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
    lock_timeout_seconds: int = 0,
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
        lock_timeout_seconds: the same for a statement that waits for somebody else's lock.

    Raises:
        BadSettingError: the server refuses us, or is not to be trusted; the schema is another.

    """

    asked = {"statement_timeout": f"{statement_timeout_seconds}s", "lock_timeout": f"{lock_timeout_seconds}s"}

    async def attempt() -> asyncpg.Pool:
        with refusals_explained(settings):
            return await _as_relied_on(
                lambda relied_on: asyncpg.create_pool(
                    **connection_options(settings),
                    min_size=min_size,
                    max_size=max_size,
                    init=require_known_schema,
                    server_settings={**relied_on, **asked, "role": role, "application_name": application_name},
                )
            )

    return await with_retries(attempt, what=where(settings), errors=AWAY)


async def connect(settings: Settings, role: str, application_name: str) -> asyncpg.Connection:
    """Open one connection that acts as `role`; waits and raises like `create_pool`."""

    async def attempt() -> asyncpg.Connection:
        with refusals_explained(settings):
            connection = await _as_relied_on(
                lambda relied_on: asyncpg.connect(
                    **connection_options(settings),
                    server_settings={**relied_on, "role": role, "application_name": application_name},
                )
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


async def _as_relied_on(opening: Callable[[dict[str, str]], Awaitable[Any]]) -> Any:
    """What `opening` makes of the settings to rely on, without those that the server says it does not know."""
    relied_on = dict(_RELIED_ON)
    while True:
        try:
            return await opening(relied_on)
        except asyncpg.UndefinedObjectError as error:
            unknown = {name for name in _UNKNOWN_TO_OLDER_SERVERS & relied_on.keys() if name in str(error)}
            if not unknown:
                raise
            relied_on = {name: value for name, value in relied_on.items() if name not in unknown}
