"""The form in which a budget is kept outside memory.

The rows of campaigns that rest are kept for years. They hold the fields that differ from a new budget, by name, so a
renamed field must be read by both names. A snapshot holds the values in order, because a start loads a hundred
thousand.
"""

from array import array
from collections.abc import Callable
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import Any, Final

from shared.rules.budgets import NO_MONTHS, Budget
from shared.rules.day_counts import NO_DAYS, DayCounts


@lru_cache(maxsize=4096)
def _one_day(day: int) -> int:
    """Return the same object for equal days, so that comparing days on the hot path mostly stays in cache."""
    return day


def _dump_days(days: DayCounts) -> Any:
    return [days.first, list(days.amounts)] if days.amounts else None


def _load_days(dumped: Any) -> DayCounts:
    if dumped is None:
        return NO_DAYS
    days = DayCounts()
    days.first, amounts = dumped
    try:
        days.amounts = array("q", amounts)
    except OverflowError:
        days.amounts = amounts
    return days


_DUMP: Final[dict[str, Callable[[Any], Any]]] = {
    "days": _dump_days,
    "months": lambda months: list(months.items()),
    "history": list,
}
_LOAD: Final[dict[str, Callable[[Any], Any]]] = {
    "day": _one_day,
    "days": _load_days,
    "months": lambda pairs: dict(pairs) or NO_MONTHS,
    "history": lambda settings: [tuple(setting) for setting in settings] or (),
}


def _is_number(value: Any) -> bool:
    return type(value) is int


def _is_number_or_none(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_setting(day: Any, mode: Any, amount: Any) -> bool:
    return _is_number(day) and type(mode) is str and _is_number_or_none(amount)


# How a field is checked. Fields that are not listed are numbers.
_IS: Final[dict[str, Callable[[Any], bool]]] = {
    "amount": _is_number_or_none,
    "days": lambda days: all(map(_is_number, [days[0], *days[1]])),
    "history": lambda settings: all(_is_setting(*setting) for setting in settings),
    "mode": lambda mode: type(mode) is str,
    "months": lambda months: all(map(_is_number, chain(*months))),
    "started_at": _is_number_or_none,
}
FIELDS: Final[tuple[str, ...]] = Budget.__slots__
_values = attrgetter(*FIELDS)


_DUMP_AT: Final = [(FIELDS.index(name), dump) for name, dump in _DUMP.items()]


def _row(budget: Budget) -> list[Any]:
    row = list(_values(budget))
    for index, dump in _DUMP_AT:
        row[index] = dump(row[index])
    return row


_NEW: Final = _row(Budget())


def dump_budget(budget: Budget) -> dict[str, Any]:
    """Return the fields that differ from a new budget, by name. Most budgets have few."""
    return {name: value for name, value, new in zip(FIELDS, _row(budget), _NEW, strict=True) if value != new}


def budget_row(budget: Budget) -> list[Any] | None:
    """Return the values in the order of `FIELDS`, or None for a budget that is as new."""
    row = _row(budget)
    return None if row == _NEW else row


def budget_of(row: list[Any] | None) -> Budget:
    """Return the budget of a row that `budget_row` made."""
    budget = Budget()
    if row is not None:
        (
            budget.amount,
            budget.before_day,
            budget.before_month,
            budget.before_start,
            day,
            days,
            history,
            budget.mode,
            months,
            budget.started_at,
            budget.started_day,
            budget.started_position,
            budget.total,
        ) = row
        budget.day = _one_day(day)
        if days is not None:
            budget.days = _load_days(days)
        if history:
            budget.history = [tuple(setting) for setting in history]
        if months:
            budget.months = dict(months)
    return budget


def load_budget(dumped: dict[str, Any]) -> Budget:
    """Return the budget that `dump_budget` wrote. Raise AttributeError for a field that no budget has."""
    budget = Budget()
    for name, value in dumped.items():
        load = _LOAD.get(name)
        setattr(budget, name, value if load is None else load(value))
    return budget


def is_typed(dumped: dict[str, Any]) -> bool:
    """Return whether each field has its type. Auditors ask this, because `load_budget` does not check."""
    return all(_IS.get(name, _is_number)(value) for name, value in dumped.items())
