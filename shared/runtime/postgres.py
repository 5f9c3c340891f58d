"""Connections to PostgreSQL, each with a role that has only the rights its service needs."""

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

# Temporarily unavailable: refused, starting up, shutting down, or out of connections. Every OSError raised while
# connecting comes from the network, because the files that settings name have been read by then.
UNAVAILABLE = (
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
# A statement waited too long, or `drawdown migrate` has changed a table since the session prepared the statement.
_LATER = (asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError, asyncpg.InvalidCachedStatementError)
_NO_WAY = frozenset(
    {errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN, errno.ETIMEDOUT, errno.EPIPE}
)
CONNECT_TIMEOUT_SECONDS = 10.0

# Each session sets what it relies on, because somebody with the role's password may have changed the role's defaults;
# `drawdown migrate` resets those.
_RELIED_ON: Final = {
    "bytea_output": "hex",
    "client_min_messages": "notice",
    "datestyle": "ISO, MDY",
    "default_tablespace": "",  # Each month of quarantine is a new table.
    "default_transaction_deferrable": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "exit_on_error": "off",
    "geqo": "off",  # Its settings could exhaust memory; no statement of ours joins enough tables to need it.
    "idle_in_transaction_session_timeout": "120s",  # A transaction may wait this long for an unavailable broker.
    "idle_session_timeout": "0",
    "intervalstyle": "postgres",
    "local_preload_libraries": "",
    "lock_timeout": "0",
    "max_parallel_workers_per_gather": "0",  # A worker starts with the role's defaults, which may time it out.
    "quote_all_identifiers": "off",
    "restrict_nonsystem_relation_kind": "",
    "row_security": "on",
    "search_path": "public",
    "standard_conforming_strings": "on",
    "statement_timeout": "0",
    "synchronous_commit": "on",
    "tcp_user_timeout": "0",  # Otherwise a reader that pauses is disconnected.
    "timezone": "UTC",
    "transaction_timeout": "0",
    "transform_null_equals": "off",
}
_UNKNOWN_TO_OLDER_SERVERS: Final = frozenset({"restrict_nonsystem_relation_kind", "transaction_timeout"})


def is_lost(error: BaseException) -> bool:
    """Return whether the error means that the connection is lost, so that an open transaction is rolled back.

    A programming error is not a lost connection, although asyncpg's `InterfaceError` covers both: it is also raised
    for a value that fits no column, for a wrong setting, and for a connection that is used twice at once.
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


def is_unavailable(error: BaseException) -> bool:
    """Return whether a later try may succeed: the connection is lost, a statement took too long or a table changed."""
    return is_lost(error) or isinstance(error, _LATER)


def _says_closed(error: asyncpg.InterfaceError) -> bool:
    """Return whether the text says that the connection is closed.

    asyncpg has no class for that; a test fails if its words change.
    """
    return any(words in str(error) for words in ("is closed", "is closing", "was closed", "closed in the middle"))


def _refused_everywhere(error: OSError) -> bool:
    """Return whether a name has several addresses and none was reachable; asyncio's error for that has no number."""
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
    """Open a pool whose connections act as `role`, in UTC, on a database whose schema this version knows.

    Waits up to 60 s for an unavailable database, then raises its error.

    Args:
        settings: the address of the database, and the credentials.
        role: one of `shared.runtime.roles`.
        application_name: the name that `pg_stat_activity` shows.
        min_size: the number of connections to open at once.
        max_size: the largest number of connections.
        statement_timeout_seconds: the server cancels a statement after this time; 0 means never.
        lock_timeout_seconds: the server cancels a statement that waits this long for a lock; 0 means never.

    Raises:
        BadSettingError: the server refuses the login or is not trusted, or its schema is another version's.

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

    return await with_retries(attempt, what=where(settings), errors=UNAVAILABLE)


async def connect(settings: Settings, role: str, application_name: str) -> asyncpg.Connection:
    """Open one connection that acts as `role`. Waits and raises like `create_pool`."""

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

    return await with_retries(attempt, what=where(settings), errors=UNAVAILABLE)


def connection_options(settings: Settings) -> dict[str, Any]:
    """Return asyncpg's arguments for the database: its address, the credentials, and TLS."""
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
    """Turn an error that retrying cannot cure into BadSettingError, which names the setting to check."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise BadSettingError(
            f"DRAWDOWN_DATABASE_CA_FILE: the certificate of {where(settings)} is not trusted: {error.verify_message}"
        ) from error
    except ConnectionError as error:
        # asyncpg's only sign that the server answered without TLS.
        if "rejected SSL upgrade" not in str(error):
            raise
        raise BadSettingError(
            f"DRAWDOWN_DATABASE_TLS: {where(settings)} does not offer TLS: set ssl = on there"
            " (or DRAWDOWN_DATABASE_TLS=off, if nobody else can reach the network between)"
        ) from error
    except asyncpg.ClientConfigurationError as error:
        raise BadSettingError(f"DRAWDOWN_DATABASE_URL: {error}") from error
    except asyncpg.InvalidParameterValueError as error:  # The session's role does not exist.
        raise BadSettingError(
            f"DRAWDOWN_DATABASE_URL: {where(settings)}: {error}: run `drawdown migrate`, which creates the roles"
        ) from error
    except (
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.InvalidCatalogNameError,
        asyncpg.InsufficientPrivilegeError,
    ) as error:
        raise BadSettingError(f"DRAWDOWN_DATABASE_URL: {where(settings)} refuses this login: {error}") from error


def where(settings: Settings) -> str:
    """Return the server's name for messages: `PostgreSQL at host:port`."""
    address = urlsplit(settings.database_url)
    return f"PostgreSQL at {address.hostname}:{address.port or 5432}"


def _verifying_context(settings: Settings) -> ssl.SSLContext:
    """Return a context that trusts the file's authorities, or the system's, and checks the host of the URL."""
    try:
        return ssl.create_default_context(cafile=settings.database_ca_file)
    except (OSError, ssl.SSLError) as error:
        raise BadSettingError(f"DRAWDOWN_DATABASE_CA_FILE: the file holds no PEM certificates: {error}") from None


async def _as_relied_on(opening: Callable[[dict[str, str]], Awaitable[Any]]) -> Any:
    """Call `opening` with the settings to rely on; leave out those that an older server does not know."""
    relied_on = dict(_RELIED_ON)
    while True:
        try:
            return await opening(relied_on)
        except asyncpg.UndefinedObjectError as error:
            unknown = {name for name in _UNKNOWN_TO_OLDER_SERVERS & relied_on.keys() if name in str(error)}
            if not unknown:
                raise
            relied_on = {name: value for name, value in relied_on.items() if name not in unknown}
