"""Budgets remember enough of closed days and months for every late spend, after any reload and any setting."""

import json
import random
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID, uuid5

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from shared.rules.day_counts import KEPT_DAYS, NO_DAYS, DayCounts
from shared.rules.shard import Shard
from tests.model import Model
from tests.model.forms import rfc3339
from tests.model.model import DAY_US
from tests.model.workload import Work
from tests.unit.months import WINDOWS, Months
from tests.unit.pure_ledger import PureLedger
from tests.unit.test_rules_agree_with_the_model import message, of_model, of_rules
from tests.unit.test_rules_tables import TODAY, budget_of

MARCH = int(datetime(2027, 3, 1, 12, tzinfo=UTC).timestamp()) * 1_000_000
TENTH_OF_JANUARY = int(datetime(2026, 1, 10, 6, tzinfo=UTC).timestamp()) * 1_000_000


class Account:
    """One ad account with enough money, and short methods that take days and amounts. It can reload before each."""

    def __init__(self, *, reload: bool = False, window: int = 7, zone: str = "UTC") -> None:
        self.ledger = PureLedger(deduplication_days=window)
        self._reload = reload
        self._number = 0
        self.command(1, "open_business_center", currency="USD", time_zone=zone, finance_roles=True)
        kind = {"billing": "monthly_invoicing", "buying_type": "auction", "time_zone": zone}
        self.command(1, "open_ad_account", ad_account_id="a", **kind)
        self.command(1, "deposit_cash", ad_account_id="a", amount="100000")

    def command(self, day: int, type_: str, **fields: Any) -> None:
        head = {"command_id": self._uuid(), "type": type_, "business_center_id": "b", "issued_at": rfc3339(at(day))}
        assert self._decide("command", {**head, "actor": {"id": "x", "role": "admin"}, **fields}, day) == (
            "accepted",
            None,
        )

    def budget(self, day: int, mode: str, amount: str | None = None) -> None:
        self.command(day, "set_budget", ad_account_id="a", mode=mode, amount=amount)

    def spend(self, day: int, amount: str, of: int | None = None, **fields: Any) -> tuple[int, int]:
        """Decide a spend that arrives on this day of March. Return what is billed, and what is overdelivered."""
        event = {
            "type": "spend",
            "event_id": self._uuid(),
            "business_center_id": "b",
            "ad_account_id": "a",
            "campaign_id": "c",
            "amount": amount,
            "currency": "USD",
            "occurred_at": rfc3339(at(day if of is None else of)),
            **fields,
        }
        before = len(self.ledger.entries)
        assert self._decide("event", event, day) == "charged"
        parts = [(line, amount) for line, amount, *_ in self.ledger.entries[before:] if amount is not None]
        billed = sum(-amount for line, amount in parts if line.pocket)
        return billed // 1_000_000, sum(amount for line, amount in parts if not line.pocket) // 1_000_000

    def reverse(self, day: int, number: int, amount: str) -> None:
        """Reverse part of the spend with this number."""
        self.spend(day, amount, type="reversal", reverses=str(uuid5(UUID(int=0), str(number))))

    @property
    def number(self) -> int:
        """The number of the last spend or reversal."""
        return self._number

    def _uuid(self) -> str:
        self._number += 1
        return str(uuid5(UUID(int=0), str(self._number)))

    def _decide(self, kind: str, content: dict[str, Any], day: int) -> Any:
        if self._reload:
            self.ledger.reload()
        [fate] = self.ledger.batch([(kind, json.dumps(content).encode())], at(day))
        return fate


def at(day: int) -> int:
    """Return noon of a day of March 2027, counted from 1: 33 is 2 April."""
    return MARCH + (day - 1) * DAY_US


both = pytest.mark.parametrize("reload", [False, True], ids=["never reloaded", "always reloaded"])


@both
def test_a_month_is_remembered_after_its_days_are_forgotten(reload: bool) -> None:
    account = Account(reload=reload)
    account.budget(1, "monthly", "100")
    for day in range(1, 19):
        account.spend(day, "5")
    account.spend(33, "1")
    assert account.spend(33, "20", of=30) == (10, 10)


@both
def test_a_reversal_frees_budget_in_the_month_of_its_spend(reload: bool) -> None:
    account = Account(reload=reload)
    account.budget(1, "monthly", "100")
    account.spend(1, "5")
    first = account.number
    for day in range(2, 19):
        account.spend(day, "5")
    account.spend(33, "1")
    account.reverse(33, first, "5")
    assert account.spend(33, "20", of=30) == (15, 5)
    assert account.spend(33, "20", of=31) == (0, 20)


@both
@pytest.mark.parametrize(("ago", "window"), [(20, 30), (300, 365), (364, 365)])
def test_a_wider_window_finds_closed_days_unchanged(reload: bool, ago: int, window: int) -> None:
    account = Account(reload=reload)
    account.budget(1, "daily", "100")
    for day in range(1, ago + 6):
        assert account.spend(day, "100") == (100, 0)
    account.ledger.reload(deduplication_days=window)
    assert account.spend(ago + 5, "50", of=5) == (0, 50)


@both
def test_a_closed_day_keeps_its_last_budget_however_many_settings_follow(reload: bool) -> None:
    account = Account(reload=reload, window=365)
    for day in range(1, 301):
        account.budget(day, "daily", "9" if day == 5 else "40")
    account.spend(5 + 364, "3", of=5)
    assert account.spend(5 + 364, "50", of=5) == (6, 44)


@both
def test_a_new_daily_budget_counts_the_spend_of_its_day_even_after_late_spends(reload: bool) -> None:
    account = Account(reload=reload)
    account.spend(10, "5")
    account.spend(10, "2", of=11)  # This spend is a day ahead.
    account.spend(10, "1", of=8)
    account.budget(10, "daily", "8")
    assert account.spend(10, "20") == (3, 17)
    account.budget(11, "unlimited")
    account.spend(11, "1", of=10)
    account.spend(11, "1", of=5)
    account.budget(11, "daily", "8")
    assert account.spend(11, "20") == (6, 14)


@both
def test_a_new_monthly_budget_counts_the_spend_of_its_month_even_after_late_spends(reload: bool) -> None:
    account = Account(reload=reload)
    for day in (32, 40, 50):
        account.spend(day, "5")
        account.spend(day, "1", of=day - 6)
    account.spend(61, "1", of=62)  # This spend of 1 May comes early.
    account.budget(61, "monthly", "20")
    assert account.spend(61, "20") == (3, 17)
    account.budget(62, "unlimited")
    account.spend(62, "1", of=61)
    account.budget(62, "monthly", "20")
    assert account.spend(62, "20") == (19, 1)


@both
def test_reversing_a_forgotten_spend_frees_no_budget(reload: bool) -> None:
    account = Account(reload=reload, window=365)
    account.budget(1, "daily", "10")
    account.spend(1, "10")
    first = account.number
    for day in range(2, 430):
        assert account.spend(day, "10") == (10, 0)
    account.reverse(429, first, "10")
    for day in (429, 429 - 1, 429 - 364):
        assert account.spend(429, "1", of=day) == (0, 1), day
    budget = account.ledger.rules.accounts["a"].budget
    assert min(budget.days.amounts) >= 0
    assert min(budget.months.values(), default=0) >= 0


# ---- Histories over months ------------------------------------------------------------------------------------------


# No shrinking, because a smaller seed is not a simpler history.
@settings(max_examples=12, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(seed=st.integers(0, 2**32), chance=st.randoms(use_true_random=False))
def test_reloads_at_any_moment_change_nothing_in_months_of_sparse_days_and_agree_with_the_model(
    seed: int, chance: random.Random
) -> None:
    model, whole, reloaded = Model(TENTH_OF_JANUARY, shards=1), PureLedger(), PureLedger()
    decided: list[tuple[int, Work]] = []
    window = 7
    for now, work in Months(seed, TENTH_OF_JANUARY):
        if chance.random() < 0.03:
            window = chance.choice(WINDOWS)
            model._window = window * DAY_US
            whole.rules.set_window(window)
            reloaded.reload(deduplication_days=window)
        elif chance.random() < 0.3:
            reloaded.reload()
        [fate] = whole.batch([message(work)], now)
        assert reloaded.batch([message(work)], now) == [fate]
        assert fate == of_the_model(model, work, now), (work, now)
        if fate in ("charged", ("accepted", None)):
            decided.append((now, work))
    assert reloaded.encoded() == whole.encoded()
    assert of_rules(whole) == of_model(model)
    assert decided_again(decided, whole).encoded() == whole.encoded()


def of_the_model(model: Model, work: Work, now: int) -> Any:
    if work.kind == "event":
        return model.event(work.message, now)
    outcome = model.command(work.message, now)
    return outcome.status, outcome.code


def decided_again(decided: list[tuple[int, Work]], written: PureLedger) -> PureLedger:
    """Return what a replay decides: it takes the accepted inputs, without a window, at the times of the ledger."""
    ledger = PureLedger()
    ledger.rules = Shard(deduplication_days=None)
    for now in sorted(set(written.recorded)):
        ledger.batch([message(work) for moment, work in decided if moment == now], now)
    return ledger


# ---- The days of one budget -----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 2**66)), max_size=40))
def test_days_are_remembered_to_the_micro_for_400_days(puts: list[tuple[int, int]]) -> None:
    days, kept = DayCounts(), dict[int, int]()
    for ago, amount in puts:
        days.put(TODAY - ago, amount)
        kept[TODAY - ago] = amount
        kept = {day: amount for day, amount in kept.items() if day > max(kept) - KEPT_DAYS}
        assert len(days.amounts) <= KEPT_DAYS
    found = {day: days.of(day) for day in range(TODAY - 910, TODAY + 10)}
    assert {day: amount for day, amount in found.items() if amount} == {d: a for d, a in kept.items() if a}


def test_a_budget_that_counts_a_single_day_keeps_no_table_of_days() -> None:
    budget = budget_of(spent={TODAY: 5})
    assert budget.days is NO_DAYS
    assert budget.months == {}
    budget.count(TODAY, 2)
    assert budget.spent("daily", TODAY) == 7


def test_days_without_a_daily_setting_are_forgotten_once_they_are_closed() -> None:
    budget = budget_of((TODAY + 10, "daily", 9), (TODAY + 12, "monthly", 9))
    for day in range(TODAY, TODAY + 60):
        budget.count(day, 1)
        assert len(budget.days.amounts) <= (7 if day < TODAY + 17 else 60)
    assert budget.days.first == TODAY + 10
    assert [budget.spent("daily", TODAY + day) for day in (10, 11, 58, 59)] == [1, 1, 1, 1]


def test_months_without_a_monthly_setting_are_forgotten_once_they_are_closed() -> None:
    first = date(2027, 1, 1).toordinal()
    budget = budget_of((first + 31 + 27, "monthly", 9), (first + 31 + 28, "daily", 9))
    for day in range(first, first + 500):
        budget.count(day, 1)
        assert len(budget.months) <= 16
        if day == first + 200:
            february = date(2027, 2, 1).toordinal()
            assert budget.spent("monthly", february) == 28
            assert set(budget.months) <= {february, date(2027, 6, 1).toordinal(), date(2027, 7, 1).toordinal()}
    assert date(2027, 2, 1).toordinal() not in budget.months


def test_settings_are_remembered_for_400_days() -> None:
    budget = budget_of(*((TODAY + day, "daily", day) for day in range(1000)))
    assert len(budget.history) == KEPT_DAYS + 1
    assert budget.setting(TODAY + 999 - KEPT_DAYS, TODAY + 999) == ("daily", 999 - KEPT_DAYS)


def test_a_setting_holds_from_its_day_even_if_another_zone_release_moves_the_day_back() -> None:
    budget = budget_of((TODAY - 9, "daily", 1), (TODAY, "daily", 2), (TODAY - 1, "daily", 3))
    assert budget.history == [(TODAY - 9, "daily", 1), (TODAY - 1, "daily", 3)]


@pytest.mark.parametrize("late", [1, 6])
def test_alternating_late_and_present_spends_rebuild_nothing(late: int) -> None:
    budget = budget_of((TODAY - 300, "daily", 9))
    for day in range(TODAY - 300, TODAY + 1):
        budget.count(day, 1)
    days, months = budget.days, budget.months
    for _ in range(20):
        budget.count(TODAY - late, 1)
        budget.count(TODAY, 1)
    assert budget.days is days
    assert budget.months is months
    assert (budget.spent("daily", TODAY - late), budget.spent("daily", TODAY)) == (21, 21)
