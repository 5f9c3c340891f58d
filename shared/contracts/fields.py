"""The field types that all messages share: ids, amounts, UUIDs, times, days.

They check form only. The rules decide what an amount or a time means.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import Field

from shared.contracts.patterns import DAY
from shared.rules.instants import EPOCH, MICROSECOND, from_datetime, to_datetime

IDENTIFIER_PATTERN = r"^[A-Za-z0-9_.:-]{1,64}$"
AMOUNT_PATTERN = r"^(0|[1-9][0-9]{0,11})(\.[0-9]{1,6})?$"
UUID_PATTERN = r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"
# RFC 3339 section 5.6; the offset is not optional. `parse_time` refuses texts that match and still name no time: the
# 30th of February, or a moment outside the years 1 to 9999 in UTC.
TIME_PATTERN = (
    r"^(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"[Tt]([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]+)?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
)
LONGEST_TIME = 64
CURRENCY_PATTERN = r"^[A-Z]{3}$"

Identifier = Annotated[str, Field(pattern=IDENTIFIER_PATTERN)]
Amount = Annotated[str, Field(pattern=AMOUNT_PATTERN)]
Uuid = Annotated[str, Field(pattern=UUID_PATTERN)]
Time = Annotated[str, Field(pattern=TIME_PATTERN, max_length=LONGEST_TIME)]
Day = Annotated[str, Field(pattern=DAY, examples=["2026-11-01"])]
Currency = Annotated[str, Field(pattern=CURRENCY_PATTERN)]

_from_iso_format = datetime.fromisoformat
_FIRST_US = from_datetime(datetime.min.replace(tzinfo=UTC))
_LAST_US = from_datetime(datetime.max.replace(tzinfo=UTC))
_LEAP_SECOND = re.compile(r"^(.{16}):60(?:\.[0-9]+)?")
_IS_TIME = re.compile(TIME_PATTERN, re.ASCII).fullmatch
_IS_UUID = re.compile(UUID_PATTERN, re.ASCII).fullmatch


def is_time(value: Any) -> bool:
    """Return whether the value is a string in the form of `Time`."""
    return isinstance(value, str) and len(value) <= LONGEST_TIME and _IS_TIME(value) is not None


def parse_time(text: str) -> int:
    """Return the microseconds since the Unix epoch of an RFC 3339 time that matches `TIME_PATTERN`.

    Digits beyond microseconds are cut off. A leap second (`:60`, with any fraction) is the first instant of the next
    minute. Raises ValueError for a time that does not exist, or is outside the years 1 to 9999 in UTC.
    """
    if "z" in text:
        text = text.upper()
    try:
        since = _from_iso_format(text) - EPOCH
    except (ValueError, TypeError):
        since = _since_epoch_of_leap_second(text)
    microseconds = since // MICROSECOND
    if _FIRST_US <= microseconds <= _LAST_US:
        return microseconds
    raise ValueError(f"{text} is outside the years 1 to 9999")


def _since_epoch_of_leap_second(text: str) -> timedelta:
    second_before, leaps = _LEAP_SECOND.subn(r"\1:59", text)
    try:
        if leaps:
            return datetime.fromisoformat(second_before) - EPOCH + timedelta(seconds=1)
    except (ValueError, TypeError):
        pass
    raise ValueError(f"{text} is a time that does not exist")


def format_time(microseconds: int) -> str:
    """Format microseconds since the Unix epoch as RFC 3339 in UTC, with six decimals: `2026-11-21T12:00:00.123000Z`."""
    moment = to_datetime(microseconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if moment.year > 999 else moment.isoformat()


def parse_uuid(text: str) -> bytes:
    """Return the 16 bytes of a UUID that matches `UUID_PATTERN`. Upper and lower case give the same bytes."""
    return bytes.fromhex(text.replace("-", ""))


def is_uuid(value: Any) -> bool:
    """Return whether the value is a string in the form of `Uuid`."""
    return isinstance(value, str) and _IS_UUID(value) is not None
