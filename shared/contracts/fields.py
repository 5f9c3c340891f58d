"""The field types that every message shares: ids, amounts, UUIDs, times.

They check form only. What an amount or a time means is decided by the rules.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import Field

IDENTIFIER_PATTERN = r"^[A-Za-z0-9_.:-]{1,64}$"
AMOUNT_PATTERN = r"^(0|[1-9][0-9]{0,11})(\.[0-9]{1,6})?$"
UUID_PATTERN = r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"
# RFC 3339 section 5.6; the offset is not optional.
TIME_PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})$"
CURRENCY_PATTERN = r"^[A-Z]{3}$"

Identifier = Annotated[str, Field(pattern=IDENTIFIER_PATTERN)]
Amount = Annotated[str, Field(pattern=AMOUNT_PATTERN)]
Uuid = Annotated[str, Field(pattern=UUID_PATTERN)]
Time = Annotated[str, Field(pattern=TIME_PATTERN, max_length=64)]
Currency = Annotated[str, Field(pattern=CURRENCY_PATTERN)]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LONG_FRACTION = re.compile(r"(\.[0-9]{6})[0-9]+")


def parse_time(text: str) -> int:
    """Microseconds since the Unix epoch of an RFC 3339 time that matches `TIME_PATTERN`.

    Digits beyond microseconds are cut off. Raises ValueError for a time that no calendar has.
    """
    if len(text) > 26:
        text = _LONG_FRACTION.sub(r"\1", text)
    if text[-1] == "z":
        text = text.upper()
    since = datetime.fromisoformat(text) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def format_time(microseconds: int) -> str:
    """RFC 3339 in UTC with six decimal places: `2026-11-21T12:00:00.123000Z`."""
    moment = _EPOCH + timedelta(microseconds=microseconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if moment.year > 999 else moment.isoformat()


def parse_uuid(text: str) -> bytes:
    """The 16 bytes of a UUID that matches `UUID_PATTERN`; upper and lower case are the same value."""
    return bytes.fromhex(text.replace("-", ""))
