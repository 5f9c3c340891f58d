"""Trying again what failed, with growing pauses, so that one part that fails ends no other."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import structlog

from services.allocation.failures import said
from shared.runtime.settings import BadSettingError

log = structlog.get_logger()

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 15.0


class GrowingPause:
    """Pauses between tries: each is twice as long as the one before, and short again once something has moved."""

    def __init__(self) -> None:
        self._seconds = FIRST_PAUSE_SECONDS
        self._mark: object = None

    def next(self, mark: object) -> float:
        """The next pause in seconds. `mark` is how far the work had got."""
        if mark != self._mark:
            self._mark, self._seconds = mark, FIRST_PAUSE_SECONDS
        seconds, self._seconds = self._seconds, min(2 * self._seconds, LONGEST_PAUSE_SECONDS)
        return seconds


async def again_and_again(what: str, attempt: Callable[[], Awaitable[Any]]) -> NoReturn:
    """Do something that has no end, again whenever it fails, until cancelled. Raises BadSettingError alone.

    Its pauses grow as long as it fails within the longest of them.
    """
    loop = asyncio.get_running_loop()
    pause, lives = GrowingPause(), 0
    while True:
        began = loop.time()
        try:
            await attempt()
        except BadSettingError:
            raise
        except Exception as error:
            lives += loop.time() - began > LONGEST_PAUSE_SECONDS
            seconds = pause.next(lives)
            log.error(f"{what} failed: it is tried again", again_in_seconds=seconds, error=said(error))
            await asyncio.sleep(seconds)
