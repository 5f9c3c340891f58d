"""Ending in order and in time, whichever server is away at that moment."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import structlog

FAREWELL_SECONDS = 1.0


async def first_to_end(*awaitables: Awaitable[None], seconds: float) -> None:
    """Run all until the first raises; cancel the others and wait for them, but no longer; then raise it.

    Who is late waits for a server that does not answer, and ends when its connection is closed.
    """
    tasks = [asyncio.ensure_future(each) for each in awaitables]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=seconds)


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run a work without an end as long as the block runs; what it raises interrupts the block, and is raised there.

    It has ended when the block is left, and what it used may be closed; one that waits for a server is not waited for
    beyond a second.
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
        await asyncio.wait({task}, timeout=FAREWELL_SECONDS)


async def farewell(closing: Awaitable[object], seconds: float = FAREWELL_SECONDS) -> None:
    """Close something in good order if that is soon done: who ends waits for no server that is away."""
    try:
        async with asyncio.timeout(seconds):
            await closing
    except Exception as error:
        structlog.get_logger().warning("left without a farewell", error=f"{type(error).__name__}: {error}")
