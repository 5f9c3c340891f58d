"""Retries: bounded and with jitter for an unavailable server; without end for one part of the work that failed."""

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
    """Pauses between attempts. Each is twice as long as the one before; progress makes them short again."""

    def __init__(self) -> None:
        self._seconds = FIRST_PAUSE_SECONDS
        self._mark: object = None

    def next(self, mark: object) -> float:
        """Return the next pause in seconds, from 0.1 to 15. `mark` is the progress of the work: a change resets it."""
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
    """Call the action until it succeeds. Pauses double from 0.1 s to 5 s, and each is cut by up to a half at random.

    Args:
        action: called again for each attempt; its result is returned.
        what: the name of the server or thing that the log lines say is waited for.
        errors: the classes that mean "temporarily unavailable"; any other error is raised at once.
        patience_seconds: after this time the last error is raised.

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
                log.error("gave up waiting", what=what, attempts=attempt, error=_described(error))
                raise
            seconds = min(pause * random.uniform(0.5, 1), left)
            log.warning(
                "waiting", what=what, attempt=attempt, again_in_seconds=round(seconds, 2), error=_described(error)
            )
            await asyncio.sleep(seconds)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        else:
            if attempt > 1:
                log.info("available again", what=what, attempts=attempt)
            return result
    raise AssertionError("unreachable: patience ends first")


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
