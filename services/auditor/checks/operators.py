"""Checks that the operators' log names each record that an operator skipped into quarantine."""

import json
from collections import Counter
from typing import Any

import asyncpg

from services.auditor.difference import DifferenceError

Place = tuple[int, str, int]  # shard, topic, offset

# The reverse is not checked: a note may outlive its record, because operators may drop a month of quarantine.
_SKIPPED = """
    SELECT shard, topic, "offset", count(*) FROM ledger.quarantine WHERE reason = 'skipped'
    GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""
# Read as text, because PostgreSQL's type json accepts values that its own operators cannot take apart.
_NOTED = "SELECT left(details::text, 10000) FROM ledger.operators_log WHERE action = 'offsets_skipped'"


async def check_operators_log(connection: asyncpg.Connection) -> int:
    """Return the length of the operators' log. Raise DifferenceError if a skipped record is not in it."""
    noted: Counter[Place] = Counter()
    async with connection.transaction():
        async for (details,) in connection.cursor(_NOTED, prefetch=1_000):
            place = _place(details)
            if place is not None:
                noted[place] += 1
    for *place, count in await connection.fetch(_SKIPPED):
        shard, topic, offset = place
        said = noted[shard, topic, offset]
        if count > said:
            raise DifferenceError(
                f"shard {shard}: offset {offset} of {topic} was skipped {count} times,"
                f" but the operators' log says so {said} times"
            )
    return int(await connection.fetchval("SELECT count(*) FROM ledger.operators_log"))


def _place(details: str) -> Place | None:
    """Return the place of the record that a note names; None if it names none."""
    try:
        noted: Any = json.loads(details)
    except (ValueError, RecursionError):
        return None
    match noted:
        case {"shard": int(shard), "topic": str(topic), "offset": int(offset)}:
            return shard, topic, offset
    return None
