"""Days and months of a time zone (domain page, sections 4.2 and 4.4)."""

from datetime import date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from tests.model.forms import EPOCH

MINUTE = timedelta(minutes=1)


def _us(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def _local(moment: datetime, zone: str) -> date:
    return moment.astimezone(ZoneInfo(zone)).date()


@lru_cache(maxsize=100_000)
def start_of_day(day: date, zone: str) -> int:
    """Return the first instant with this date in the zone. The search walks minute by minute."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone))
    moment = midnight.astimezone(EPOCH.tzinfo) - timedelta(hours=3)
    while _local(moment, zone) < day:
        moment += MINUTE
    return _us(moment)


def day_of(instant_us: int, zone: str) -> date:
    """Return the day that has begun last. If clocks go back over midnight, the new day goes on."""
    day = _local(EPOCH + timedelta(microseconds=instant_us), zone)
    tomorrow = day + timedelta(days=1)
    return tomorrow if start_of_day(tomorrow, zone) <= instant_us else day


def first_of_month(day: date) -> date:
    """Return the first day of the month of a day."""
    return day.replace(day=1)


def next_turnover(after_us: int, zone: str) -> int:
    """Return when the next day begins in the zone."""
    return start_of_day(day_of(after_us, zone) + timedelta(days=1), zone)
