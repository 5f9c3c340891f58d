"""Every time that a service may write has bounds that every reader knows, in every table."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from shared.runtime.roles import SERVICE_ROLES
from tests.integration import lawful

LAWFUL = "2026-11-21"
UNLAWFUL = ("infinity", "-infinity", "0044-03-15 BC", "1959-12-31", "3001-01-02", "294276-12-31")
# The columns with times, of any type, in any table into which a service's role may write.
WRITABLE = """
    SELECT c.oid, c.oid::regclass::text AS name, array_agg(a.attname::text) AS columns,
        array_agg(format_type(a.atttypid, NULL)) AS types
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        JOIN pg_type t ON t.oid = a.atttypid
    WHERE c.relkind IN ('r', 'p') AND NOT c.relnamespace::regnamespace::text ~ '^pg_|^information_schema$'
        AND t.typcategory = 'D'
        AND EXISTS (SELECT FROM unnest($1::text[]) AS role
                    WHERE has_any_column_privilege(role, c.oid, 'INSERT, UPDATE'))
    GROUP BY c.oid ORDER BY 2
"""
OF_FUNCTIONS = ("ledger.quarantine_replays", "ledger.operators_log")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def takes(database: asyncpg.Connection, table: asyncpg.Record, column: str, moment: str) -> bool:
    """Return whether the constraints let a row have this time, next to valid ones."""
    row = {
        name: f"'{moment if name == column else LAWFUL}'::{type_}"
        for name, type_ in zip(table["columns"], table["types"], strict=True)
    }
    return await lawful.takes(database, table["oid"], "times", row)


async def test_no_role_can_write_a_time_that_python_cannot_represent(database: asyncpg.Connection) -> None:
    tables = await database.fetch(WRITABLE, list(SERVICE_ROLES))
    assert {"ledger.entries", "ledger.checkpoints_balance", "incentives.deals"} < {table["name"] for table in tables}
    for table in tables:
        for column in table["columns"]:
            assert await takes(database, table, column, LAWFUL), (table["name"], column)
            taken = [moment for moment in UNLAWFUL if await takes(database, table, column, moment)]
            assert taken == [], (table["name"], column)


async def test_times_that_functions_write_for_a_role_are_bounded_too(database: asyncpg.Connection) -> None:
    superuser = await database.fetchval("SELECT current_user::text")
    tables = {table["name"]: table for table in await database.fetch(WRITABLE, [superuser])}
    for name in OF_FUNCTIONS:
        for column in tables[name]["columns"]:
            assert [moment for moment in UNLAWFUL if await takes(database, tables[name], column, moment)] == []
