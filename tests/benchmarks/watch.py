"""Watches a running system: the progress of the ledger, and the resources of its processes."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import asyncpg
import psutil  # type: ignore[import-untyped]

from tests.servers import RunningSystem

SAMPLE_SECONDS = 0.02
# If nothing has moved for this long, something is broken.
PATIENCE_SECONDS = 60.0
# The rate is the slope between these shares of the committed records.
FROM_SHARE, TO_SHARE = 0.1, 0.9
MEBIBYTE = 1024 * 1024


class NothingMovesError(Exception):
    """An awaited change did not happen."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The committed records at a moment, summed over the shards.

    `at` is in seconds of the database's clock, so that a delay of this process does not matter. `spends` and `commands`
    are consumed offsets: a record counts once its result is committed. `owned` says whether allocation has all shards.
    """

    at: float
    spends: int
    commands: int
    entries: int
    owned: bool


@dataclass
class Ledger:
    """The ledger as a superuser sees it, through a separate connection."""

    connection: asyncpg.Connection

    async def sample(self) -> Sample:
        """Return what is committed now."""
        row = await self.connection.fetchrow(
            "SELECT extract(epoch FROM clock_timestamp())::double precision, sum(spend_offset)::bigint,"
            " sum(command_offset)::bigint, sum(position)::bigint, bool_and(owner IS NOT NULL) FROM ledger.shards"
        )
        return Sample(*row)

    async def wait_for(
        self, *, spends: int = 0, commands: int = 0, seen: Callable[[Sample], None] = lambda _sample: None
    ) -> list[Sample]:
        """Sample until this many records are committed; return all samples. `seen` is called with each.

        Raises:
            NothingMovesError: nothing was committed for a minute.

        """
        samples = [await self.sample()]
        moved_at = samples[0].at
        while samples[-1].spends < spends or samples[-1].commands < commands:
            await asyncio.sleep(SAMPLE_SECONDS)
            samples.append(await self.sample())
            seen(samples[-1])
            if samples[-1].entries != samples[-2].entries or samples[-1].spends != samples[-2].spends:
                moved_at = samples[-1].at
            if samples[-1].at - moved_at > PATIENCE_SECONDS:
                raise NothingMovesError(f"{samples[-1]}, waited for {spends=} {commands=}")
        return samples

    async def positions(self) -> dict[int, int]:
        """Return the last position of each shard."""
        return dict(await self.connection.fetch("SELECT shard, position FROM ledger.shards"))

    async def checkpoints(self, follower: str) -> dict[int, int]:
        """Return the position up to which a follower has folded each shard."""
        return dict(
            await self.connection.fetch("SELECT shard, position FROM ledger.checkpoints WHERE follower = $1", follower)
        )

    async def count_spends(self, after: dict[int, int]) -> tuple[int, int]:
        """Return the numbers of spends, and of entries of overdelivery, after these positions."""
        found = await self.connection.fetchrow(
            "SELECT count(*) FILTER (WHERE part = 0), count(*) FILTER (WHERE kind = 'overdelivery')"
            " FROM ledger.entries e JOIN unnest($1::smallint[], $2::bigint[]) a(shard, position)"
            " ON e.shard = a.shard AND e.position > a.position WHERE day IS NOT NULL",
            list(after),
            list(after.values()),
        )
        return tuple(found)

    async def wait_for_follower(self, follower: str) -> float:
        """Wait until a follower has folded all entries that are in the ledger now; return the time.

        Raises:
            NothingMovesError: it folded nothing for a minute.

        """
        goal = await self.positions()
        moved_at, last = time.perf_counter(), -1
        while True:
            done = await self.checkpoints(follower)
            now = time.perf_counter()
            if all(done.get(shard, 0) >= position for shard, position in goal.items()):
                return now
            if sum(done.values()) != last:
                last, moved_at = sum(done.values()), now
            if now - moved_at > PATIENCE_SECONDS:
                raise NothingMovesError(f"{follower} stays at {done}, waited for {goal}")
            await asyncio.sleep(SAMPLE_SECONDS)

    async def refused(self) -> list[Any]:
        """Return the number of commands and events that were not accepted, which must be 0."""
        return [
            *await self.connection.fetch(
                "SELECT type, code, message FROM ledger.outcomes WHERE code IS NOT NULL LIMIT 5"
            ),
            *await self.connection.fetch("SELECT reason, detail FROM ledger.quarantine LIMIT 5"),
        ]


def spends_per_second(samples: list[Sample]) -> float:
    """Return the slope between a tenth and nine tenths of the committed spends.

    At both moments equally many batches are in progress. With the ends included, a run would seem faster than it is,
    because the first batches of all shards are decided before anything is committed.
    """
    first, last = (share_committed(samples, share) for share in (FROM_SHARE, TO_SHARE))
    if last.at == first.at:
        raise NothingMovesError("all was committed between two looks: too few spends to tell a rate")
    return (last.spends - first.spends) / (last.at - first.at)


def spends_per_second_from_start(samples: list[Sample]) -> float:
    """Return the rate from the moment allocation has all shards, and begins to load their state, to the last commit."""
    first = next(sample for sample in samples if sample.owned)
    last = share_committed(samples, 1.0)
    return (last.spends - samples[0].spends) / (last.at - first.at)


def share_committed(samples: list[Sample], share: float) -> Sample:
    """Return the first sample with at least this share of all committed spends."""
    start, end = samples[0].spends, samples[-1].spends
    return next(sample for sample in samples if sample.spends >= start + (end - start) * share)


def entries_per_spend(samples: list[Sample]) -> float:
    """Return the number of entries of a spend, on average."""
    return (samples[-1].entries - samples[0].entries) / (samples[-1].spends - samples[0].spends)


# ---- Processes --------------------------------------------------------------------------------------------------


def _roots(system: RunningSystem) -> Iterator[tuple[str, int]]:
    for name, service in system.services.items():
        if service.child is not None and service.child.exit_code() is None:
            yield name, service.child.pid
    for name, server in (("broker", system.kafka), ("postgres", system.postgres)):
        if server is not None and server.child is not None:
            yield name, server.child.pid


def cpu_seconds(system: RunningSystem) -> dict[str, float]:
    """Return the processor time in seconds that each part has used so far. PostgreSQL means all its processes."""
    return {name: _cpu_of(pid) for name, pid in _roots(system)}


def _cpu_of(pid: int) -> float:
    process = psutil.Process(pid)
    total = 0.0
    for each in (process, *process.children(recursive=True)):
        try:
            times = each.cpu_times()
            total += times.user + times.system
            if each.pid == pid:  # Including the children that have ended.
                total += times.children_user + times.children_system
        except psutil.NoSuchProcess:
            continue
    return total


def cpu_per_spend_us(before: Mapping[str, float], after: Mapping[str, float], spends: int) -> dict[str, float]:
    """Return the microseconds of processor time that each part used for a spend."""
    return {name: max(0.0, after[name] - before.get(name, 0.0)) / spends * 1e6 for name in after}


def rss_mib(system: RunningSystem, service: str = "allocation") -> float:
    """Return the resident memory of a service's process, in MiB."""
    child = system.services[service].child
    assert child is not None
    return float(psutil.Process(child.pid).memory_info().rss) / MEBIBYTE


def broker_rss_mib(system: RunningSystem) -> float:
    """Return the resident memory of the broker, which keeps every record, in MiB."""
    if system.kafka is None or system.kafka.child is None:
        return 0.0
    return float(psutil.Process(system.kafka.child.pid).memory_info().rss) / MEBIBYTE
