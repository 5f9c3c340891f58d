"""How often the event loop goes round: whether something lets others have their turn in between."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass


@dataclass(slots=True)
class Passes:
    """How many there have been."""

    count: int = 0


@contextlib.asynccontextmanager
async def counted_passes() -> AsyncIterator[Passes]:
    """Count them meanwhile."""
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
