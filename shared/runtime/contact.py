"""Staying in touch with the servers: when each answered last."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from time import monotonic

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

# A server that was silent for longer is away: a loaded machine may well make it wait for a second or two.
MOMENT_SECONDS = 4.0
ASK_SECONDS = 1.0  # between two questions to a server
LOST_SECONDS = 15.0  # without an answer, until a connection is given up for lost: a disk may stall for ten


class Contact:
    """When a server answered last."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._met = False
        self._since = monotonic()

    def answered(self) -> None:
        """It did, just now."""
        self._met = True
        self._since = monotonic()

    @property
    def problem(self) -> str | None:
        """What is wrong with it, if anything is."""
        silence = monotonic() - self._since
        if not self._met:
            return f"{self._server} has not answered yet"
        return f"{self._server} has not answered for {silence:.0f} s" if silence > MOMENT_SECONDS else None


async def keep_in_touch(contact: Contact, ask: Callable[[], Awaitable[object]]) -> None:
    """Ask a server again and again over a connection. Raises what the asking does; TimeoutError when it is lost."""
    while True:
        async with asyncio.timeout(LOST_SECONDS):
            await ask()
        contact.answered()
        await asyncio.sleep(ASK_SECONDS)


async def keep_in_touch_with_broker(contact: Contact, producer: AIOKafkaProducer) -> None:
    """Ask the broker again and again; one that is away is asked on, for the producer connects anew by itself."""
    while True:
        with contextlib.suppress(KafkaError, OSError, TimeoutError):
            await keep_in_touch(contact, producer.client.fetch_all_metadata)
        await asyncio.sleep(ASK_SECONDS)
