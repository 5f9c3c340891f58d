"""Processes that die, stop and come back: nothing is lost and nothing is doubled.

The second model is the outside checker. It gets what was published, in order. Afterwards every balance, budget,
delivery state, ledger entry, quarantined record and signal must be as it predicts.
"""

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import asyncpg
import pytest

from drawdown.local.system import Service
from drawdown.serving import SERVICES
from shared.runtime.read_models import READ_MODELS
from tests.acceptance.clocks import offset_to
from tests.acceptance.front_door import FrontDoor, until
from tests.model.driver import Driver
from tests.model.forms import money
from tests.model.test_model import START_US
from tests.model.workload import Workload
from tests.servers import RunningSystem, free_ports, running_system

ALLOCATION, SECOND_ALLOCATION = "allocation", "allocation-2"
BURST = 120
# One of the next writers decides a waiting command, although each of them is killed soon after it was ready. On a
# machine with ten times more work than it can do, nine of ten commands were decided by the first or second writer, and
# all by the fourth.
MOST_STARTS_FOR_A_COMMAND = 5


@dataclass
class Rehearsal:
    """A system that is damaged while it works, and the model that checks it."""

    system: RunningSystem
    door: FrontDoor
    driver: Driver
    workload: Workload
    database: asyncpg.Connection
    random: random.Random
    starts: int = 0

    async def burst(self, meanwhile: Callable[[], Awaitable[object]]) -> None:
        """Publish a burst of spends. At a random one of them, something else begins."""
        events = [self.workload.next_event(self.door.now_us()) for _ in range(BURST)]
        at = self.random.randrange(BURST)
        await self.driver.publish_all(events[:at])
        async with asyncio.TaskGroup() as group:
            group.create_task(self.driver.publish_all(events[at:]))
            group.create_task(_as_coroutine(meanwhile))

    async def check(self) -> None:
        """Check that everything is as the model predicts."""
        await self.driver.compare(self.workload.centers, self.workload.account_ids)

    async def restart_allocation(self) -> None:
        """Start the next writer, and return when it is ready."""
        await self.system.restart_service(ALLOCATION)
        self.starts += 1

    async def epochs(self) -> int:
        """Return how often shards have been taken so far."""
        return int(await self.database.fetchval("SELECT sum(epoch) FROM ledger.shards"))


async def _as_coroutine(action: Callable[[], Awaitable[object]]) -> None:
    await action()


@pytest.fixture
async def rehearsal() -> AsyncIterator[Rehearsal]:
    """Yield a system of this test alone, with some Business Centers in it."""
    async with running_system(clock_offset_seconds=offset_to(START_US)) as system, FrontDoor(system) as door:
        database = await asyncpg.connect(system.database_url)
        workload, driver = Workload(7), Driver(door)
        for work in workload.opening(door.now_us()):
            await driver.do(work)
        yield Rehearsal(system, door, driver, workload, database, random.Random(7))
        await database.close()


# In containers, `make chaos` kills a thousand times more.
@pytest.mark.parametrize(
    ("under_load", "at_the_start"),
    [pytest.param(22, 8, marks=pytest.mark.embedded), pytest.param(6, 2, marks=pytest.mark.containers)],
)
async def test_the_ledger_is_right_after_repeated_kills_of_allocation(
    rehearsal: Rehearsal, under_load: int, at_the_start: int
) -> None:
    system = rehearsal.system
    async with busy_treasury(rehearsal):
        for _ in range(under_load):
            await rehearsal.burst(partial(system.kill_service, ALLOCATION))
            await rehearsal.restart_allocation()
        for _ in range(at_the_start):
            await rehearsal.burst(partial(kill_while_it_takes_shards, rehearsal))
            await rehearsal.restart_allocation()
    await rehearsal.check()
    await check_the_log_by_itself(rehearsal)


async def kill_while_it_takes_shards(rehearsal: Rehearsal) -> None:
    """Kill the next process as soon as it has taken a shard, perhaps before it has written anything."""
    system = rehearsal.system
    await system.kill_service(ALLOCATION)
    before = await rehearsal.epochs()
    system.services[ALLOCATION].start()

    async def has_taken() -> bool | None:
        return True if await rehearsal.epochs() > before else None

    await until("a shard is taken", has_taken)
    await system.kill_service(ALLOCATION)


@contextlib.asynccontextmanager
async def busy_treasury(rehearsal: Rehearsal) -> AsyncIterator[None]:
    """Make deposits to one Business Center while the block runs. Each is sent until it is answered."""
    door, driver = rehearsal.door, rehearsal.driver
    center = "treasury"
    opening = {"currency": "USD", "time_zone": "UTC"}
    await driver.command(door.admin_command(center, "open_business_center", **opening))
    waits: list[int] = []
    is_open = True

    async def deposit() -> None:
        while is_open:
            before = rehearsal.starts
            await driver.command(door.admin_command(center, "deposit_cash", amount="1"))
            waits.append(rehearsal.starts - before)

    task = asyncio.create_task(deposit())
    yield
    is_open = False
    await task
    assert max(waits) <= MOST_STARTS_FOR_A_COMMAND
    assert (await door.get(f"business-centers/{center}"))["balance"]["cash"] == money(len(waits) * 1_000_000)


async def check_the_log_by_itself(rehearsal: Rehearsal) -> None:
    """Check that positions have no gap, that batches follow each other, and that epochs never fall."""
    gaps = await rehearsal.database.fetch(
        "SELECT shard FROM ledger.entries GROUP BY shard HAVING count(*) <> max(position) OR min(position) <> 1"
    )
    assert gaps == []
    out_of_order = await rehearsal.database.fetch(
        """
        SELECT * FROM (
            SELECT shard, first_position, epoch,
                lag(last_position, 1, 0::bigint) OVER batches AS before, lag(epoch) OVER batches AS epoch_before
            FROM ledger.batches WINDOW batches AS (PARTITION BY shard ORDER BY last_position)
        ) AS b WHERE first_position <> before + 1 OR epoch < epoch_before
        """
    )
    assert out_of_order == []


async def test_a_process_that_was_stopped_for_long_writes_nothing_more(rehearsal: Rehearsal) -> None:
    system = rehearsal.system
    names = [ALLOCATION, await start_second_allocation(rehearsal)]
    for turn in range(3):
        still = names[turn % 2]
        await rehearsal.burst(partial(suspend_process, system, still))
        await rehearsal.door.fence()  # Overtaken: the other process has decided all of it.
        overtaken_at = await rehearsal.epochs()
        child = system.services[still].child
        assert child is not None
        child.send(signal.SIGCONT)
        await rehearsal.burst(rehearsal.door.fence)
        await restart_if_ended(system, still)
        assert await rehearsal.epochs() >= overtaken_at
    await rehearsal.check()
    await check_the_log_by_itself(rehearsal)


async def start_second_allocation(rehearsal: Rehearsal) -> str:
    """Start another process of the same service, with its own health port. Return its name."""
    system = rehearsal.system
    elsewhere = system.settings.model_copy(update={"http_port": free_ports(len(SERVICES))})
    second = Service(ALLOCATION, elsewhere, {})
    second.log = second.log.with_name(f"{SECOND_ALLOCATION}.log")
    system.services[SECOND_ALLOCATION] = second
    await system.restart_service(SECOND_ALLOCATION)
    return SECOND_ALLOCATION


async def suspend_process(system: RunningSystem, name: str) -> None:
    child = system.services[name].child
    assert child is not None
    child.send(signal.SIGSTOP)


async def restart_if_ended(system: RunningSystem, name: str) -> None:
    child = system.services[name].child
    assert child is not None
    if child.exit_code() is not None:
        system.services[name].start()


async def test_followers_and_the_api_recover_from_kills(rehearsal: Rehearsal) -> None:
    system, workload = rehearsal.system, rehearsal.workload
    covered = workload.accounts[workload.centers[0]]
    await rehearsal.door.register_deal("deal", covered)
    for _ in range(4):
        for name in (*(model.name for model in READ_MODELS), "api"):
            await rehearsal.burst(partial(system.kill_service, name))
            await system.restart_service(name)
    await rehearsal.check()
    expected = sum(rehearsal.driver.model.cash_spend(account) for account in covered)
    assert expected > 0
    assert await rehearsal.door.cash_spend("deal") == money(expected)
