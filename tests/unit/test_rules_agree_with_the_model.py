"""The rules and the second model of the domain page decide the same. Each was written without looking at the other.

The work covers days in many zones. The same work is split into batches, and interrupted by crashes, in any way.
"""

import json
import random
from collections import defaultdict
from datetime import date
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.rules.pauses import cause_names
from tests.model import Model
from tests.model.forms import micros
from tests.model.model import DAY_US
from tests.model.test_model import START_US
from tests.model.workload import Work, Workload
from tests.unit.pure_ledger import PureLedger

Timed = list[tuple[int, Work]]


def work_of_days(seed: int, steps: int) -> Timed:
    """Return random work over many days, with jumps of hours and days."""
    workload, pace = Workload(seed), random.Random(seed)
    now = START_US
    work = [(now, each) for each in workload.opening(now)]
    for _ in range(steps):
        now += pace.choice((1000, 1000, 1000, 0, 0)) if pace.random() > 0.03 else pace.choice((1, 5, 9)) * DAY_US // 6
        work.append((now, workload.next(now)))
    return work


def message(work: Work) -> tuple[str, bytes]:
    return work.kind, json.dumps(work.message).encode()


def essence(entry: Any) -> dict[str, Any]:
    line, amount, _, _, _, _, period = entry
    return {
        "kind": line.kind,
        "holder": line.holder if line.pocket else None,
        "pocket": line.pocket,
        "grant_id": line.grant_id,
        "ad_account_id": line.ad_account_id,
        "campaign_id": line.campaign_id,
        "cause": line.cause,
        "causes": json.loads(line.details)["causes"] if line.kind in ("pause", "resume") else None,
        "period": None if period is None else date.fromordinal(period).isoformat(),
        "amount": amount,
    }


PREDICTED = ("business_center_draw", "overdelivery", "reversal", "forfeit", "expiry", "pause", "resume")


def by_source(entries: list[tuple[str | None, dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    found = defaultdict(list)
    for source, entry in entries:
        if entry["kind"].endswith("_debit") or entry["kind"] in PREDICTED:
            found[source or "timers"].append(entry)
    found["timers"].sort(key=lambda entry: json.dumps(entry, sort_keys=True))
    return dict(found)


def of_rules(ledger: PureLedger) -> dict[str, list[dict[str, Any]]]:
    return by_source([(str(UUID(bytes=entry[3])) if entry[3] else None, essence(entry)) for entry in ledger.entries])


def of_model(model: Model) -> dict[str, list[dict[str, Any]]]:
    names = ("kind", "pocket", "grant_id", "ad_account_id", "campaign_id", "cause", "causes", "period", "amount")
    return by_source(
        [
            (
                each["source_event_id"],
                {
                    **{name: each.get(name) for name in names},
                    "holder": each.get("holder") if each.get("pocket") else None,
                },
            )
            for each in model.entries
        ]
    )


@pytest.mark.parametrize("seed", range(40))
def test_the_rules_and_the_model_make_the_same_decisions_and_entries(seed: int) -> None:
    model, ledger = Model(START_US, shards=1), PureLedger()
    for now, work in work_of_days(seed, 500):
        expected: Any
        if work.kind == "command":
            outcome = model.command(work.message, now)
            expected = (outcome.status, outcome.code)
        else:
            expected = model.event(work.message, now)
        [found] = ledger.batch([message(work)], now)
        assert found == expected, f"{work} at {now}"
    expected_entries, found_entries = of_model(model), of_rules(ledger)
    for source in expected_entries.keys() | found_entries.keys():
        assert found_entries.get(source) == expected_entries.get(source), source
    assert_same_state(model, ledger)


def assert_same_state(model: Model, ledger: PureLedger) -> None:
    for center in ledger.rules.business_centers.values():
        balance = model.business_center(center.id)["balance"]
        assert micros(balance["cash"]) == center.cash
        assert micros(balance["voucher"]) == center.vouchers.total
        assert micros(balance["ad_credit"]) == center.ad_credits.total
        for account in center.accounts.values():
            shown = model.ad_account(account.id)
            assert shown["delivery"]["causes"] == cause_names(account.causes), account.id
            assert micros(shown["balance"]["cash"]) == account.cash
            for campaign in account.campaigns.values():
                its_own = model.campaign(account.id, campaign.id)["delivery"]["causes"]
                assert its_own == cause_names(campaign.causes)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), cut=st.randoms(use_true_random=False))
def test_any_split_into_batches_and_any_crash_give_the_same_bytes(seed: int, cut: random.Random) -> None:
    work = work_of_days(seed, 120)
    whole, split = PureLedger(), PureLedger()
    for now, together in by_time(work):
        fates = whole.batch(together, now)
        again: list[Any] = []
        while together:
            size = cut.randint(1, len(together))
            again += split.batch(together[:size], now)
            together = together[size:]
            if cut.random() < 0.3:
                split.reload()
        assert again == fates
    assert split.encoded() == whole.encoded()


def by_time(work: Timed) -> list[tuple[int, list[tuple[str, bytes]]]]:
    grouped: dict[int, list[tuple[str, bytes]]] = defaultdict(list)
    for now, each in work:
        grouped[now].append(message(each))
    return list(grouped.items())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_books_balance(seed: int) -> None:
    ledger = PureLedger()
    for now, each in work_of_days(seed, 250):
        ledger.batch([message(each)], now)
        assert_no_pocket_below_zero(ledger)
    assert_pockets_are_sums_of_entries(ledger)
    assert_money_in_is_held_spent_or_forfeited(ledger)
    assert all(earlier <= later for earlier, later in pairwise(ledger.recorded))


def assert_no_pocket_below_zero(ledger: PureLedger) -> None:
    for center in ledger.rules.business_centers.values():
        assert min(center.cash, center.vouchers.total, center.ad_credits.total) >= 0
        for account in center.accounts.values():
            assert min(account.cash, account.credit, account.vouchers.total, account.ad_credits.total) >= 0


def assert_pockets_are_sums_of_entries(ledger: PureLedger) -> None:
    sums: dict[tuple[str, str | None, str], int] = defaultdict(int)
    for line, amount, *_ in ledger.entries:
        if line.pocket is not None and amount is not None:
            account = line.ad_account_id if line.holder == "ad_account" else None
            sums[line.business_center_id, account, line.pocket] += amount
    for center in ledger.rules.business_centers.values():
        assert sums[center.id, None, "cash"] == center.cash
        assert sums[center.id, None, "voucher"] == center.vouchers.total
        assert sums[center.id, None, "ad_credit"] == center.ad_credits.total
        assert sums[center.id, None, "credit_line"] == center.credit_available
        for own in center.accounts.values():
            for pocket in ("cash", "credit", "voucher", "ad_credit"):
                assert sums[center.id, own.id, pocket] == own.holds(pocket)


MONEY_IN = ("deposit", "grant", "credit_limit_change", "credit_repayment")


def assert_money_in_is_held_spent_or_forfeited(ledger: PureLedger) -> None:
    books: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for line, amount, _, _, _, day, _ in ledger.entries:
        book = books[line.business_center_id]
        if amount is None:
            continue
        if line.pocket is not None:
            book["held"] += amount
        if line.kind in MONEY_IN:
            book["in"] += amount
        elif line.pocket is not None and day is not None:
            book["spent"] -= amount
        elif line.kind == "forfeit":
            book["spent"] -= amount
            book["forfeited"] += amount
        elif line.kind == "expiry":
            book["forfeited"] -= amount
    for name, book in books.items():
        assert book["in"] == book["held"] + book["spent"] + book["forfeited"], name


def test_a_full_reversal_of_everything_restores_everything() -> None:
    for seed in range(15):
        ledger = PureLedger()
        spends = []
        for now, work in work_of_days(seed, 0):
            ledger.batch([message(work)], now)
        before = balances(ledger)
        for _, work in work_of_days(seed, 400):
            spend = {**work.message, "occurred_at": "2027-03-10T12:00:00Z"}
            is_spend = work.kind == "event" and spend["type"] == "spend"
            if is_spend and ledger.batch([("event", json.dumps(spend).encode())], START_US) == ["charged"]:
                spends.append(spend)
        assert balances(ledger) != before
        for number, spend in enumerate(random.Random(seed).sample(spends, len(spends))):
            event = {
                **spend,
                "type": "reversal",
                "reverses": spend["event_id"],
                "event_id": str(UUID(int=number)),
            }
            assert ledger.batch([("event", json.dumps(event).encode())], START_US) == ["charged"]
        assert balances(ledger) == before


def balances(ledger: PureLedger) -> Any:
    return [
        (
            center.cash,
            center.vouchers.total,
            center.credit_used,
            [
                (account.cash, account.credit, account.vouchers.total, account.ad_credits.total, account.causes)
                for account in center.accounts.values()
            ],
        )
        for center in ledger.rules.business_centers.values()
    ]
