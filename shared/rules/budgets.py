"""Budgets: what a period has spent, what room is left, which setting a late spend meets.

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

# A day this much older than one that was counted is closed for good, in every zone: a spend comes a day ahead at most.
OPEN_DAYS: Final = 5
# Those of all budgets that were counted in one month only. Nobody writes to it.
NO_MONTHS: Final[dict[int, int]] = {}
_since = itemgetter(0)


class Budget:
    """The present setting, those of past days, and what was billed.

    `total` is all that was ever billed: the one number that a spend changes, for each more would cost the hot path two
    misses of the processor's cache. What a period has spent is what came on top of the total `before` it. What was
    billed counts by the spend's own day: `before_day` and `before_month` belong to `day`, the day counted last. `days`
    and `months` (by their first day) have what the others had counted when they were left. `before_start` belongs to
    the custom budget, and `started_position` is the ledger position at which it began: it counts the spends after it.

    A closed period is remembered for 400 days, if its spend can still decide something: a day that ended under a daily
    setting, a month on a day of which a monthly setting held. Nothing else is ever asked for again, so what is
    forgotten, and when, decides nothing.
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
        """The setting from this day on, until another one is set."""
        self.mode = mode
        self.amount = amount
        oldest = max(0, bisect_right(self.history, day - KEPT_DAYS, key=_since) - 1)
        earlier = [setting for setting in self.history[oldest:] if setting[0] < day]
        self.history = [*earlier, (day, mode, amount)]

    def start_counting(self, instant: int, day: int, position: int) -> None:
        """A custom budget begins, or begins anew: it counts what arrives from now on."""
        self.before_start = self.total
        self.started_at = instant
        self.started_day = day
        self.started_position = position

    def setting(self, day: int, today: int) -> tuple[str, int | None]:
        """Mode and amount that hold a spend of `day`, today being `today`.

        A period that is still open in the present mode is held against the present setting, a closed day against
        the setting at its end; custom then leaves it uncapped (section 4.2).
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
        """How much a spend of that day may still be billed; None: no limit."""
        mode, amount = self.setting(day, today)
        return None if amount is None else max(0, amount - self.spent(mode, day))

    def spent(self, mode: str, day: int) -> int:
        """What was billed in the period of that day in the given mode."""
        if mode == DAILY:
            return self.total - self.before_day if day == self.day else self.days.of(day)
        if mode == MONTHLY:
            month = month_start(day)
            return self.total - self.before_month if month == month_start(self.day) else self.months.get(month, 0)
        return self.counted

    def count(self, day: int, billed: int) -> None:
        """What was billed (or, below zero, taken back) of a spend of that day."""
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
        """May what the day has spent be asked for again?"""
        return day >= closed_before or self._at_end_of(day)[0] == DAILY

    def _month_decides(self, first: int, closed_before: int) -> bool:
        """May what the month has spent be asked for again?"""
        if first < month_start(closed_before - KEPT_DAYS):
            return False
        return first >= month_start(closed_before) or self._was_monthly_in(first, month_start(first + 31))

    def _was_monthly_in(self, first: int, following: int) -> bool:
        """Did a monthly setting hold at the end of one of these days, before `following`?"""
        before = max(0, bisect_right(self.history, first, key=_since) - 1)
        by_then = bisect_left(self.history, following, key=_since)
        return any(mode == MONTHLY for _, mode, _ in self.history[before:by_then])

    @property
    def counted(self) -> int:
        """What the custom budget has counted since its start, or all that the campaign ever spent."""
        return self.total - self.before_start

    def period(self, day: int, today: int) -> int:
        """The first day of the period that counts a spend of that day."""
        mode, _ = self.setting(day, today)
        if mode == MONTHLY:
            return month_start(day)
        return self.started_day if mode == CUSTOM else day

    def exhausted(self, today: int) -> bool:
        """Is exactly nothing left today? That pauses (section 4.3)."""
        return self.amount is not None and self.spent(self.mode, today) >= self.amount


def count_for_account(budget: Budget, day: int, billed: int, charged_at: int) -> None:
    """Count for an account's budget.

    `charged_at` is the position of the spend: a custom budget counts the spends that arrived after its start, so a
    reversal shrinks the budgets that counted the spend and no others (section 4.5).
    """
    budget.count(day, billed)
    if budget.mode == CUSTOM and charged_at <= budget.started_position:
        budget.before_start += billed
