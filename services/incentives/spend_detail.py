"""The days that spend detail has data for: those that ended two days ago or earlier (domain page, section 7.3)."""

from typing import Final

from services.incentives.deals import Deal

DAYS_LATE: Final = 2


def last_day(deal: Deal, now_us: int) -> int:
    """Return the last day with data in the deal's time zone. `now_us` is in µs since the Unix epoch."""
    return deal.calendar.day(now_us) - DAYS_LATE


def days_with_data(deal: Deal, first_day: int, last_day: int, until: int) -> range:
    """Return the days from `first_day` to `last_day` that belong to the deal and are not after `until`."""
    return range(max(deal.period.first_day, first_day), min(deal.period.last_day, last_day, until) + 1)
