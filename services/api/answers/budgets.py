"""Makes the answers of budgets, with their current period by the account's calendar (domain page, section 4)."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from services.api.answers.calendars import calendar
from services.api.answers.models import money
from shared.contracts.fields import format_time
from shared.rules.calendar import month_start
from shared.rules.instants import from_datetime
from shared.rules.setting_budgets import CHANGES_PER_DAY

_LONGEST_MONTH_DAYS = 31


@dataclass(frozen=True, slots=True)
class Today:
    """The present day in an ad account's time zone."""

    zone_name: str
    day: int

    @classmethod
    def at(cls, zone_name: str, now_us: int) -> "Today":
        """Return the day of this zone that an instant belongs to. Raise ApiError (409) for an unknown zone."""
        return cls(zone_name, calendar(zone_name).day(now_us))

    def period(self, mode: str) -> tuple[date, date] | None:
        """Return the first and last day of the current period of a daily or monthly budget; None for other modes."""
        if mode == "daily":
            return date.fromordinal(self.day), date.fromordinal(self.day)
        if mode == "monthly":
            first = month_start(self.day)
            last = month_start(first + _LONGEST_MONTH_DAYS) - 1
            return date.fromordinal(first), date.fromordinal(last)
        return None

    def start(self, day: date) -> str:
        """Return the first instant of a day of this zone, in RFC 3339."""
        return format_time(calendar(self.zone_name).start(day.toordinal()))


def budget_answer(setting: Mapping[str, Any], today: Today, spent_in_period: int) -> dict[str, Any]:
    """Return the answer of a budget; everything but the mode is null if it is unlimited.

    Args:
        setting: `mode`, `amount`, and for a custom budget `started_at`.
        today: the present day in the ad account's zone.
        spent_in_period: what the current period has counted, in micros.

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
    """Return how many changes were made and remain on the account's day (domain page, section 4.6).

    `changes` were made on `day`; they no longer count on another day.
    """
    changes_today = (changes or 0) if day is not None and day.toordinal() == today.day else 0
    return {"changes_today": changes_today, "changes_remaining": max(0, CHANGES_PER_DAY - changes_today)}


def _period_start(setting: Mapping[str, Any], today: Today) -> str | None:
    period = today.period(setting["mode"])
    if period is not None:
        return today.start(period[0])
    started_at = setting.get("started_at")
    return None if started_at is None else format_time(from_datetime(started_at))
