"""What the days of a budget have counted, for as long as a spend of such a day can still come.

Source: the domain page, section 4.2. A spend is too old after `DRAWDOWN_DEDUPLICATION_DAYS`, which is 365 at most.
What is remembered does not depend on that setting: a writer decides the same after it was changed, and so does a
replay, which does not know it.
"""

from array import array
from typing import Final

# More than the 365 days of the oldest spend, a day of the zone, and what is left of the first month.
KEPT_DAYS: Final = 400


class DayCounts:
    """An amount in micros for each day from `first` on: eight bytes a day, for daily budgets may remember 400."""

    __slots__ = ("amounts", "first")

    def __init__(self) -> None:
        self.first = 0
        self.amounts: array[int] | list[int] = array("q")

    @property
    def newest(self) -> int:
        """The last day that has an amount; the day before `first` where none has."""
        return self.first + len(self.amounts) - 1

    def of(self, day: int) -> int:
        """What the day has counted; 0 for a day that has no amount."""
        index = day - self.first
        return self.amounts[index] if 0 <= index < len(self.amounts) else 0

    def put(self, day: int, amount: int) -> None:
        """Remember the amount of a day. Days that are 400 days older than the newest are forgotten."""
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


# Those of all budgets that were counted on one day only, which many are.
NO_DAYS: Final = DayCounts()
