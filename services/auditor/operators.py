"""What went to quarantine by an operator's hand stands in the operators' log."""

import json
from collections import Counter
from typing import Any

import asyncpg

from services.auditor.difference import DifferenceError

Place = tuple[int, str, int]  # shard, topic, offset

# The other way round a month of quarantine may have been dropped.
_SKIPPED = """
    SELECT shard, topic, "offset", count(*) FROM ledger.quarantine WHERE reason = 'skipped'
    GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""
# As text: not all that the type json takes can be taken apart again.
_NOTED = "SELECT left(details::text, 10000) FROM ledger.operators_log WHERE action = 'offsets_skipped'"


async def check_operators_log(connection: asyncpg.Connection) -> int:
    """Each record that was passed over is in the log, which says why. Answers the log's length; raises."""
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
                f"shard {shard}: offset {offset} of {topic} was passed over {count} times,"
                f" the operators' log says so {said} times"
            )
    return int(await connection.fetchval("SELECT count(*) FROM ledger.operators_log"))


def _place(details: str) -> Place | None:
    """Which record a note is of; None where it is of none."""
    try:
        noted: Any = json.loads(details)
    except (ValueError, RecursionError):
        return None
    match noted:
        case {"shard": int(shard), "topic": str(topic), "offset": int(offset)}:
            return shard, topic, offset
    return None
