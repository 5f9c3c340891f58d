"""The time of a batch is that of this process's clock, if the database's clock agrees with it.

A clock that jumps ahead by hours would let vouchers expire for good and refuse spends that are not late. So a batch
waits while the clocks are more than a minute apart (domain page, section 1). The setting
`DRAWDOWN_CLOCK_OFFSET_SECONDS` moves both.
"""

from time import monotonic_ns
from typing import Final

import asyncpg
import structlog

from services.allocation import metrics
from shared.rules.instants import from_datetime
from shared.runtime.clock import Clock

LARGEST_DIFFERENCE_US: Final = 60_000_000
# An answer of the database is valid this long, provided that this process's wall and monotonic clocks move alike.
FRESH_US: Final = 100_000
LARGEST_STEP_US: Final = 1_000_000


class ClockGuard:
    """Compares this process's clock with the database's."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._log = structlog.get_logger()
        self.difference_us = 0
        self._agreed_at: tuple[int, int] | None = None  # by this machine's wall clock and monotonic clock, µs

    @property
    def problem(self) -> str | None:
        """Return why batches wait, as a sentence; None if the clocks agree."""
        if abs(self.difference_us) <= LARGEST_DIFFERENCE_US:
            return None
        direction = "ahead of" if self.difference_us > 0 else "behind"
        return (
            f"this machine's clock is {abs(self.difference_us) / 1e6:.0f} s {direction} the database's:"
            " batches wait until the clocks agree; correct the one that is wrong"
        )

    async def time_of_batch(self, connection: asyncpg.Connection) -> int | None:
        """Return the time of a batch that begins now, in µs since the Unix epoch; None if the clocks disagree.

        The database is asked unless it agreed less than `FRESH_US` ago and neither clock of this machine has jumped
        since.
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
            self._log.warning("the clocks agree again: batches continue")
