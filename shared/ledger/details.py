"""An entry's details as they are shown: inside the ledger amounts are micros and times microseconds."""

from typing import Any, Final

from shared.contracts import strict_json
from shared.contracts.fields import format_time
from shared.rules.money import format_micros
from shared.rules.vocabulary import DELIVERY_KINDS

_AMOUNTS: Final = frozenset({"amount", "spent"})
_TIMES: Final = frozenset({"started_at", "spend_occurred_at"})


def shown_details(kept: str | None) -> dict[str, Any] | None:
    """The details with amounts and times as the contracts have them; None where an entry has none.

    Raises ValueError for what cannot be read: the database takes any JSON, the rules write none of the kind.
    """
    if kept is None:
        return None
    details = strict_json.read(kept.encode())
    if not isinstance(details, dict):
        raise ValueError("they are no object")  # noqa: TRY004 - nobody has called this with a wrong type
    return {name: _shown(name, value) for name, value in details.items()}


def shown_causes(kind: str, details: dict[str, Any] | None) -> Any:
    """The causes after a pause or a resume, by its details; None of other entries."""
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
