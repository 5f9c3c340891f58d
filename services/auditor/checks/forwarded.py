"""Checks that the records that wait for a shard can be read. Services write only such records.

The writer would move an unreadable record to quarantine.
"""

import asyncpg

from services.auditor.difference import DifferenceError
from shared.ledger.headers import read_headers

_READ_AT_ONCE = 50  # records of a megabyte at most


async def check_forwarded(connection: asyncpg.Connection) -> int:
    """Return the number of waiting records. Raise DifferenceError if one has unreadable headers or half a reference."""
    query = (
        "SELECT shard, id, topic, headers::text, (replay_shard IS NULL) <> (replay_sequence IS NULL) AS is_half"
        " FROM ledger.forwarded ORDER BY shard, id"
    )
    count = 0
    async with connection.transaction():
        async for row in connection.cursor(query, prefetch=_READ_AT_ONCE):
            problem = _problem(row)
            if problem:
                where = f"shard {row['shard']}: the record {row['id']} of ledger.forwarded"
                raise DifferenceError(f"{where} cannot be read: {problem}")
            count += 1
    return count


def _problem(row: asyncpg.Record) -> str:
    if row["is_half"]:
        return "it names only half of the record that it replays"
    try:
        read_headers(row["headers"])
    except ValueError as error:
        return f"its headers: {error}"
    return ""
