"""Whether a server can be reached: when it last answered."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from time import monotonic

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

# After a longer silence a server counts as unavailable. On a loaded machine an answer may take a second or two.
LONGEST_SILENCE_SECONDS = 4.0
PROBE_INTERVAL_SECONDS = 1.0
# A connection without an answer for this long is given up. A disk may stall for ten seconds.
LOST_SECONDS = 15.0


class Reachability:
    """Remembers when a server last answered.

    Args:
        server: the server's name, as the problem's sentence begins: "the database".

    """

    def __init__(self, server: str) -> None:
        self._server = server
        self._has_answered = False
        self._since = monotonic()

    def answered(self) -> None:
        """Record that the server has answered just now."""
        self._has_answered = True
        self._since = monotonic()

    @property
    def problem(self) -> str | None:
        """Return a sentence that says what is wrong with the server; None while it answers."""
        silence = monotonic() - self._since
        if not self._has_answered:
            return f"{self._server} has not answered yet"
        return f"{self._server} has not answered for {silence:.0f} s" if silence > LONGEST_SILENCE_SECONDS else None


async def watch_reachability(server: Reachability, probe: Callable[[], Awaitable[object]]) -> None:
    """Probe a server over one connection, every second, until that fails.

    Raises what the probe raises, and TimeoutError if it has no answer within 15 s.
    """
    while True:
        async with asyncio.timeout(LOST_SECONDS):
            await probe()
        server.answered()
        await asyncio.sleep(PROBE_INTERVAL_SECONDS)


async def watch_broker_reachability(server: Reachability, producer: AIOKafkaProducer) -> None:
    """Probe the broker every second until cancelled, even while it is unavailable, because the producer reconnects."""
    while True:
        with contextlib.suppress(KafkaError, OSError, TimeoutError):
            await watch_reachability(server, producer.client.fetch_all_metadata)
        await asyncio.sleep(PROBE_INTERVAL_SECONDS)
