"""Quarantine has no gap but where operators have dropped whole months of it: exactly what their log says is missing."""

from typing import Any

import asyncpg

from services.auditor.difference import expect
from services.auditor.standing import Head

Range = tuple[int, int]  # the first and the last sequence number

_MOST_NAMED = 100  # A quarantine that is whole has as many breaks as months were dropped.


async def check_quarantine(connection: asyncpg.Connection, head: Head) -> int:
    """Records follow each other, in number and in time. Answers how many there are; raises DifferenceError."""
    async with connection.transaction():
        # Whoever drops a month waits until the table and the log have been read.
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
    """The records that do not follow the one before."""
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
    """What is missing before a record."""
    where = f"shard {shard}, quarantined record {row['sequence']}"
    expect(not row["back"], f"{where}: ledger time goes back")
    expect(row["sequence"] > row["previous"], f"{where}: it is there twice")
    return row["previous"] + 1, row["sequence"] - 1


async def _dropped(connection: asyncpg.Connection, head: Head) -> list[Range]:
    """What operators say that they have dropped of the shard, neighbours joined. Raises DifferenceError."""
    rows = await connection.fetch(
        """
        SELECT (part ->> 'first')::bigint AS first, (part ->> 'last')::bigint AS last
        FROM ledger.operators_log, json_array_elements(details -> 'shards') AS part
        WHERE action = 'quarantine_dropped' AND (part ->> 'shard')::integer = $1
            AND (part ->> 'first')::bigint <= $2
        ORDER BY 1
        """,
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
    """Raise DifferenceError at the first record that is missing without a word, or there in spite of one."""
    lost = _first_outside(missing, dropped)
    expect(lost is None, f"shard {shard}: the quarantined record {lost} is missing")
    kept = _first_outside(dropped, missing)
    told = f"the operators' log says that the quarantined record {kept} was dropped, it is there"
    expect(kept is None, f"shard {shard}: {told}")


def _first_outside(ranges: list[Range], others: list[Range]) -> int | None:
    """The first number in one of the ranges that is in none of the others. Both are in order."""
    for first, last in ranges:
        number = first
        for low, high in others:
            if low <= number <= high:
                number = high + 1
        if number <= last:
            return number
    return None
