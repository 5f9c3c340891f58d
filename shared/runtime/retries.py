"""Waiting for a server that is away: bounded, with jitter, and never silently."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

T = TypeVar("T")

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
PATIENCE_SECONDS = 60.0


async def with_retries(
    action: Callable[[], Awaitable[T]],
    *,
    what: str,
    errors: tuple[type[BaseException], ...],
    patience_seconds: float = PATIENCE_SECONDS,
) -> T:
    """Try until it succeeds, the pauses doubling from 0.1 s to 5 s, each cut by up to a half at random.

    Args:
        action: what to try; called anew each time.
        what: what is waited for, as the log lines name it.
        errors: those that mean "away for now"; any other is raised at once.
        patience_seconds: after which the last error is raised.

    """
    log = structlog.get_logger()
    give_up_at = time.monotonic() + patience_seconds
    pause = FIRST_PAUSE_SECONDS
    for attempt in range(1, 1_000_000):
        try:
            result = await action()
        except errors as error:
            left = give_up_at - time.monotonic()
            if left <= 0:
                log.error("gave up waiting", what=what, attempts=attempt, error=_said(error))
                raise
            seconds = min(pause * random.uniform(0.5, 1), left)
            log.warning("waiting", what=what, attempt=attempt, again_in_seconds=round(seconds, 2), error=_said(error))
            await asyncio.sleep(seconds)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        else:
            if attempt > 1:
                log.info("there again", what=what, attempts=attempt)
            return result
    raise AssertionError("unreachable: patience ends first")


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
