"""The speed at which the ledger is replayed from its own entries, in a separate process.

`python -m tests.benchmarks.replaying SHARD ENTRIES` replays one shard from position 1 for at least ENTRIES entries,
checks the Merkle root of every batch, and prints entries and seconds as JSON.
"""

import asyncio
import json
import sys
import time

from shared.ledger.lookup import plain_types
from shared.ledger.merkle import CompactRange
from shared.ledger.replay import Redecider
from shared.rules.shard import Shard
from shared.runtime.postgres import connect
from shared.runtime.settings import load_settings
from tests.benchmarks.bench import Bench
from tests.benchmarks.children import run_child


async def replay_entries_per_second(bench: Bench) -> float:
    """Replay the largest shard in a child process."""
    positions = await bench.ledger.positions()
    shard = max(positions, key=lambda each: positions[each])
    answer = await run_child(bench, "replaying", str(shard), str(bench.plan.replay_entries))
    return float(answer["entries"]) / float(answer["seconds"])


async def _replay(shard: int, entries: int) -> dict[str, float]:
    connection = await connect(load_settings(), "drawdown_auditor", "bench replay")
    try:
        await plain_types(connection)
        last = await connection.fetchval(
            "SELECT COALESCE(min(last_position) FILTER (WHERE last_position >= $2), max(last_position))"
            " FROM ledger.batches WHERE shard = $1",
            shard,
            entries,
        )
        rules = Shard(deduplication_days=None)
        redecider = Redecider(connection, rules, shard, CompactRange())
        started = time.perf_counter()
        await redecider.run(0, last)
        return {"entries": redecider.entries, "seconds": time.perf_counter() - started}
    finally:
        await connection.close()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_replay(int(sys.argv[1]), int(sys.argv[2])))))
