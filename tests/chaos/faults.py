"""Servers that die, fill up, slow down, are cut off or replaced; clocks that jump; processes that hang.

Each fault happens under load. Afterwards all services must recover by themselves within a stated time, and the outside
checker must find nothing.
"""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import asyncpg
import docker
import httpx
from aiokafka.admin import AIOKafkaAdminClient

from drawdown.local.system import prepare
from tests.acceptance.front_door import until
from tests.chaos.checker import Findings
from tests.chaos.load import SPENDS, Load
from tests.chaos.machine import Machine, check, drawdown, under_load
from tests.chaos.servers import Servers, servers
from tests.containers import POSTGRES_IMAGE

READY_AGAIN_SECONDS = 120.0
NOTICED_SECONDS = 40.0
HOUR_SECONDS = 3600
WARM_UP_SECONDS = 2.0
_POLL_SECONDS = 0.2


@dataclass
class Rig:
    """A system under load, with the means to hurt it."""

    servers: Servers
    machine: Machine
    load: Load
    api: httpx.AsyncClient
    random: random.Random
    disk: "Disk | None" = None
    notes: list[str] = field(default_factory=list)
    lies: list[str] = field(default_factory=list)  # Services that said they were ready and were not.

    @contextlib.asynccontextmanager
    async def unready(self, *names: str) -> AsyncIterator[None]:
        """Require that these services soon report that they are not ready, after the fault in the block."""
        yield
        began = time.monotonic()
        while ready := [name for name in names if await self.machine.is_ready(name)]:
            if time.monotonic() - began > NOTICED_SECONDS:
                self.lies.append(f"ready all the same after {NOTICED_SECONDS:.0f} s: {', '.join(ready)}")
                return
            await asyncio.sleep(_POLL_SECONDS)

    async def check(self) -> Findings:
        """Return the defects that the outside checker finds."""
        servers = self.servers
        broker = servers.settings.kafka_bootstrap_servers
        return await check(self.load, servers.database_url, broker, self.api)


@contextlib.asynccontextmanager
async def rig(seed: int, *, disk_size: str | None = None) -> AsyncIterator[Rig]:
    """Start servers behind proxies, supervised services, and load. `disk_size` gives PostgreSQL a disk of that size."""
    async with contextlib.AsyncExitStack() as stack:
        disk = None if disk_size is None else stack.enter_context(contextlib.closing(Disk(disk_size)))
        its_servers = await stack.enter_async_context(servers(volume=disk.name if disk else None))
        settings = its_servers.settings
        machine = Machine(settings, its_servers.directory)
        machine.clock_file = its_servers.directory / "clock"
        set_clock(machine.clock_file, 0)
        await stack.enter_async_context(machine.kept())
        await machine.all_ready()
        load, api = await stack.enter_async_context(under_load(machine, seed))
        yield Rig(its_servers, machine, load, api, random.Random(seed), disk)


# The faults


async def postgres_killed(rig: Rig) -> None:
    """Kill all of PostgreSQL's processes with `kill -9`; start it again two seconds later."""
    async with rig.unready("allocation", "balance", "api"):
        await rig.servers.kill(rig.servers.postgres)
    await asyncio.sleep(2)
    await rig.servers.start(rig.servers.postgres)


async def connections_terminated(rig: Rig) -> None:
    """Terminate every session with `pg_terminate_backend`, ten times."""
    database = await asyncpg.connect(rig.servers.database_url)
    for _ in range(10):
        await database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            " AND pid <> pg_backend_pid()"
        )
        await asyncio.sleep(rig.random.uniform(0, 1))
    await database.close()


async def connections_reset(rig: Rig) -> None:
    """Reset every connection to both servers in the proxy, ten times."""
    for _ in range(10):
        rig.servers.postgres_proxy.reset()
        rig.servers.kafka_proxy.reset()
        await asyncio.sleep(rig.random.uniform(0, 1))


async def postgres_partitioned(rig: Rig) -> None:
    """Cut PostgreSQL off for 15 s, without closing connections."""
    async with rig.unready("allocation", "api"):
        rig.servers.postgres_proxy.partition()
        await asyncio.sleep(15)
    rig.servers.postgres_proxy.heal()


async def broker_killed(rig: Rig) -> None:
    """Kill the broker with `kill -9`; start it again two seconds later."""
    async with rig.unready("allocation", "api"):
        await rig.servers.kill(rig.servers.kafka)
    await asyncio.sleep(2)
    await rig.servers.start(rig.servers.kafka)


async def broker_partitioned(rig: Rig) -> None:
    """Cut the broker off for 45 s, which is longer than a client waits for an answer, without closing connections."""
    async with rig.unready("allocation", "api"):
        rig.servers.kafka_proxy.partition()
        await asyncio.sleep(45)
    rig.servers.kafka_proxy.heal()


async def slow_broker(rig: Rig) -> None:
    """Slow every connection to the broker down for 20 s: 150 ms each way, and 100 kB a second."""
    proxy = rig.servers.kafka_proxy
    proxy.delay_seconds, proxy.bytes_per_second = 0.15, 100_000
    await asyncio.sleep(20)
    proxy.heal()


async def topic_made_again(rig: Rig) -> None:
    """Delete and recreate the topic of spends while writers run. They must refuse it until its offsets are adopted."""
    # Settle first: records that nobody has consumed are lost with a topic, and that is not what is tested.
    findings = await rig.check()
    assert not findings, findings.examples()
    admin = AIOKafkaAdminClient(bootstrap_servers=rig.servers.settings.kafka_bootstrap_servers)
    await admin.start()
    await admin.delete_topics([SPENDS])

    async def is_gone() -> bool | None:
        return True if SPENDS not in await admin.list_topics() else None

    await until("the topic is gone", is_gone)
    await admin.close()
    before = _refusals(rig.machine)
    await prepare(rig.servers.settings)
    await rig.load.topics_are_new()
    rig.load.resume()

    async def is_refused() -> bool | None:
        return True if _refusals(rig.machine) >= before + 2 else None

    await until("the new topic is refused", is_refused, READY_AGAIN_SECONDS)
    assert await drawdown(rig.servers.settings, "offsets", "adopt") == 0


def _refusals(machine: Machine) -> int:
    return sum(times for (name, code), times in machine.ends.items() if name.startswith("allocation") and code > 0)


async def clock_steps(rig: Rig) -> None:
    """Step the clock of the allocation host forwards and backwards by minutes and hours, twenty times."""
    assert rig.machine.clock_file is not None
    for number in range(20):
        step = rig.random.choice((90, 600, HOUR_SECONDS, 5 * HOUR_SECONDS, 26 * HOUR_SECONDS))
        set_clock(rig.machine.clock_file, step if number % 2 else -step)
        await asyncio.sleep(1)
    set_clock(rig.machine.clock_file, 0)


def set_clock(file: Path, seconds: int) -> None:
    """Move the clock of all allocation processes at once."""
    new = file.with_suffix(".new")
    new.write_text(str(seconds * 1_000_000))
    new.replace(file)


async def standing_still(rig: Rig) -> None:
    """Stop a writer until another has overtaken it, and let it continue, ten times."""
    database = await asyncpg.connect(rig.servers.database_url)
    for number in range(10):
        pid = rig.machine.running[("allocation", "allocation-2")[number % 2]].process.pid
        assert pid is not None
        before = await database.fetchval("SELECT sum(epoch) FROM ledger.shards")
        os.kill(pid, signal.SIGSTOP)

        async def is_overtaken(before: int = before) -> bool | None:
            return True if await database.fetchval("SELECT sum(epoch) FROM ledger.shards") > before else None

        try:
            await until("another has overtaken it", is_overtaken, READY_AGAIN_SECONDS)
        finally:
            os.kill(pid, signal.SIGCONT)
        await rig.machine.all_ready()
    await database.close()


async def disk_full(rig: Rig) -> None:
    """Fill PostgreSQL's disk under load, keep it full for ten seconds, and free it again."""
    assert rig.disk is not None
    async with rig.unready("allocation"):
        await asyncio.to_thread(rig.disk.fill)
        await asyncio.sleep(10)
    await asyncio.to_thread(rig.disk.free)
    container = rig.servers.postgres.get_wrapped_container()
    await asyncio.to_thread(container.reload)
    rig.notes.append(f"PostgreSQL's container then: {container.status}")
    if (
        container.status != "running"
    ):  # PostgreSQL stops when it has no room for its WAL; an operator would start it again.
        await rig.servers.start(rig.servers.postgres)


Fault = Callable[[Rig], Awaitable[None]]
# Each fault, and how often it happens.
FAULTS: dict[Fault, int] = {
    postgres_killed: 3,
    connections_terminated: 1,
    connections_reset: 1,
    postgres_partitioned: 1,
    broker_killed: 3,
    broker_partitioned: 1,
    slow_broker: 1,
    standing_still: 1,
    topic_made_again: 2,
    clock_steps: 1,
}
DISK_FAULTS: dict[Fault, int] = {disk_full: 2}


@dataclass
class Result:
    """The result of a fault. `ready_seconds` is the time from its end until every service was ready."""

    name: str
    ready_seconds: float
    findings: Findings
    exits: dict[str, int]
    notes: list[str]
    lies: list[str]


async def hurt(rig: Rig, fault: Fault) -> Result:
    """Cause one fault under load, wait for the recovery, and check."""
    rig.notes, rig.lies = [], []
    before = rig.machine.others()
    rig.load.resume()
    await asyncio.sleep(WARM_UP_SECONDS)
    await fault(rig)
    ready_seconds = await rig.machine.all_ready(READY_AGAIN_SECONDS)
    rig.load.resume()
    await asyncio.sleep(WARM_UP_SECONDS)
    findings = await rig.check()
    ended = {
        f"{name}: exit {code}": times - before.get((name, code), 0)
        for (name, code), times in rig.machine.others().items()
        if times > before.get((name, code), 0)
    }
    return Result(fault.__name__, ready_seconds, findings, ended, rig.notes, rig.lies)


class Disk:
    """A small file system for PostgreSQL's data, which a second container mounts and can fill."""

    def __init__(self, size: str) -> None:
        self.name = f"drawdown-chaos-{uuid4().hex[:8]}"
        self._client = docker.from_env()
        options = {"type": "tmpfs", "device": "tmpfs", "o": f"size={size}"}
        self._volume = self._client.volumes.create(self.name, driver="local", driver_opts=options)
        self._aside = self._client.containers.run(
            POSTGRES_IMAGE,
            ["sleep", "infinity"],
            entrypoint="",
            user="root",
            volumes={self.name: {"bind": "/volume", "mode": "rw"}},
            detach=True,
        )

    def fill(self) -> None:
        """Fill the disk until there is no room for another block."""
        done = self._aside.exec_run(["dd", "if=/dev/zero", "of=/volume/filling", "bs=4k"])
        assert b"No space left" in done.output, done.output

    def free(self) -> None:
        """Free the disk again."""
        done = self._aside.exec_run(["rm", "/volume/filling"])
        assert done.exit_code == 0, done.output

    def close(self) -> None:
        """Remove the container and the volume."""
        self._aside.remove(force=True)
        self._volume.remove(force=True)
        self._client.close()
