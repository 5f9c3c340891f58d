"""Restarts a permanent task after each failure, so that the other tasks of the process continue."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import structlog

from services.allocation.failures import describe
from shared.runtime.retries import LONGEST_OF_ONE_PART_SECONDS, GrowingPause
from shared.runtime.settings import BadSettingError
from shared.runtime.stopping import is_asked_to_end

log = structlog.get_logger()


async def retry_forever(what: str, attempt: Callable[[], Awaitable[Any]]) -> NoReturn:
    """Run `attempt`, which has no end, again after each failure, until cancelled. Raises only BadSettingError.

    The pauses grow until it has run for longer than the longest of them. `what` is its name in the log.
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
            if is_asked_to_end():
                raise asyncio.CancelledError from error
            lives += loop.time() - began > LONGEST_OF_ONE_PART_SECONDS
            seconds = pause.next(lives)
            log.error(f"{what} failed: it is tried again", again_in_seconds=seconds, error=describe(error))
            await asyncio.sleep(seconds)
