"""Brings a database to the schema that this version of the code knows.

Each numbered SQL file is applied once and in order. One process does this under a lock, in one transaction. The files
are kept with their owners; `shared.runtime.schema` finds them.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import asyncpg
import structlog

from shared.runtime.closed_functions import close_functions
from shared.runtime.errors import CannotGoOnError
from shared.runtime.postgres import UNAVAILABLE, connection_options, refusals_explained, where
from shared.runtime.retries import with_retries
from shared.runtime.roles import allow_logins, keep_others_out, keep_roles_plain, make_roles
from shared.runtime.schema import applied_migrations, known_migrations, refuse_others
from shared.runtime.settings import Settings

APPLICATION_NAME = "drawdown migrate"
# All later sessions wait behind a migration that waits for a table. So it gives up, and names the blocking session.
LOCK_TIMEOUT_SECONDS = 15.0
LOOK_SECONDS = 1.0
_LOCK = 0x44524157  # any constant that all migrating processes share

_MIGRATIONS = """
    CREATE TABLE IF NOT EXISTS public.migrations (
        name text PRIMARY KEY, applied_at timestamptz DEFAULT now(), sha256 text NOT NULL)
"""
_BLOCKING = """
    SELECT pid, usename AS login, application_name AS application, state,
        date_trunc('second', clock_timestamp() - coalesce(xact_start, backend_start))::text AS since,
        left(query, 200) AS query
    FROM pg_stat_activity WHERE pid = ANY(pg_blocking_pids($1)) ORDER BY pid
"""


async def migrate(settings: Settings) -> list[str]:
    """Apply missing migrations and create the roles and shards; return the names of the applied migrations.

    This waits up to 60 s for an unavailable database, and for another process that migrates.

    Raises:
        asyncpg.PostgresError: a statement failed; nothing was applied.
        CannotGoOnError: a session holds a lock that a migration needs, rows violate a bound, or the ledger has another
            number of shards than the settings.
        BadSettingError: the server refuses this login, or this version does not know an applied migration.

    """
    connection = await with_retries(lambda: _connect(settings), what=where(settings), errors=UNAVAILABLE)
    try:
        async with _blockers_told(settings, connection) as blockers, connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'")
            try:
                return await _migrate(connection, settings)
            except asyncpg.CheckViolationError as error:
                raise CannotGoOnError(
                    f"rows violate a bound: {error}; nothing was changed: docs/runbook.md, A login misbehaves"
                ) from error
            except asyncpg.LockNotAvailableError as error:
                raise CannotGoOnError(
                    f"the migration gave up after {LOCK_TIMEOUT_SECONDS:.0f} s, nothing was changed: another session"
                    f" holds what it needs ({'; '.join(sorted(blockers)) or 'gone by now'}): end it and migrate again"
                ) from error
    finally:
        await connection.close()


async def _connect(settings: Settings) -> asyncpg.Connection:
    with refusals_explained(settings):
        return await asyncpg.connect(
            **connection_options(settings), server_settings={"application_name": APPLICATION_NAME, "timezone": "UTC"}
        )


async def _migrate(connection: asyncpg.Connection, settings: Settings) -> list[str]:
    await make_roles(connection)
    await keep_roles_plain(connection, settings.shards)
    await keep_others_out(connection)
    await close_functions(connection)
    await connection.execute(_MIGRATIONS)
    done = await applied_migrations(connection)
    refuse_others(done)
    applied = []
    for migration in known_migrations():
        if migration.name not in done:
            await connection.execute(migration.statements)
            await connection.execute(
                "INSERT INTO public.migrations (name, sha256) VALUES ($1, $2)", migration.name, migration.sha256
            )
            applied.append(migration.name)
    await _make_shards(connection, settings.shards)
    if settings.role_passwords_dir is not None:
        await allow_logins(connection, settings.role_passwords_dir)
    return applied


async def _make_shards(connection: asyncpg.Connection, shards: int) -> None:
    existing = await connection.fetchval("SELECT count(*) FROM ledger.shards")
    if existing not in (0, shards):
        raise CannotGoOnError(
            f"this ledger has {existing} shards, DRAWDOWN_SHARDS says {shards}: the number of shards is fixed "
            f"when a ledger begins, set DRAWDOWN_SHARDS={existing}"
        )
    await connection.execute("SELECT ledger.create_shards($1)", shards)


@contextlib.asynccontextmanager
async def _blockers_told(settings: Settings, migrating: asyncpg.Connection) -> AsyncIterator[set[str]]:
    """Log each session that the connection waits for, and collect a description of each."""
    watching = await _connect(settings)
    blockers: set[str] = set()
    task = asyncio.create_task(_watch(watching, migrating.get_server_pid(), blockers))
    try:
        yield blockers
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        watching.terminate()


async def _watch(watching: asyncpg.Connection, pid: int, blockers: set[str]) -> None:
    log = structlog.get_logger()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        for row in await watching.fetch(_BLOCKING, pid):
            told = f"session {row['pid']} of {row['login']}, {row['application'] or 'nameless'}"
            if told not in blockers:
                blockers.add(told)
                log.warning("the migration waits for another session", **dict(row))
