"""The memory of the allocation process: `make bench-memory`.

It is measured over ten million spends of 100,000 campaigns. With BENCH_CAMPAIGNS=1 it is measured over ten million
campaigns of one spend each, and then how long a new process takes to load what they have left.

Spends are published some at a time, once the ones before are in the ledger. So the ledger grows, and so does the
broker, which keeps everything (about 3 GB at the end), but not the backlog.
"""

import signal
import time
from dataclasses import replace

from shared.runtime.kafka import SPEND_EVENTS
from tests.benchmarks.bench import Bench
from tests.benchmarks.load import Center, funded, many_centers, one_spend_each
from tests.benchmarks.plan import SHARDS
from tests.benchmarks.throughput import set_up_many
from tests.benchmarks.watch import broker_rss_mib, rss_mib

_CHUNK = 100_000
_CENTERS = 100


async def measure_memory(bench: Bench) -> list[dict[str, float]]:
    """Measure the RSS in MiB at the start, and after each million (or tenth) of the spends."""
    centers = await set_up_many(bench)
    total = bench.plan.memory_spends
    step = min(1_000_000, max(_CHUNK, total // 10))
    rows = [_row(bench, 0)]
    for done in range(_CHUNK, total + 1, _CHUNK):
        await bench.spend(centers, _CHUNK)
        await bench.settle()
        if done % step == 0:
            rows.append(_row(bench, done))
    return rows


async def measure_campaigns(bench: Bench) -> list[dict[str, float]]:
    """Measure the RSS in MiB after each million (or tenth) of campaigns that spend once, and after a kill."""
    centers = many_centers(_CENTERS, 0, SHARDS)
    await bench.command(record for each in centers for record in funded(each))
    total = bench.plan.memory_spends
    step = min(1_000_000, max(_CHUNK, total // 10))
    rows = [_row(bench, 0)]
    for done in range(_CHUNK, total + 1, _CHUNK):
        await _spend_once(bench, centers, done - _CHUNK)
        if done % step == 0:
            rows.append(_row(bench, done))
    await _spend_once(bench, centers, 0)  # They have rested for long.
    await bench.followers_settle()
    await bench.system.kill_service("allocation", signal.SIGKILL)
    began = time.monotonic()
    await bench.start("allocation")
    bench.say(f"killed and started again: all shards are written after {time.monotonic() - began:.1f} s")
    return [*rows, _row(bench, total + _CHUNK)]


async def _spend_once(bench: Bench, centers: list[Center], first: int) -> None:
    """Spend once on each of a chunk of campaigns."""
    each = _CHUNK // _CENTERS
    numbers = range(first // _CENTERS, first // _CENTERS + each)
    named = [replace(center, campaigns=tuple(f"{center.id}-{number}" for number in numbers)) for center in centers]
    bench.published_spends += await bench.publisher.publish(SPEND_EVENTS, one_spend_each(named))
    await bench.settle()


def _row(bench: Bench, spends: int) -> dict[str, float]:
    allocation, broker = rss_mib(bench.system), broker_rss_mib(bench.system)
    bench.say(f"{spends:>12,} spends: allocation {allocation:,.0f} MiB, broker {broker:,.0f} MiB")
    return {"spends": spends, "allocation_rss_mib": allocation, "broker_rss_mib": broker}
