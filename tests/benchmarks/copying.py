"""The raw COPY rate: the speed of PostgreSQL when nothing is decided.

The entries that a run has just written are read back and copied, as asyncpg records, 10,000 a call, into a table with
the same columns and no index, in the same database. Only the calls are timed, each with its commit. That takes
only a second, which a busy neighbour would distort, so the median of three measurements is taken.
"""

import statistics
import time
from collections.abc import AsyncIterator
from typing import Any

from tests.benchmarks.bench import Bench

ROWS_A_CALL = 10_000
_TIMES = 3
_COLUMNS = """
    SELECT attname FROM pg_attribute WHERE attrelid = 'ledger.entries'::regclass AND attnum > 0 AND NOT attisdropped
    ORDER BY attnum
"""


async def copy_rows_per_second(bench: Bench, first: dict[int, int], last: dict[int, int]) -> float:
    """Copy the entries after the positions `first` up to `last`, by shard; return rows a second."""
    return statistics.median([await _copy(bench, first, last) for _ in range(_TIMES)])


async def _copy(bench: Bench, first: dict[int, int], last: dict[int, int]) -> float:
    connection = bench.ledger.connection
    columns = [row[0] for row in await connection.fetch(_COLUMNS)]
    await connection.execute("CREATE SCHEMA bench; CREATE TABLE bench.copied (LIKE ledger.entries)")
    copied, seconds = 0, 0.0
    try:
        async for rows in _rows(bench, first, last):
            started = time.perf_counter()
            await connection.copy_records_to_table("copied", schema_name="bench", columns=columns, records=rows)
            seconds += time.perf_counter() - started
            copied += len(rows)
    finally:
        await connection.execute("DROP SCHEMA bench CASCADE")
    return copied / seconds


async def _rows(bench: Bench, first: dict[int, int], last: dict[int, int]) -> AsyncIterator[list[tuple[Any, ...]]]:
    for shard in sorted(first):
        for start in range(first[shard], last[shard], ROWS_A_CALL):
            rows = await bench.ledger.connection.fetch(
                "SELECT * FROM ledger.entries WHERE shard = $1 AND position > $2 AND position <= $3 ORDER BY position",
                shard,
                start,
                min(start + ROWS_A_CALL, last[shard]),
            )
            yield [tuple(row) for row in rows]
