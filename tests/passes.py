"""Counts iterations of the event loop, to test that some work yields to other tasks."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass


@dataclass(slots=True)
class Passes:
    """The number of iterations so far."""

    count: int = 0


@contextlib.asynccontextmanager
async def counted_passes() -> AsyncIterator[Passes]:
    """Count the iterations of the event loop while the block runs."""
    passes = Passes()

    async def count() -> None:
        while True:
            passes.count += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    try:
        yield passes
    finally:
        counting.cancel()
