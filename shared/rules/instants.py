"""Instants: microseconds since the Unix epoch, as the rules count time, and Python's datetimes in UTC."""

from datetime import UTC, datetime, timedelta
from typing import Final

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)


def from_datetime(moment: datetime) -> int:
    """Return the microseconds since the Unix epoch."""
    return (moment - EPOCH) // MICROSECOND


def to_datetime(microseconds: int) -> datetime:
    """Return the time in UTC."""
    return EPOCH + timedelta(microseconds=microseconds)
