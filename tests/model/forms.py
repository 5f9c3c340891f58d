"""The form of amounts, times, ids and events (contracts page)."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

AMOUNT = re.compile(r"(0|[1-9][0-9]{0,11})(\.[0-9]{1,6})?", re.ASCII)
IDENTIFIER = re.compile(r"[A-Za-z0-9_.:-]{1,64}", re.ASCII)
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)
CURRENCY = re.compile(r"[A-Z]{3}", re.ASCII)
TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)",
    re.ASCII | re.IGNORECASE,
)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def micros(amount: str) -> int:
    """Return an amount in micros: `"12.5"` → 12_500_000."""
    whole, _, fraction = amount.partition(".")
    return int(whole) * 1_000_000 + int(fraction.ljust(6, "0"))


def money(amount_micros: int) -> str:
    """Return micros as an amount: 12_500_000 → `"12.500000"`."""
    sign = "-" if amount_micros < 0 else ""
    whole, fraction = divmod(abs(amount_micros), 1_000_000)
    return f"{sign}{whole}.{fraction:06d}"


def instant(time: str) -> int:
    """Return a time in microseconds since the Unix epoch. Digits beyond microseconds are cut off."""
    match = TIME.fullmatch(time)
    if match is None:
        raise ValueError(time)
    date, clock, fraction, offset = match.groups()
    base = datetime.fromisoformat(f"{date}T{clock}{offset.upper()}")
    seconds = (base - EPOCH) // timedelta(seconds=1)
    return seconds * 1_000_000 + int(((fraction or ".0")[1:7]).ljust(6, "0"))


def rfc3339(instant_us: int) -> str:
    """Return the instant in UTC, with six decimal places."""
    return (EPOCH + timedelta(microseconds=instant_us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_time(value: object) -> bool:
    try:
        return isinstance(value, str) and instant(value) is not None
    except (ValueError, OverflowError):
        return False


def is_well_formed(event: dict[str, Any]) -> bool:
    """Return whether an event of `spend.events` passes every check of form. Unknown fields are ignored."""
    fields = {
        "event_id": UUID,
        "business_center_id": IDENTIFIER,
        "ad_account_id": IDENTIFIER,
        "campaign_id": IDENTIFIER,
        "amount": AMOUNT,
        "currency": CURRENCY,
    }
    if event.get("type") == "reversal":
        fields["reverses"] = UUID
    elif event.get("type") != "spend":
        return False
    formed = all(_matches(pattern, event.get(name)) for name, pattern in fields.items())
    return formed and _is_time(event.get("occurred_at")) and micros(event["amount"]) > 0
