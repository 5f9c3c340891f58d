"""The memory of the allocation process over ten million spends of 100,000 campaigns: `make bench-memory`.

Spends are published some at a time, once the ones before are in the ledger. So the ledger grows, and so does the
broker, which keeps everything (about 3 GB at the end), but not the backlog.
"""

from tests.benchmarks.bench import Bench
from tests.benchmarks.throughput import set_up_many
from tests.benchmarks.watch import broker_rss_mib, rss_mib

_CHUNK = 100_000


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


def _row(bench: Bench, spends: int) -> dict[str, float]:
    allocation, broker = rss_mib(bench.system), broker_rss_mib(bench.system)
    bench.say(f"{spends:>12,} spends: allocation {allocation:,.0f} MiB, broker {broker:,.0f} MiB")
    return {"spends": spends, "allocation_rss_mib": allocation, "broker_rss_mib": broker}
