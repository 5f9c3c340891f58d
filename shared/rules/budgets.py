"""Budgets: what a period has spent, what room is left, which setting a late spend meets.

Source: the domain page, section 4. One class serves accounts (daily, monthly, custom, unlimited) and
campaigns (daily, lifetime, unlimited). Amounts are micros, days proleptic ordinals.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from shared.rules.calendar import month_start

UNLIMITED = "unlimited"
DAILY = "daily"
MONTHLY = "monthly"
CUSTOM = "custom"
LIFETIME = "lifetime"


# Shared by all budgets that were counted on one day only, which most are: asked after every spend.
_NO_DAYS: Mapping[int, int] = MappingProxyType({})


class Budget:
    """The present setting, those of past days, and what was billed.

    `total` is all that was ever billed: the one number that a spend changes, for each more would cost the hot path two
    misses of the processor's cache. What a period has spent is what came on top of the total `before` it. What was
    billed counts by the spend's own day: `before_day` and `before_month` belong to `day`, the day counted last; other
    days are in `days`, other months (by their first day) in `months`. `before_start` belongs to the custom budget, and
    `started_position` is the ledger position at which it began: it counts the spends after it.
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
        self.days: Mapping[int, int] = _NO_DAYS
        self.months: Mapping[int, int] = _NO_DAYS
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
        earlier = [setting for setting in self.history if setting[0] != day]
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
        for since, mode, amount in reversed(self.history):
            if since <= day:
                return (UNLIMITED, None) if mode == CUSTOM else (mode, amount)
        return UNLIMITED, None

    def room(self, day: int, today: int) -> int | None:
        """How much a spend of that day may still be billed; None: no limit."""
        mode, amount = self.setting(day, today)
        return None if amount is None else max(0, amount - self.spent(mode, day))

    def spent(self, mode: str, day: int) -> int:
        """What was billed in the period of that day in the given mode."""
        if mode == DAILY:
            return self.total - self.before_day if day == self.day else self.days.get(day, 0)
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
        days = {**self.days, self.day: self.total - self.before_day}
        months = {**self.months, month_start(self.day): self.total - self.before_month}
        self.day = day
        self.before_day = self.total - days.pop(day, 0)
        self.before_month = self.total - months.pop(month_start(day), 0)
        self.days, self.months = days, months

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

    def forget_before(self, day: int) -> None:
        """Drop days, and months, that no spend can belong to any more."""
        self.days = {key: spent for key, spent in self.days.items() if key >= day}
        self.months = {key: spent for key, spent in self.months.items() if key >= month_start(day)}
        while len(self.history) > 1 and self.history[1][0] < day:
            self.history = self.history[1:]


def count_for_account(budget: Budget, day: int, billed: int, charged_at: int) -> None:
    """Count for an account's budget.

    `charged_at` is the position of the spend: a custom budget counts the spends that arrived after its start, so a
    reversal shrinks the budgets that counted the spend and no others (section 4.5).
    """
    budget.count(day, billed)
    if budget.mode == CUSTOM and charged_at <= budget.started_position:
        budget.before_start += billed
