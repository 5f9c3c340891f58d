"""Checks that quarantine has no gaps except the months that operators dropped and that their log names."""

from typing import Any

import asyncpg

from services.auditor.baseline import Head
from services.auditor.difference import expect

Range = tuple[int, int]  # the first and the last sequence number

# The sequence numbers of each shard that the operators' log says were dropped.
DROPPED = """
    SELECT (part ->> 'shard')::integer AS shard, (part ->> 'first')::bigint AS first, (part ->> 'last')::bigint AS last
    FROM ledger.operators_log, json_array_elements(details -> 'shards') AS part WHERE action = 'quarantine_dropped'
"""
_MOST_NAMED = 100  # A quarantine without faults has at most one break for each dropped month.


async def check_quarantine(connection: asyncpg.Connection, head: Head) -> int:
    """Return the number of quarantined records.

    Raise DifferenceError if one is missing without a note in the operators' log, or if their times go back.
    """
    async with connection.transaction():
        # Dropping a month must wait until the audit has read both the table and the log.
        await connection.execute("LOCK TABLE ledger.quarantine IN ACCESS SHARE MODE")
        breaks = await _breaks(connection, head)
        count, last = await connection.fetchrow(
            "SELECT count(*), coalesce(max(sequence), 0) FROM ledger.quarantine WHERE shard = $1 AND sequence <= $2",
            head.shard,
            head.quarantine_sequence,
        )
        dropped = await _dropped(connection, head)
    missing = [_missing(head.shard, row) for row in breaks]
    if last < head.quarantine_sequence:
        missing.append((last + 1, head.quarantine_sequence))
    _compare(head.shard, missing, dropped)
    return int(count)


async def _breaks(connection: asyncpg.Connection, head: Head) -> list[Any]:
    """Return the records that do not directly follow the previous one, in number or in time."""
    rows: list[Any] = await connection.fetch(
        f"""
        SELECT sequence, previous, recorded_at < before AS back FROM (
            SELECT sequence, recorded_at, lag(sequence, 1, 0::bigint) OVER w AS previous,
                lag(recorded_at) OVER w AS before
            FROM ledger.quarantine WHERE shard = $1 AND sequence <= $2 WINDOW w AS (ORDER BY sequence)) q
        WHERE sequence <> previous + 1 OR recorded_at < before ORDER BY sequence LIMIT {_MOST_NAMED}
        """,  # noqa: S608 - a constant
        head.shard,
        head.quarantine_sequence,
    )
    return rows


def _missing(shard: int, row: Any) -> Range:
    """Return the range that is missing before a record. Raise DifferenceError if something else is wrong there."""
    where = f"shard {shard}, quarantined record {row['sequence']}"
    expect(not row["back"], f"{where}: ledger time goes back")
    expect(row["sequence"] > row["previous"], f"{where}: it is there twice")
    return row["previous"] + 1, row["sequence"] - 1


async def _dropped(connection: asyncpg.Connection, head: Head) -> list[Range]:
    """Return the ranges of the shard that the operators' log says were dropped. Adjacent ranges are joined."""
    rows = await connection.fetch(
        f"SELECT first, last FROM ({DROPPED}) AS dropped WHERE shard = $1 AND first <= $2 ORDER BY 1",  # noqa: S608
        head.shard,
        head.quarantine_sequence,
    )
    joined: list[Range] = []
    for first, last in rows:
        if joined and joined[-1][1] + 1 == first:
            joined[-1] = joined[-1][0], last
        else:
            joined.append((first, last))
    return joined


def _compare(shard: int, missing: list[Range], dropped: list[Range]) -> None:
    """Raise DifferenceError at the first record that is missing but not logged, or logged as dropped but present."""
    lost = _first_outside(missing, dropped)
    expect(lost is None, f"shard {shard}: the quarantined record {lost} is missing")
    kept = _first_outside(dropped, missing)
    told = f"the operators' log says that the quarantined record {kept} was dropped, but it is there"
    expect(kept is None, f"shard {shard}: {told}")


def _first_outside(ranges: list[Range], others: list[Range]) -> int | None:
    """Return the first number in `ranges` that is in none of `others`, or None. Both are in order."""
    for first, last in ranges:
        number = first
        for low, high in others:
            if low <= number <= high:
                number = high + 1
        if number <= last:
            return number
    return None
