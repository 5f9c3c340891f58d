"""Steady traffic, from a separate process.

`python -m tests.benchmarks.background CENTERS CAMPAIGNS RATE SECONDS` publishes RATE spends a second on the many
Business Centers, evenly, and prints how many it published, and in how many seconds.
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence

from shared.runtime.kafka import SPEND_EVENTS
from shared.runtime.settings import load_settings
from tests.benchmarks.load import Center, Publisher, create_publisher, many_centers, random_spends

# Each tick makes a batch in every partition, and each fetch makes the embedded broker scan all batches of a partition.
# Ticks of 10 ms would measure the broker (p99 at 1,000 spends a second: 53 ms instead of 32).
_TICK_SECONDS = 0.02


async def flow(publisher: Publisher, centers: Sequence[Center], rate: int, seconds: float) -> dict[str, float]:
    """Publish by the clock: the next tick makes up for a late one."""
    started = time.perf_counter()
    sent = 0
    while (passed := time.perf_counter() - started) < seconds:
        due = int(rate * passed) - sent
        sent += await publisher.publish(SPEND_EVENTS, random_spends(centers, due), last_alone=False)
        await asyncio.sleep(_TICK_SECONDS)
    return {"spends": sent, "seconds": time.perf_counter() - started}


async def _main(centers: int, campaigns: int, rate: int, seconds: float) -> dict[str, float]:
    settings = load_settings()
    publisher, producer = await create_publisher(settings)
    try:
        return await flow(publisher, many_centers(centers, campaigns, settings.shards), rate, seconds)
    finally:
        await producer.stop()


if __name__ == "__main__":
    count, each, per_second, duration = sys.argv[1:]
    print(json.dumps(asyncio.run(_main(int(count), int(each), int(per_second), float(duration)))))
