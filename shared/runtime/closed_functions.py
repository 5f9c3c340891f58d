"""Closes functions of the server that do harm, and that PostgreSQL by default lets any login run.

Large objects are rows that no table's rights cover. Advisory locks block sessions that ask for the same number, and
fill the server's table of locks, without which no session can read. Logical messages fill the write-ahead log. Some
functions use up transaction ids, and without those no session can write. Exported snapshots create files.

The functions belong to the superuser. An owner that is not a superuser may only close them if it was given them with
the grant option (deploy/postgres/public.sql).
"""

from typing import Final

import asyncpg
import structlog

from shared.runtime.errors import CannotGoOnError

CLOSED_NAMES: Final = (
    r"^(lo_.+|loread|lowrite|pg_(try_)?advisory_(xact_)?lock.*|pg_logical_emit_message"
    r"|pg_current_xact_id|txid_current|pg_export_snapshot)$"
)
# With it the writer keeps two shards from opening the same ad account (services/allocation/writing/account_locks.py).
_OF_THE_WRITER: Final = "pg_catalog.pg_advisory_lock(integer, integer)"
_WRITER: Final = "drawdown_allocation"

_OPEN = """
    SELECT format('pg_catalog.%I(%s)', proname, pg_get_function_identity_arguments(oid)) FROM pg_proc
    WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ $1
        AND has_function_privilege('public', oid, 'EXECUTE')
    ORDER BY 1
"""
_MAY_RUN = "SELECT has_function_privilege($1, $2, 'EXECUTE')"


async def open_functions(connection: asyncpg.Connection) -> list[str]:
    """Return the harmful functions that every login of this database may run, with their arguments."""
    return [row[0] for row in await connection.fetch(_OPEN, CLOSED_NAMES)]


async def close_functions(connection: asyncpg.Connection) -> None:
    """Revoke the harmful functions from everybody, and let the writer keep the one that it needs.

    If the owner may not revoke them, this logs a warning, and the writer uses the right that everybody has.

    Raises:
        CannotGoOnError: everybody, including the writer, lacks the right, and the owner may not grant it.

    """
    still_open = await open_functions(connection)
    if still_open:
        await connection.execute(f"REVOKE EXECUTE ON FUNCTION {', '.join(still_open)} FROM PUBLIC")
        still_open = await open_functions(connection)
    if still_open:
        structlog.get_logger().warning(
            "every login may run functions that write or lock: let the superuser run deploy/postgres/public.sql",
            functions=len(still_open),
        )
    await _give_the_writer_its_own(connection)


async def _give_the_writer_its_own(connection: asyncpg.Connection) -> None:
    if await connection.fetchval(_MAY_RUN, _WRITER, _OF_THE_WRITER):
        return
    await connection.execute(f"GRANT EXECUTE ON FUNCTION {_OF_THE_WRITER} TO {_WRITER}")
    if not await connection.fetchval(_MAY_RUN, _WRITER, _OF_THE_WRITER):
        raise CannotGoOnError(
            f"{_WRITER} may not run {_OF_THE_WRITER}, and this login may not grant that: let the superuser run"
            " deploy/postgres/public.sql, which lets the owner grant it"
        )
