"""Work next to a block: it ends with the block, and what it raises ends the block."""

import asyncio
from typing import NoReturn

import pytest

from shared.runtime.settings import BadSettingError
from shared.runtime.stopping import in_background

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
