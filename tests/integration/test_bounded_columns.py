"""Every value that a service may write has a bounded size, because a larger one could exhaust a reader's memory."""

import asyncpg

from shared.runtime.roles import SERVICE_ROLES

# Columns of text or bytes that a service may write, and for which no constraint bounds the length or lists all values.
UNBOUNDED = r"""
    SELECT c.oid::regclass::text || '.' || attname
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE NOT c.relnamespace::regnamespace::text ~ '^pg_|^information_schema$'
        AND c.relkind IN ('r', 'p') AND NOT c.relispartition
        AND attnum > 0 AND NOT attisdropped
        AND atttypid = ANY ('{text,text[],json,jsonb,bytea}'::regtype[])
        AND EXISTS (SELECT FROM unnest($1::text[]) AS role
                    WHERE has_column_privilege(role, c.oid, attnum, 'INSERT, UPDATE'))
        AND NOT EXISTS (SELECT FROM pg_constraint o WHERE o.conrelid = c.oid AND o.contype = 'c'
                        AND attnum = ANY(o.conkey)
                        AND pg_get_constraintdef(o.oid) ~ 'octet_length\(|= ANY \(ARRAY\[')
    ORDER BY 1
"""


async def test_every_text_that_a_service_may_write_has_a_maximum_size(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        found = [row[0] for row in await connection.fetch(UNBOUNDED, list(SERVICE_ROLES))]
    finally:
        await connection.close()
    # The name of a partition of its own: the constraint accepts no other value.
    assert [each for each in found if each != "ledger.checkpoints.follower"] == []
