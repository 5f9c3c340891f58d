"""A budget's current period, by the account's calendar and now (domain page, section 4)."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from services.api.models import microseconds, money
from shared.contracts.fields import format_time
from shared.contracts.zones import zone
from shared.rules.calendar import month_start
from shared.rules.setting_budgets import CHANGES_PER_DAY

_LONGEST_MONTH_DAYS = 31


@dataclass(frozen=True, slots=True)
class Today:
    """The day it is in an ad account's zone."""

    zone_name: str
    day: int

    @classmethod
    def at(cls, zone_name: str, now_us: int) -> "Today":
        """The day that an instant belongs to."""
        return cls(zone_name, zone(zone_name).day(now_us))

    def period(self, mode: str) -> tuple[date, date] | None:
        """First and last day of the current period of a daily or monthly budget; None for other modes."""
        if mode == "daily":
            return date.fromordinal(self.day), date.fromordinal(self.day)
        if mode == "monthly":
            first = month_start(self.day)
            last = month_start(first + _LONGEST_MONTH_DAYS) - 1
            return date.fromordinal(first), date.fromordinal(last)
        return None

    def start(self, day: date) -> str:
        """The first instant of a day of this zone, RFC 3339."""
        return format_time(zone(self.zone_name).start(day.toordinal()))


def budget_answer(setting: Mapping[str, Any], today: Today, spent_in_period: int) -> dict[str, Any]:
    """`mode`, `amount`, `spent`, `remaining`, `period_start`; unlimited: all but the mode null.

    Args:
        setting: `mode`, `amount`, and for a custom budget `started_at`.
        today: the ad account's day.
        spent_in_period: micros that the current period has counted.

    """
    mode = setting["mode"] or "unlimited"
    if mode == "unlimited":
        return {"mode": mode, "amount": None, "spent": None, "remaining": None, "period_start": None}
    amount = int(setting["amount"])
    return {
        "mode": mode,
        "amount": money(amount),
        "spent": money(spent_in_period),
        "remaining": money(max(0, amount - spent_in_period)),
        "period_start": _period_start(setting, today),
    }


def changes_answer(day: date | None, changes: int | None, today: Today) -> dict[str, int]:
    """Changes count on the account's day on which they were made, and no longer."""
    changes_today = (changes or 0) if day is not None and day.toordinal() == today.day else 0
    return {"changes_today": changes_today, "changes_remaining": max(0, CHANGES_PER_DAY - changes_today)}


def _period_start(setting: Mapping[str, Any], today: Today) -> str | None:
    period = today.period(setting["mode"])
    if period is not None:
        return today.start(period[0])
    started_at = setting.get("started_at")
    return None if started_at is None else format_time(microseconds(started_at))
