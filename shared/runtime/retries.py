"""Trying again: a server that is away, bounded and with jitter; one part that failed, for as long as it takes."""

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
LONGEST_OF_ONE_PART_SECONDS = 15.0


class GrowingPause:
    """Pauses between tries: each is twice as long as the one before, and short again once something has moved."""

    def __init__(self) -> None:
        self._seconds = FIRST_PAUSE_SECONDS
        self._mark: object = None

    def next(self, mark: object) -> float:
        """The next pause in seconds, 0.1 to 15. `mark` is how far the work had got."""
        if mark != self._mark:
            self._mark, self._seconds = mark, FIRST_PAUSE_SECONDS
        seconds, self._seconds = self._seconds, min(2 * self._seconds, LONGEST_OF_ONE_PART_SECONDS)
        return seconds


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
