"""No follower can write a position, shard or count below its first value, in any table of a read model."""

import asyncpg

from shared.runtime.read_models import READ_MODELS
from tests.integration import lawful

# The integer columns of the read models' tables, without `amount`, which is money and may be below zero.
NUMBERS = """
    SELECT c.oid, c.oid::regclass::text AS name, array_agg(a.attname::text) AS columns
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE c.relkind = 'r' AND c.relnamespace::regnamespace::text = ANY($1)
        AND a.atttypid = ANY('{smallint,integer,bigint}'::regtype[]) AND a.attname <> 'amount'
    GROUP BY c.oid ORDER BY 2
"""


async def test_no_number_of_a_read_model_may_be_below_its_minimum(database_url: str) -> None:
    database = await asyncpg.connect(database_url)
    try:
        tables = await database.fetch(NUMBERS, [model.name for model in READ_MODELS])
        assert {"balance.closings", "balance.entry_blocks", "signals.incarnations"} < {row["name"] for row in tables}
        for table in tables:
            for column in table["columns"]:
                row = dict.fromkeys(table["columns"], "1")
                assert await lawful.takes(database, table["oid"], "bounds", row), table["name"]
                beginning = {**row, column: "-1"}
                assert not await lawful.takes(database, table["oid"], "bounds", beginning), (table["name"], column)
    finally:
        await database.close()
