"""The time of a batch: this process's clock, as long as the database's agrees with it.

A clock that jumps ahead by hours would let vouchers expire for good and refuse spends that are not late. So a batch
takes no time that is more than a minute from the database's (domain page, section 1), and waits until they agree.
`DRAWDOWN_CLOCK_OFFSET_SECONDS` moves both.
"""

from time import monotonic_ns
from typing import Final

import asyncpg
import structlog

from services.allocation import metrics
from shared.ledger.times import from_datetime
from shared.runtime.clock import Clock

LARGEST_DIFFERENCE_US: Final = 60_000_000
# How long an answer of the database holds, as long as this process's clocks, wall and monotonic, move alike.
FRESH_US: Final = 100_000
LARGEST_STEP_US: Final = 1_000_000


class ClockGuard:
    """Compares one process's clock with the database's."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._log = structlog.get_logger()
        self.difference_us = 0
        self._agreed_at: tuple[int, int] | None = None  # by both clocks

    @property
    def problem(self) -> str | None:
        """What keeps batches waiting, as a sentence; None if the clocks agree."""
        if abs(self.difference_us) <= LARGEST_DIFFERENCE_US:
            return None
        direction = "ahead of" if self.difference_us > 0 else "behind"
        return (
            f"this machine's clock is {abs(self.difference_us) / 1e6:.0f} s {direction} the database's:"
            " batches wait until they agree; set the clock that is wrong"
        )

    async def time_of_batch(self, connection: asyncpg.Connection) -> int | None:
        """Return the time of a batch that begins now, in µs since the Unix epoch; None if the clocks disagree.

        The database is asked unless it has just agreed. Whichever of this machine's clocks has jumped since, it is
        asked again.
        """
        now = self._clock.now_us()
        return now if self._has_just_agreed(now) else await self.ask(connection)

    def _has_just_agreed(self, now: int) -> bool:
        if self._agreed_at is None:
            return False
        wall_us, steady_us = self._agreed_at
        passed = monotonic_ns() // 1000 - steady_us
        return 0 <= passed < FRESH_US and abs(now - wall_us - passed) < LARGEST_STEP_US

    async def ask(self, connection: asyncpg.Connection) -> int | None:
        """Compare the clocks, and return the time or None like `time_of_batch`."""
        database_us = from_datetime(await connection.fetchval("SELECT clock_timestamp()")) + self._clock.offset_us
        now = self._clock.now_us()
        before = self.problem
        self.difference_us = now - database_us
        metrics.CLOCK_DIFFERENCE.set(self.difference_us / 1e6)
        self._tell(before)
        self._agreed_at = None if self.problem else (now, monotonic_ns() // 1000)
        return None if self.problem else now

    def _tell(self, before: str | None) -> None:
        if self.problem and not before:
            self._log.error("CLOCKS DISAGREE", problem=self.problem)
        elif before and not self.problem:
            self._log.warning("the clocks agree again: batches go on")
