"""Every amount that a service may write has bounds that every reader knows, in every table."""

import asyncpg
import pytest

from shared.runtime.roles import SERVICE_ROLES
from tests.integration import lawful

LAWFUL = ("0", "-1", "9223372036854775807", "-9223372036854775808", "1e37", "-1e37")
UNLAWFUL = ("NaN", "Infinity", "-Infinity", "1e38", "-1e38", "1e5000")
# The columns of amounts, in any table into which a service's role may write.
WRITABLE = """
    SELECT c.oid, c.oid::regclass::text AS name, array_agg(a.attname::text) AS columns
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE c.relkind IN ('r', 'p') AND NOT c.relnamespace::regnamespace::text ~ '^pg_|^information_schema$'
        AND a.atttypid = ANY('{numeric,float4,float8,money}'::regtype[])
        AND EXISTS (SELECT FROM unnest($1::text[]) AS role
                    WHERE has_any_column_privilege(role, c.oid, 'INSERT, UPDATE'))
    GROUP BY c.oid ORDER BY 2
"""


async def takes(database: asyncpg.Connection, table: asyncpg.Record, column: str, amount: str) -> bool:
    """Return whether the constraints let a row have this amount, next to valid ones."""
    row = {name: f"'{amount if name == column else 0}'::numeric" for name in table["columns"]}
    return await lawful.takes(database, table["oid"], "amounts", row)


@pytest.mark.parametrize("amount", UNLAWFUL)
async def test_no_role_can_write_an_amount_that_answers_cannot_show(database_url: str, amount: str) -> None:
    database = await asyncpg.connect(database_url)
    try:
        tables = await database.fetch(WRITABLE, list(SERVICE_ROLES))
        assert {"balance.pockets", "balance.budget_closings", "incentives.cash_spend"} < {row["name"] for row in tables}
        for table in tables:
            for column in table["columns"]:
                assert not await takes(database, table, column, amount), (table["name"], column)
    finally:
        await database.close()


async def test_every_sum_of_spend_can_be_written(database_url: str) -> None:
    database = await asyncpg.connect(database_url)
    try:
        for table in await database.fetch(WRITABLE, list(SERVICE_ROLES)):
            for column in table["columns"]:
                refused = [amount for amount in LAWFUL if not await takes(database, table, column, amount)]
                assert refused == [], (table["name"], column)
    finally:
        await database.close()
