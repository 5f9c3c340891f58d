"""An entry's details in the form of the contracts. The ledger keeps amounts as micros and times as microseconds."""

from typing import Any, Final

from shared.contracts import strict_json
from shared.contracts.fields import format_time
from shared.rules.money import format_micros
from shared.rules.vocabulary import DELIVERY_KINDS

_AMOUNTS: Final = frozenset({"amount", "spent"})
_TIMES: Final = frozenset({"started_at", "spend_occurred_at"})


def shown_details(kept: str | None) -> dict[str, Any] | None:
    """Return the details with amounts and times in the form of the contracts; None if an entry has none.

    Raise ValueError if they are unreadable: the rules write no such details, but the database accepts any JSON.
    """
    if kept is None:
        return None
    details = strict_json.read(kept.encode())
    if not isinstance(details, dict):
        raise ValueError("they are not an object")  # noqa: TRY004 - the content is wrong, not an argument's type
    return {name: _shown(name, value) for name, value in details.items()}


def shown_causes(kind: str, details: dict[str, Any] | None) -> Any:
    """Return the causes that hold after a pause or resume, from its details; None for other kinds."""
    return details.get("causes") if details and kind in DELIVERY_KINDS else None


def _shown(name: str, value: Any) -> Any:
    if not isinstance(value, int):
        return value
    if name in _AMOUNTS:
        return format_micros(value)
    return _time(value) if name in _TIMES else value


def _time(moment_us: int) -> str:
    try:
        return format_time(moment_us)
    except OverflowError as error:
        raise ValueError(f"a time is {moment_us} µs") from error
