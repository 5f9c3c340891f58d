"""Checks rows that no audit reads one by one: counts them, and matches them with each other."""

import asyncpg

from services.auditor.baseline import Head
from services.auditor.difference import DifferenceError, expect


async def check_outcomes(connection: asyncpg.Connection, head: Head) -> int:
    """Return the number of outcomes.

    Raise DifferenceError if their sequence has a gap, or if one names a position beyond the end of the ledger.
    """
    row = await connection.fetchrow(
        """
        SELECT sequence, expected, position FROM (
            SELECT sequence, position, row_number() OVER (ORDER BY sequence) AS expected
            FROM ledger.outcomes WHERE shard = $1 AND sequence <= $2) o
        WHERE sequence <> expected OR position > $3 ORDER BY sequence LIMIT 1
        """,
        head.shard,
        head.outcome_sequence,
        head.position,
    )
    if row is not None:
        where = f"shard {head.shard}: the outcome {row['expected']}"
        expect(row["sequence"] == row["expected"], f"{where} is missing")
        raise DifferenceError(f"{where} names the position {row['position']}, but the ledger ended at {head.position}")
    return head.outcome_sequence


def check_count(head: Head, found: int) -> None:
    """Raise DifferenceError unless the shard has as many rows as were `found` at the positions of the ledger."""
    expect(
        found == head.entries,
        f"shard {head.shard}: ledger.entries holds {head.entries} rows, {found} of them at the positions of the ledger",
    )


async def check_accounts(connection: asyncpg.Connection, head: Head) -> int:
    """Return the number of registered ad accounts. Call it in the transaction that read the head.

    Raise DifferenceError if one was not opened by an entry of the shard, or was opened but is not registered.
    """
    row = await connection.fetchrow(
        """
        SELECT ad_account_id, a.business_center_id AS registered, e.business_center_id AS opened
        FROM (SELECT * FROM ledger.ad_accounts WHERE shard = $1) a
            FULL JOIN (SELECT ad_account_id, business_center_id FROM ledger.entries
                       WHERE shard = $1 AND kind = 'ad_account_opened') e USING (ad_account_id)
        WHERE a.business_center_id IS DISTINCT FROM e.business_center_id ORDER BY 1 LIMIT 1
        """,
        head.shard,
    )
    if row is not None:
        raise DifferenceError(
            f"shard {head.shard}: ledger.ad_accounts holds {row['ad_account_id']} of {row['registered']},"
            f" but the entries open it in {row['opened']}"
        )
    return int(await connection.fetchval("SELECT count(*) FROM ledger.ad_accounts WHERE shard = $1", head.shard))
