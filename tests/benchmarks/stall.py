"""How long a Business Center with very many accounts delays others when all its accounts pause, or resume, at once.

One spend uses up its balance, and one deposit tops it up, several times. Meanwhile a probe spend is published every
10 ms on a Business Center of the same shard, and on one of another. The stall is the longest time from a probe's
publication to its commit, with a look at the ledger every 2 ms.
"""

import asyncio
import time
from dataclasses import dataclass, field

import asyncpg

from tests.benchmarks.bench import Bench
from tests.benchmarks.load import (
    Center,
    center_in_shard,
    command,
    event_id,
    funded,
    now_text,
    opened_account,
    opened_center,
    spend,
)
from tests.benchmarks.plan import SHARDS
from tests.benchmarks.watch import PATIENCE_SECONDS

MASS_CASH = "1000.00"
PROBE_SECONDS = 0.01
LOOK_SECONDS = 0.002
_OPENED_AT_ONCE = 2_000
_QUIET_SECONDS = 0.5


@dataclass
class Stall:
    """The longest times in ms. `signals` is from the spend that uses up the balance to the last pause signal."""

    same_shard: float = 0.0
    other_shard: float = 0.0
    signals: list[float] = field(default_factory=list)

    @property
    def longest(self) -> float:
        """The longest wait of any probe, in ms."""
        return max(self.same_shard, self.other_shard)


@dataclass
class _Probes:
    """The probes without a commit: for each shard, offset and time of publication."""

    waiting: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    longest: dict[int, float] = field(default_factory=dict)
    sent: int = 0

    def committed(self, shard: int, offset: int, now: float) -> None:
        left = []
        for probe, at in self.waiting.get(shard, []):
            if probe < offset:
                self.longest[shard] = max(self.longest.get(shard, 0.0), (now - at) * 1000)
            else:
                left.append((probe, at))
        self.waiting[shard] = left


async def measure_stall(bench: Bench) -> Stall:
    """Pause and resume all accounts of one Business Center, and measure who waits."""
    mass = center_in_shard("mass", 0, SHARDS)
    same, other = center_in_shard("beside", 0, SHARDS), center_in_shard("beside", 1, SHARDS)
    await _set_up(bench, mass, same, other)
    probes, stall = _Probes(), Stall()
    watcher = await asyncpg.connect(bench.system.database_url)
    tasks = [
        asyncio.create_task(_send_probes(bench, probes, same)),
        asyncio.create_task(_send_probes(bench, probes, other)),
        asyncio.create_task(_look(watcher, probes)),
    ]
    try:
        for _ in range(bench.plan.mass_cycles):
            stall.signals.append(await _pause_and_resume(bench, mass))
        for task in tasks:
            assert not task.done(), task.exception()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await watcher.close()
    bench.published_spends += probes.sent
    stall.same_shard, stall.other_shard = probes.longest[same.partition], probes.longest[other.partition]
    return stall


async def _set_up(bench: Bench, mass: Center, *beside: Center) -> None:
    await bench.command([record for each in beside for record in funded(each)])
    await bench.command(
        [
            opened_center(mass),
            command(mass, "deposit_cash", amount=MASS_CASH),
            command(mass, "enable_automatic_allocation"),
        ]
    )
    accounts = [mass.account, *(f"{mass.id}-acct-{n}" for n in range(1, bench.plan.mass_accounts))]
    for start in range(0, len(accounts), _OPENED_AT_ONCE):
        await bench.command([opened_account(mass, account) for account in accounts[start : start + _OPENED_AT_ONCE]])
    await bench.followers_settle()


async def _pause_and_resume(bench: Bench, mass: Center) -> float:
    """Run one cycle; return the time until every pause was signalled, in ms."""
    started = time.perf_counter()
    before = (await bench.ledger.positions())[mass.partition]
    bench.published_spends += 1
    await bench.publisher.send_alone(spend(mass, mass.account, mass.campaigns[0], MASS_CASH, now_text(), event_id()))
    await _wait_for_changes(bench, mass, "pause", before)
    signalled = await bench.ledger.wait_for_follower("signals")
    await asyncio.sleep(_QUIET_SECONDS)
    before = (await bench.ledger.positions())[mass.partition]
    bench.published_commands += await bench.publisher.commands([command(mass, "deposit_cash", amount=MASS_CASH)])
    await _wait_for_changes(bench, mass, "resume", before)
    await bench.ledger.wait_for_follower("signals")
    await asyncio.sleep(_QUIET_SECONDS)
    return (signalled - started) * 1000


async def _wait_for_changes(bench: Bench, mass: Center, kind: str, after: int) -> None:
    """Wait until every account has an entry of that kind after that position."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            changed = await bench.ledger.connection.fetchval(
                "SELECT count(*) FROM ledger.entries"
                " WHERE shard = $1 AND position > $2 AND kind = $3 AND business_center_id = $4",
                mass.partition,
                after,
                kind,
                mass.id,
            )
            if changed >= bench.plan.mass_accounts:
                return
            await asyncio.sleep(0.1)  # Rarely, because counting slows down the probes.


async def _send_probes(bench: Bench, probes: _Probes, where: Center) -> None:
    started = time.perf_counter()
    number = 0
    while True:
        number += 1
        await asyncio.sleep(max(0.0, started + number * PROBE_SECONDS - time.perf_counter()))
        record = spend(where, where.account, where.campaigns[0], "0.010000", now_text(), event_id())
        at = time.perf_counter()
        partition, offset = await bench.publisher.send_alone(record)
        probes.sent += 1
        probes.waiting.setdefault(partition, []).append((offset, at))


async def _look(connection: asyncpg.Connection, probes: _Probes) -> None:
    while True:
        rows = await connection.fetch("SELECT shard, spend_offset FROM ledger.shards")
        now = time.perf_counter()
        for shard, offset in rows:
            probes.committed(shard, offset, now)
        await asyncio.sleep(LOOK_SECONDS)
