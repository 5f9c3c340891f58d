"""The clock of a process: UTC, plus `DRAWDOWN_CLOCK_OFFSET_SECONDS`."""

import time
from datetime import datetime

import structlog

from shared.rules.instants import to_datetime
from shared.runtime.settings import Settings


class Clock:
    """The only source of time for a service, so that a rehearsal can move it."""

    __slots__ = ("offset_us",)

    def __init__(self, settings: Settings) -> None:
        self.offset_us = round(settings.clock_offset_seconds * 1_000_000)

    def now_us(self) -> int:
        """Return the present time in microseconds since the Unix epoch."""
        return time.time_ns() // 1000 + self.offset_us

    def now(self) -> datetime:
        """Return the present time in UTC."""
        return to_datetime(self.now_us())

    def announce(self) -> None:
        """Log a warning if the clock is moved. Every service calls this at its start."""
        if self.offset_us:
            structlog.get_logger().warning(
                "THE CLOCK IS MOVED: this is a rehearsal or a test",
                offset_seconds=self.offset_us / 1_000_000,
                now=self.now().isoformat(),
            )
