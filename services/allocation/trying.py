"""Trying again what failed and has no end of its own, so that one part that fails ends no other."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import structlog

from services.allocation.failures import said
from shared.runtime.retries import LONGEST_OF_ONE_PART_SECONDS, GrowingPause
from shared.runtime.settings import BadSettingError

log = structlog.get_logger()


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
            lives += loop.time() - began > LONGEST_OF_ONE_PART_SECONDS
            seconds = pause.next(lives)
            log.error(f"{what} failed: it is tried again", again_in_seconds=seconds, error=said(error))
            await asyncio.sleep(seconds)
