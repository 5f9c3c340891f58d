"""Budgets: the spend of a period, the room that is left, and the setting that holds for a late spend.

Source: the domain page, section 4. One class serves accounts (daily, monthly, custom, unlimited) and
campaigns (daily, lifetime, unlimited). Amounts are micros, days proleptic ordinals.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import itemgetter
from typing import Final

from shared.rules.calendar import month_start
from shared.rules.day_counts import KEPT_DAYS, NO_DAYS, DayCounts

UNLIMITED = "unlimited"
DAILY = "daily"
MONTHLY = "monthly"
CUSTOM = "custom"
LIFETIME = "lifetime"

# A day is closed for good, in every zone, once a day this many days later was counted: a spend is at most a day ahead.
OPEN_DAYS: Final = 5
# Shared by all budgets that were counted in one month only. Nobody writes to it.
NO_MONTHS: Final[dict[int, int]] = {}
_since = itemgetter(0)


class Budget:
    """The present setting, the settings of past days, and what was billed, in micros.

    `total` is everything that was ever billed. It is the only number that most spends update, because each further one
    would cost two cache misses per spend. A period has spent `total` minus the total before the period: `before_day`
    and `before_month` belong to `day`, which is the day counted last, and `before_start` belongs to the custom budget.
    A spend counts for its own day, so a late spend turns `day` back. `days` and `months` (by their first day) hold what
    the other periods had spent when `day` left them. An example, in currency units:

    ```
                                                total  before_day  before_month  before_start
    30 March: 30 are billed                        30           0             0             0
    31 March: 20 are billed                        50          30             0             0
              a custom budget starts               50          30             0            50
              5 are billed                         55          30             0            50
     1 April: 10 are billed                        65          55            55            50
              4 are billed, late, for 31 March     69          40            10            50
    ```

    After 1 April's 10 the day has spent 65 - 55 = 10, the month 65 - 55 = 10, and the custom budget 65 - 50 = 15.
    `days` holds 30 for 30 March and 25 for 31 March, and `months` holds 55 for March. The late spend takes these up
    again: `before_day` becomes 65 - 25 = 40 and `before_month` becomes 65 - 55 = 10. Afterwards 31 March has spent
    69 - 40 = 29, March 69 - 10 = 59, and the custom budget 69 - 50 = 19.

    `started_position` is the ledger position at which the custom budget began: it counts the spends after it.
    `started_at` is that instant in µs, `started_day` its day.

    The budget remembers a closed period for 400 days if its spend can still decide something: a day that ended under a
    daily setting, or a month in which a monthly setting held at the end of some day. No other period is ever read
    again, so no decision depends on what was forgotten, or when.
    """

    __slots__ = (
        "amount",
        "before_day",
        "before_month",
        "before_start",
        "day",
        "days",
        "history",
        "mode",
        "months",
        "started_at",
        "started_day",
        "started_position",
        "total",
    )

    def __init__(self) -> None:
        self.mode = UNLIMITED
        self.amount: int | None = None
        self.history: Sequence[tuple[int, str, int | None]] = ()
        self.day = 1
        self.days = NO_DAYS
        self.months = NO_MONTHS
        self.total = 0
        self.before_day = 0
        self.before_month = 0
        self.before_start = 0
        self.started_at: int | None = None
        self.started_day = 0
        self.started_position = 0

    def set(self, day: int, mode: str, amount: int | None) -> None:
        """Set the mode and the amount (micros; None: unlimited) that hold from this day on."""
        self.mode = mode
        self.amount = amount
        oldest = max(0, bisect_right(self.history, day - KEPT_DAYS, key=_since) - 1)
        earlier = [setting for setting in self.history[oldest:] if setting[0] < day]
        self.history = [*earlier, (day, mode, amount)]

    def start_counting(self, instant: int, day: int, position: int) -> None:
        """Start a custom budget, or start it again, at this instant (µs), day and position. Later spends count."""
        self.before_start = self.total
        self.started_at = instant
        self.started_day = day
        self.started_position = position

    def setting(self, day: int, today: int) -> tuple[str, int | None]:
        """Return the mode and amount (None: no limit) that apply to a spend of `day` when it is `today`.

        If the period is still open in the present mode, the present setting applies. To a closed day the setting at its
        end applies, and if that is a custom budget, the day has no limit (section 4.2).
        """
        if self.mode in (CUSTOM, LIFETIME) or day >= today:
            return self.mode, self.amount
        if self.mode == MONTHLY and month_start(day) == month_start(today):
            return self.mode, self.amount
        mode, amount = self._at_end_of(day)
        return (UNLIMITED, None) if mode == CUSTOM else (mode, amount)

    def _at_end_of(self, day: int) -> tuple[str, int | None]:
        by_then = bisect_right(self.history, day, key=_since)
        return self.history[by_then - 1][1:] if by_then else (UNLIMITED, None)

    def room(self, day: int, today: int) -> int | None:
        """Return how many micros of a spend of that day may still be billed. None means no limit."""
        mode, amount = self.setting(day, today)
        return None if amount is None else max(0, amount - self.spent(mode, day))

    def spent(self, mode: str, day: int) -> int:
        """Return how many micros were billed in the period of that day in the given mode."""
        if mode == DAILY:
            return self.total - self.before_day if day == self.day else self.days.of(day)
        if mode == MONTHLY:
            month = month_start(day)
            return self.total - self.before_month if month == month_start(self.day) else self.months.get(month, 0)
        return self.counted

    def count(self, day: int, billed: int) -> None:
        """Count the micros that were billed of a spend of that day, or taken back if below zero."""
        if day != self.day:
            self._turn_to(day)
        self.total += billed

    def _turn_to(self, day: int) -> None:
        newest = max(self.day, self.days.newest)
        closed_before = max(day, newest) - OPEN_DAYS
        if self._day_decides(self.day, closed_before):
            self._remember_day()
        if day > newest:
            self._forget_days(closed_before)
        month = month_start(day)
        if month != month_start(self.day):
            self._turn_to_month(month, closed_before)
        self.day = day
        self.before_day = self.total - self.days.of(day)

    def _remember_day(self) -> None:
        if self.days is NO_DAYS:
            self.days = DayCounts()
        self.days.put(self.day, self.total - self.before_day)

    def _forget_days(self, closed_before: int) -> None:
        days = self.days
        while days.amounts and not self._day_decides(days.first, closed_before):
            days.drop_first()

    def _turn_to_month(self, month: int, closed_before: int) -> None:
        left = month_start(self.day)
        if month not in self.months:
            kept = {first: spent for first, spent in self.months.items() if self._month_decides(first, closed_before)}
            self.months = kept or NO_MONTHS
        if self._month_decides(left, closed_before):
            if self.months is NO_MONTHS:
                self.months = {}
            self.months[left] = self.total - self.before_month
        self.before_month = self.total - self.months.get(month, 0)

    def _day_decides(self, day: int, closed_before: int) -> bool:
        """Return whether the spend of this day may be needed again."""
        return day >= closed_before or self._at_end_of(day)[0] == DAILY

    def _month_decides(self, first: int, closed_before: int) -> bool:
        """Return whether the spend of this month may be needed again."""
        if first < month_start(closed_before - KEPT_DAYS):
            return False
        return first >= month_start(closed_before) or self._was_monthly_in(first, month_start(first + 31))

    def _was_monthly_in(self, first: int, following: int) -> bool:
        """Return whether a monthly setting held at the end of a day from `first` on and before `following`."""
        before = max(0, bisect_right(self.history, first, key=_since) - 1)
        by_then = bisect_left(self.history, following, key=_since)
        return any(mode == MONTHLY for _, mode, _ in self.history[before:by_then])

    @property
    def counted(self) -> int:
        """Return the micros that a custom budget has counted since its start, or all that a campaign ever spent."""
        return self.total - self.before_start

    def period(self, day: int, today: int) -> int:
        """Return the first day of the period that a spend of that day counts for."""
        mode, _ = self.setting(day, today)
        if mode == MONTHLY:
            return month_start(day)
        return self.started_day if mode == CUSTOM else day

    def exhausted(self, today: int) -> bool:
        """Return whether nothing is left today. That is a cause of a pause (section 4.3)."""
        return self.amount is not None and self.spent(self.mode, today) >= self.amount


def count_for_account(budget: Budget, day: int, billed: int, charged_at: int) -> None:
    """Count `billed` micros (below zero: taken back) for an account's budget.

    `charged_at` is the position of the spend. A custom budget counts the spends that arrived after its start, so a
    reversal reduces only the budgets that counted the spend (section 4.5).
    """
    budget.count(day, billed)
    if budget.mode == CUSTOM and charged_at <= budget.started_position:
        budget.before_start += billed
