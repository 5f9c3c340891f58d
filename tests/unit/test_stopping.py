"""Work next to a block: it ends with the block, and what it raises ends the block. A stop ends in time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import asyncpg
import pytest
from structlog.testing import capture_logs

from services.allocation import service
from services.allocation.retrying import retry_forever
from services.allocation.service import Allocation
from services.allocation.writing.outcome_publishing import publish_outcomes
from shared.runtime.health import Health
from shared.runtime.settings import BadSettingError, Settings
from shared.runtime.stopping import close_within, in_background, is_asked_to_end

WRONG = BadSettingError("the database is another")


async def test_the_work_has_ended_when_the_block_ends() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)
            ended.set()

    async with in_background(work()):
        await asyncio.sleep(0)
    assert ended.is_set()


async def test_an_error_of_the_work_interrupts_the_block_and_is_raised_there() -> None:
    begun = asyncio.Event()

    async def work() -> NoReturn:
        await begun.wait()
        raise WRONG

    async def block() -> None:
        async with in_background(work()):
            begun.set()
            await asyncio.get_running_loop().create_future()

    with pytest.raises(BadSettingError) as raised:
        await block()
    assert raised.value is WRONG
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_an_error_of_work_that_is_being_stopped_interrupts_nothing() -> None:
    async def work() -> NoReturn:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            raise WRONG

    async with in_background(work()):
        await asyncio.sleep(0)
    await asyncio.sleep(0)  # What comes later is not cancelled.


async def test_a_block_that_is_cancelled_ends_as_cancelled() -> None:
    begun = asyncio.Event()

    async def block() -> None:
        async with in_background(forever()):
            begun.set()
            await asyncio.get_running_loop().create_future()

    async def forever() -> None:
        await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(block())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# ---- A stop, during which each task is cancelled already ------------------------------------------------------------


@pytest.fixture
def old_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `asyncio.timeout` raise CancelledError in a cancelled task, as up to Python 3.11.2 (gh-102780)."""
    present = asyncio.timeout

    @asynccontextmanager
    async def timeout(delay: float | None) -> AsyncIterator[asyncio.Timeout]:
        try:
            async with present(delay) as limit:
                yield limit
        except TimeoutError:
            if is_asked_to_end():
                raise asyncio.CancelledError from None
            raise

    monkeypatch.setattr(asyncio, "timeout", timeout)


async def never(*_: object) -> NoReturn:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


async def while_cancelled(work: Callable[[], Awaitable[None]]) -> None:
    """Run the work in a task that was cancelled before it begins."""

    async def cancelled() -> None:
        try:
            await never()
        except asyncio.CancelledError:
            await work()

    task = asyncio.create_task(cancelled())
    await asyncio.sleep(0)
    task.cancel()
    await task


async def test_a_server_that_never_answers_is_closed_in_time_by_a_cancelled_task(old_timeout: None) -> None:
    after = []

    async def work() -> None:
        await close_within(never(), 0.01)
        after.append("goes on")

    await while_cancelled(work)
    assert after == ["goes on"]


async def test_a_cancelled_process_cuts_off_the_shards_that_are_not_released_in_time(
    old_timeout: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "FINISH_SECONDS", 0.01)
    monkeypatch.setattr(service, "withdraw", never)
    allocation = Allocation(Settings(), Health())
    shard = allocation._tasks[0] = asyncio.create_task(never())
    await while_cancelled(lambda: allocation._give_up_all(None))
    assert shard.cancelled()


class Unanswering:
    """A connection whose server closes it when the task that waits for an answer is cancelled."""

    async def fetchrow(self, *_: object) -> NoReturn:
        try:
            await never()
        except asyncio.CancelledError:
            raise ConnectionResetError from None


@pytest.mark.parametrize("repeats", [True, False])
async def test_work_that_is_repeated_ends_if_an_error_of_the_server_replaces_its_cancellation(repeats: bool) -> None:
    database: Any = Unanswering()
    if repeats:
        task = asyncio.create_task(retry_forever("reading", database.fetchrow))
    else:
        task = asyncio.create_task(publish_outcomes(database, database, 0, asyncio.Event()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task}, timeout=5)
    assert task.cancelled()


async def test_publishing_outcomes_ends_without_a_complaint_once_its_connections_are_cut_off() -> None:
    pool = await asyncpg.create_pool(min_size=0)
    pool.terminate()
    producer: Any = None
    with capture_logs() as logged:
        task = asyncio.create_task(publish_outcomes(pool, producer, 0, asyncio.Event()))
        await asyncio.wait({task}, timeout=5)
    assert (task.cancelled(), logged) == (True, [])
