"""Brings a database to the schema that this version of the code knows.

Numbered SQL files, each applied once and in order, by one process under a lock.
"""

from importlib.resources import files

import asyncpg

ROLES = ("drawdown_allocation", "drawdown_follower", "drawdown_api", "drawdown_auditor")
_LOCK = 0x44524157  # any constant that all migrating processes share


def _migrations() -> list[tuple[str, str]]:
    folder = files("shared.runtime") / "migrations"
    return sorted((file.name, file.read_text("utf-8")) for file in folder.iterdir() if file.name.endswith(".sql"))


async def migrate(database_url: str, shards: int) -> list[str]:
    """Apply what is missing and make the shards; answer the names of the migrations applied.

    Raises asyncpg.PostgresError when a statement fails; its migration is then rolled back whole.
    Raises ValueError when the ledger has other shards than asked for.
    """
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            return await _migrate(connection, shards)
    finally:
        await connection.close()


async def _migrate(connection: asyncpg.Connection, shards: int) -> list[str]:
    for role in ROLES:
        if not await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", role):
            await connection.execute(f"CREATE ROLE {role} NOLOGIN")
        await connection.execute(f"GRANT {role} TO current_user")
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS public.migrations (name text PRIMARY KEY, applied_at timestamptz DEFAULT now())"
    )
    await connection.execute(f"GRANT SELECT ON public.migrations TO {', '.join(ROLES)}")
    done = {row["name"] for row in await connection.fetch("SELECT name FROM public.migrations")}
    applied = []
    for name, statements in _migrations():
        if name not in done:
            await connection.execute(statements)
            await connection.execute("INSERT INTO public.migrations (name) VALUES ($1)", name)
            applied.append(name)
    existing = await connection.fetchval("SELECT count(*) FROM ledger.shards")
    if existing not in (0, shards):
        raise ValueError(
            f"this ledger has {existing} shards, DRAWDOWN_SHARDS says {shards}: the number of shards is fixed "
            f"when a ledger begins, set DRAWDOWN_SHARDS={existing}"
        )
    await connection.execute("SELECT ledger.create_shards($1)", shards)
    return applied
