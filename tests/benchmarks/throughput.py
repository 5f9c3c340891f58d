"""Spends a second from Kafka to the ledger.

Everything runs on this machine: broker, database and all services, including the followers. The allocation process is
stopped, the spends are published, and it is started again. Then it reads the backlog as fast as it can. Meanwhile the
benchmark only looks at the ledger every 20 ms. The rate is that of the spends committed between a tenth and nine tenths
of the total. Afterwards the ledger must contain every spend, fully paid.
"""

import asyncio
from dataclasses import dataclass

from shared.runtime.kafka import SPEND_EVENTS
from tests.benchmarks.bench import Bench
from tests.benchmarks.load import Center, center, funded, many_centers, one_spend_each
from tests.benchmarks.plan import SHARDS
from tests.benchmarks.watch import (
    FROM_SHARE,
    TO_SHARE,
    Sample,
    cpu_per_spend_us,
    cpu_seconds,
    entries_per_spend,
    rss_mib,
    spends_per_second,
    spends_per_second_from_start,
)


@dataclass
class Drained:
    """The result of a backlog. `first` and `last` are the positions by shard before and after it."""

    rate: float
    rate_from_start: float
    entries_each: float
    cpu_us: dict[str, float]
    rss_start_mib: float
    rss_end_mib: float
    first: dict[int, int]
    last: dict[int, int]


async def set_up_many(bench: Bench) -> list[Center]:
    """Open and fund many Business Centers, and spend once on every campaign."""
    centers = many_centers(bench.plan.centers, bench.plan.campaigns_each, SHARDS)
    bench.say(f"opening {len(centers):,} Business Centers")
    await bench.command(record for each in centers for record in funded(each))
    warm = one_spend_each(centers)
    bench.say(f"warming up: one spend on each of {len(warm):,} campaigns")
    bench.published_spends += await bench.publisher.publish(SPEND_EVENTS, warm)
    await bench.settle()
    return centers


async def set_up_hot(bench: Bench) -> Center:
    """Open and fund one Business Center with automatic allocation, and spend once on its campaigns."""
    hot = center("hot", SHARDS, automatic=True, campaigns=bench.plan.hot_campaigns)
    await bench.command(funded(hot))
    bench.published_spends += await bench.publisher.publish(SPEND_EVENTS, one_spend_each([hot]))
    await bench.settle()
    return hot


class _Watch:
    """Notes the processor time of the processes over the same part of a backlog as the rate."""

    def __init__(self, bench: Bench, count: int) -> None:
        self._system = bench.system
        self._end = bench.published_spends
        self._from, self._to = (self._end - count + count * share for share in (FROM_SHARE, TO_SHARE))
        self._before: tuple[int, dict[str, float]] | None = None
        self.cpu_us: dict[str, float] = {}
        self.rss_start_mib = self.rss_end_mib = 0.0

    def __call__(self, sample: Sample) -> None:
        if self._before is None and sample.spends >= self._from:
            self._before = sample.spends, cpu_seconds(self._system)
            self.rss_start_mib = rss_mib(self._system)
        elif self._before is not None and not self.cpu_us and sample.spends >= self._to:
            spends, cpu = self._before
            self.cpu_us = cpu_per_spend_us(cpu, cpu_seconds(self._system), sample.spends - spends)
        if sample.spends == self._end:
            self.rss_end_mib = rss_mib(self._system)


async def drain(bench: Bench, centers: list[Center], count: int) -> Drained:
    """Publish spends while allocation is stopped, then measure how fast it decides them."""
    await bench.followers_settle()
    await bench.stop("allocation")
    await bench.spend(centers, count)
    first = await bench.ledger.positions()
    watch = _Watch(bench, count)
    settling = asyncio.create_task(bench.ledger.wait_for(spends=bench.published_spends, seen=watch))
    try:
        await bench.start("allocation")
        samples = await settling
    finally:
        settling.cancel()
    found, unpaid = await bench.ledger.count_spends(first)
    assert (found, unpaid) == (count, 0), f"of {count} spends the ledger holds {found}, {unpaid} of them unpaid"
    return Drained(
        rate=spends_per_second(samples),
        rate_from_start=spends_per_second_from_start(samples),
        entries_each=entries_per_spend(samples),
        cpu_us=watch.cpu_us,
        rss_start_mib=watch.rss_start_mib,
        rss_end_mib=watch.rss_end_mib,
        first=first,
        last=await bench.ledger.positions(),
    )
