"""Shutting down in order and in time, even while a server is unavailable."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import structlog

T = TypeVar("T")

CLOSE_SECONDS = 1.0


async def first_to_end(*awaitables: Awaitable[None], seconds: float) -> None:
    """Run all until the first raises; then cancel the others, wait for them for up to `seconds`, and raise its error.

    A task still running after that is blocked on a server; it ends when its connection is closed.
    """
    tasks = [asyncio.ensure_future(each) for each in awaitables]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=seconds)


@asynccontextmanager
async def in_background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run endless work for as long as the block runs. If it raises, the block is interrupted and raises that error.

    When the block is left, the work is cancelled, and its resources may be closed. It has one second to end, because it
    may be blocked on a server.
    """
    block, task = asyncio.current_task(), asyncio.create_task(work)
    assert block is not None
    is_running, is_interrupted = True, False

    def interrupt(ended: "asyncio.Task[None]") -> None:
        nonlocal is_interrupted
        if is_running and not ended.cancelled():
            is_interrupted = True
            block.cancel()

    task.add_done_callback(interrupt)
    try:
        yield
    except asyncio.CancelledError:
        if is_interrupted:
            block.uncancel()
            task.result()
        raise
    finally:
        is_running = False
        task.cancel()
        await asyncio.wait({task}, timeout=CLOSE_SECONDS)


async def within(seconds: float, work: Awaitable[T]) -> T:
    """Return what the work returns, also in a task that was cancelled; after this many seconds raise TimeoutError.

    In such a task `asyncio.timeout` raises CancelledError instead, until Python 3.11.3.
    """
    return await asyncio.wait_for(work, seconds)


def is_asked_to_end() -> bool:
    """Return whether this task was cancelled, even if an error of a server has replaced the cancellation."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def close_within(closing: Awaitable[object], seconds: float = CLOSE_SECONDS) -> None:
    """Await `closing` for up to this many seconds, because a shutdown must not block on an unreachable server.

    Logs an error instead of raising it.
    """
    try:
        await within(seconds, closing)
    except Exception as error:
        structlog.get_logger().warning("could not close cleanly", error=f"{type(error).__name__}: {error}")
