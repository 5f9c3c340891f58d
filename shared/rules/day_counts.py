"""The amounts that the days of a budget have counted, kept for as long as a spend of such a day can still arrive.

Source: the domain page, section 4.2. A spend is too old after `DRAWDOWN_DEDUPLICATION_DAYS`, which is 365 at most.
The days that are remembered do not depend on that setting: a writer decides the same after it was changed, and so does
a replay, which does not know it.
"""

from array import array
from typing import Final

# Enough for the 365 days of the oldest spend, a day of difference between zones, and the rest of the first month.
KEPT_DAYS: Final = 400


class DayCounts:
    """An amount in micros for each day from `first` on. Days are packed because a daily budget may keep 400 of them."""

    __slots__ = ("amounts", "first")

    def __init__(self) -> None:
        self.first = 0
        self.amounts: array[int] | list[int] = array("q")

    @property
    def newest(self) -> int:
        """Return the last day that has an amount, or the day before `first` if there is none."""
        return self.first + len(self.amounts) - 1

    def of(self, day: int) -> int:
        """Return the micros that the day has counted: 0 if it has no amount."""
        index = day - self.first
        return self.amounts[index] if 0 <= index < len(self.amounts) else 0

    def put(self, day: int, amount: int) -> None:
        """Remember the amount of a day, in micros. Days that are 400 days older than the newest are forgotten."""
        if day <= self.newest - KEPT_DAYS:
            return
        if not self.first <= day <= self.newest:
            self._reach(day)
        try:
            self.amounts[day - self.first] = amount
        except OverflowError:  # Sums of spend may outgrow 64 bits.
            self.amounts = list(self.amounts)
            self.amounts[day - self.first] = amount

    def drop_first(self) -> None:
        """Forget the oldest day."""
        del self.amounts[0]
        self.first += 1

    def _reach(self, day: int) -> None:
        if not self.amounts or day >= self.newest + KEPT_DAYS:
            del self.amounts[:]
            self.first = day
        while self.first > day:
            self.amounts.insert(0, 0)
            self.first -= 1
        self.amounts.extend([0] * (day - self.newest))
        while len(self.amounts) > KEPT_DAYS:
            self.drop_first()


# Shared by the many budgets that were counted on one day only. Nobody writes to it.
NO_DAYS: Final = DayCounts()
