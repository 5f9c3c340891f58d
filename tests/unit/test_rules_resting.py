"""Campaigns that rest: no decision depends on it, and active campaigns alone take memory."""

import json
import random
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.rules import memory_bounds, pauses, shard
from shared.rules.command_types import OpenBusinessCenter
from shared.rules.kept_budgets import FIELDS
from shared.rules.policy import STANDARD
from shared.rules.resting import dump_campaign, is_as_dumped, load_campaign, may_rest
from shared.rules.shard import DAY_US
from shared.rules.state import CAMPAIGN_BYTES
from shared.rules.versions import BATCHES_BOUNDED, MEMORY_SHARED
from tests.unit.pure_ledger import PureLedger
from tests.unit.states import States, structure
from tests.unit.test_rules_agree_with_the_model import by_time, work_of_days
from tests.unit.test_rules_forget import Told
from tests.unit.test_rules_tables import NOON, Book
from tests.unit.tied_work import TiedWork


def in_memory(ledger: PureLedger) -> int:
    return sum(len(account.campaigns) for account in ledger.rules.accounts.values())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100_000), most=st.sampled_from([4, 12, 24]))
def test_campaigns_at_rest_decide_as_if_they_had_stayed(seed: int, most: int) -> None:
    assert_same_decisions(PureLedger(most_campaigns=most), seed, reloads=0.05)


def assert_same_decisions(resting: PureLedger, seed: int, reloads: float) -> None:
    """Assert that this ledger and one that keeps all campaigns in memory decide the same."""
    staying, crash = PureLedger(), random.Random(seed)
    for policy, now, messages in TiedWork(seed, campaigns=20).history(120):
        resting.policy = staying.policy = policy
        fates = staying.batch(messages, now)
        assert resting.batch(messages, now) == fates
        assert resting.rules.campaigns.count == in_memory(resting)
        if crash.random() < reloads:
            resting.reload()
    assert resting.encoded() == staying.encoded()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100_000), most=st.sampled_from([None, 4, 12]))
def test_campaigns_at_rest_in_large_accounts_decide_as_if_they_had_stayed(seed: int, most: int | None) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pauses, "LARGE_ACCOUNT", 5)
        patched.setattr(memory_bounds, "MOST_STOPPED", 2)
        patched.setattr(shard, "MOST_TIMER_ENTRIES", 3)
        assert_same_decisions(PureLedger(most_campaigns=most), seed, reloads=0.2)


def test_many_campaigns_rest_and_return_in_the_tested_histories() -> None:
    rested, woken = 0, 0
    for seed in range(5):
        ledger = PureLedger(most_campaigns=4)
        for policy, now, messages in TiedWork(seed, campaigns=20).history(120):
            ledger.policy = policy
            ledger.batch(messages, now)
        keys = [row[:2] for row in ledger.resting]
        rested, woken = rested + len(keys), woken + len(keys) - len(set(keys))
    assert rested > 100
    assert woken > 20


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), most=st.sampled_from([4, 8]))
def test_campaigns_at_rest_over_many_days_and_accounts_decide_as_if_they_had_stayed(seed: int, most: int) -> None:
    resting, staying, crash = PureLedger(most_campaigns=most), PureLedger(), random.Random(seed)
    for now, messages in by_time(work_of_days(seed, 200)):
        assert resting.batch(messages, now) == staying.batch(messages, now)
        if crash.random() < 0.1:
            resting.reload()
    assert resting.encoded() == staying.encoded()


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_a_campaign_returns_from_rest_unchanged(seed: int) -> None:
    for account in States(seed).shard().accounts.values():
        for campaign in account.campaigns.values():
            kept = json.loads(json.dumps(dump_campaign(campaign)))
            assert is_as_dumped(kept)
            assert structure(load_campaign(account, campaign.id, kept)) == structure(campaign)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each number, text or null in the value by its container and its key there."""
    for key, each in list(value.items() if isinstance(value, dict) else enumerate(value)):
        if isinstance(each, dict | list):
            yield from places(each)
        else:
            yield value, key


def test_a_resting_campaign_with_a_value_of_the_wrong_type_cannot_be_read() -> None:
    tried = set()
    for seed in range(40):
        for account in States(seed).shard().accounts.values():
            for campaign in account.campaigns.values():
                kept = json.loads(json.dumps(dump_campaign(campaign)))
                tried.update(kept["budget"])
                for holder, key in places(kept):
                    was = holder[key]
                    others: list[Any] = [[], {}, True, 1.5, 7 if isinstance(was, str) else "daily"]
                    for other in others:
                        holder[key] = other
                        assert not is_as_dumped(kept), kept
                    holder[key] = was
    assert tried == set(FIELDS)


def spend(ledger: PureLedger, numbers: range, account: str = "a") -> list[Any]:
    """Decide a batch of spends, each of its own campaign."""
    common = {"type": "spend", "business_center_id": "b", "ad_account_id": account, "amount": "0.000001"}
    common |= {"currency": "USD", "occurred_at": "2027-03-10T12:00:00Z"}
    return ledger.batch(
        [
            ("event", json.dumps({**common, "event_id": str(UUID(int=2**64 + n)), "campaign_id": f"c{n}"}).encode())
            for n in numbers
        ],
        NOON,
    )


def test_invented_campaigns_do_not_fill_memory() -> None:
    told = Told()
    told.most_campaigns = 400
    told.do("deposit_cash", amount="1000", ad_account_id="a")
    sizes = []
    tracemalloc.start()
    for start in range(0, 12_000, 200):
        assert spend(told, range(start, start + 200)) == ["charged"] * 200
        told.resting.clear()
        told.entries.clear()
        told.recorded.clear()
        told._events.clear()
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert in_memory(told) <= 640
    assert max(sizes[20:]) < 1.2 * max(sizes[:20]), sizes
    assert told.rules.accounts["a"].campaigns_ever == 12_000


def test_campaigns_in_use_stay_while_others_come_and_go() -> None:
    told = Told()
    told.most_campaigns = 1_000
    told.do("deposit_cash", amount="1000", ad_account_id="a")
    for start in range(0, 10_000, 500):
        spend(told, range(start, start + 500))
        told.event("0.000001")
    assert "c" not in {campaign for _, campaign, _, _ in told.resting}


def test_a_campaign_that_was_not_looked_up_is_not_treated_as_new() -> None:
    told = Told()
    told.most_campaigns = 10
    for start in range(0, 100, 5):
        spend(told, range(start, start + 5))
    told.rules.begin(NOON)
    account = told.rules.accounts["a"]
    with pytest.raises(LookupError, match="was not looked up"):
        told.rules.campaigns.find(account, "c0")


def test_a_tied_voucher_brings_all_campaigns_of_its_account_back() -> None:
    told, staying = Told(), Told()
    told.most_campaigns = 10
    for ledger in (told, staying):
        ledger.do("deposit_cash", amount="0.000099", ad_account_id="a")
        for start in range(0, 90, 5):
            spend(ledger, range(start, start + 5))
        ledger.do("grant_voucher", voucher_id="v", amount="5", ad_account_id="a", campaign_ids=["c3"])
        spend(ledger, range(90, 100))
    assert told.encoded() == staying.encoded()
    stopped = [line.campaign_id for line, *_ in told.entries if line.kind == "pause" and line.campaign_id]
    assert len(stopped) == 99


def test_campaigns_of_a_large_account_pause_when_they_spend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "LARGE_ACCOUNT", 50)
    told, staying = Told(), Told()
    told.most_campaigns = 10
    for ledger in (told, staying):
        ledger.do("deposit_cash", amount="0.000090", ad_account_id="a")
        for start in range(0, 90, 5):
            spend(ledger, range(start, start + 5))
        ledger.do("grant_voucher", voucher_id="v", amount="5", ad_account_id="a", campaign_ids=["c3"])
        spend(ledger, range(90, 92))
        ledger.do("deposit_cash", amount="1", ad_account_id="a")
        ledger.event("0.5")
    assert told.encoded() == staying.encoded()
    changes = [(line.kind, line.campaign_id) for line, *_ in told.entries if line.kind in ("pause", "resume")]
    assert [change for change in changes if change[1]] == [
        *(("pause", "c90"), ("pause", "c91"), ("resume", "c90"), ("resume", "c91"))
    ]


@pytest.mark.parametrize("reload", [False, True])
def test_midnight_pauses_no_idle_campaign_of_a_large_account(reload: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "LARGE_ACCOUNT", 50)
    told = Told()
    told.do("deposit_cash", amount="0.000060", ad_account_id="a")
    told.do("set_campaign_budget", ad_account_id="a", campaign_id="quiet", mode="daily", amount="5")
    spend(told, range(60))
    told.do("grant_voucher", voucher_id="v", amount="5", ad_account_id="a", campaign_ids=["c3"])
    if reload:
        told.reload()
    told.batch([], NOON + DAY_US)
    assert [line.campaign_id for line, *_ in told.entries if line.kind == "pause" and line.campaign_id] == []


def test_campaigns_that_time_or_money_may_change_stay_in_memory() -> None:
    book = Book()
    book.do("deposit_cash", amount=1_000, ad_account_id="a")
    account = book.rules.accounts["a"]
    for campaign, mode in (("daily", "daily"), ("life", "lifetime"), ("paused", "lifetime"), ("free", "unlimited")):
        amount: dict[str, Any] = {"amount": 1 if campaign == "paused" else 100} if mode != "unlimited" else {}
        book.do("set_campaign_budget", ad_account_id="a", campaign_id=campaign, mode=mode, **amount)
        book.spend(1, campaign)
    may = {id: may_rest(campaign, STANDARD) for id, campaign in account.campaigns.items()}
    assert may == {"daily": False, "life": True, "paused": True, "free": True}
    book.later(NOON + 8 * DAY_US)
    assert may_rest(account.campaigns["daily"], STANDARD), "its day is over for good"
    book.do("grant_voucher", voucher_id="v", amount=5, ad_account_id="a", campaign_ids=["free"])
    assert not any(may_rest(campaign, STANDARD) for campaign in account.campaigns.values())


# ---- Bounds of a Business Center ------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, most in (("AD_ACCOUNTS", 3), ("OPEN_GRANTS", 3), ("TIED_IDS", 5), ("DAILY_BUDGETS", 2), ("STOPPED", 2)):
        monkeypatch.setattr(memory_bounds, f"MOST_{name}", most)


@pytest.mark.usefixtures("small")
def test_ad_accounts_grants_and_daily_budgets_of_a_business_center_are_bounded() -> None:
    book = Book()
    assert [book.open(id) for id in ("x", "y", "z", "a")] == [None, None, "limit_reached", "already_exists"]

    def voucher(id: str, *campaigns: str) -> str | None:
        tied: dict[str, Any] = {"campaign_ids": list(campaigns), "ad_account_id": "a"} if campaigns else {}
        return book.do("grant_voucher", voucher_id=id, amount=1, **tied)

    assert voucher("v", "c", "d", "e") is None
    assert voucher("w", "f", "g", "h") == "limit_reached"
    assert voucher("w", "f") is None
    assert book.do("grant_ad_credit", ad_credit_id="x", amount=1) is None
    assert voucher("u") == "limit_reached"
    book.spend(1, "c")  # uses v up
    assert voucher("u", "f", "g", "h", "i") is None, "what is used up is not open"

    def daily(campaign: str, mode: str = "daily") -> str | None:
        amount: dict[str, Any] = {} if mode == "unlimited" else {"amount": 5}
        return book.do("set_campaign_budget", ad_account_id="x", campaign_id=campaign, mode=mode, **amount)

    assert [daily("c"), daily("d"), daily("c"), daily("e")] == [None, None, None, "limit_reached"]
    assert "e" not in book.rules.accounts["x"].campaigns
    assert [daily("d", "lifetime"), daily("e"), daily("f", "unlimited")] == [None, None, None]


@pytest.mark.usefixtures("small")
def test_versions_before_3_have_no_bounds() -> None:
    book = Book(replace(STANDARD, rules=BATCHES_BOUNDED))
    assert [book.open(id) for id in ("x", "y", "z")] == [None, None, None]


@pytest.mark.usefixtures("small")
def test_the_number_of_unpaid_campaigns_is_bounded() -> None:
    book = Book()
    book.do("grant_voucher", voucher_id="v", amount=5, ad_account_id="a", campaign_ids=["c"])
    fates = [book.rules.event(book.event(1, campaign))[0] for campaign in ("x", "y", "z", "x", "c")]
    assert fates == ["charged", "charged", "too_many_campaigns", "charged", "charged"]
    book.do("deposit_cash", amount=5, ad_account_id="a")
    assert book.rules.event(book.event(1, "z"))[0] == "charged"


@pytest.mark.parametrize("seed", range(6))
def test_bounds_stay_the_same_after_a_reload(seed: int) -> None:
    ledger = PureLedger()
    for policy, now, messages in TiedWork(seed).history(150):
        ledger.policy = policy
        ledger.batch(messages, now)
    [before] = ledger.rules.business_centers.values()
    ledger.reload()
    [after] = ledger.rules.business_centers.values()
    counts = [(each.open_grants, each.tied_ids, each.daily_campaigns, each.memory.bytes) for each in (before, after)]
    assert counts[0] == counts[1]
    assert counts[0][3] > 1_000


def test_all_business_centers_of_a_shard_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound of one, times the number of Business Centers, is more than a process has."""
    monkeypatch.setattr(memory_bounds, "MOST_HELD_BYTES", 20_000)
    book = Book()
    opened = 0
    while (refused := open_center(book, f"b{opened}")) is None:
        opened += 1
    assert (refused, 10 < opened < 20) == ("limit_reached", True)
    assert open_center(book, "b0") == "already_exists"
    assert book.open("x") == "limit_reached"
    assert book.do("grant_voucher", voucher_id="v", amount=1) == "limit_reached"
    daily: dict[str, Any] = {"ad_account_id": "a", "campaign_id": "c", "mode": "daily", "amount": 5}
    assert book.do("set_campaign_budget", **daily) == "limit_reached"
    assert book.do("set_campaign_budget", **{**daily, "mode": "lifetime"}) is None
    assert book.do("deposit_cash", amount=5, ad_account_id="a") is None
    assert book.rules.event(book.event(1, "new"))[0] == "charged", "spend goes on"


def budget_daily(book: Book, number: int, center: str = "b", account: str = "a") -> str | None:
    daily: dict[str, Any] = {"campaign_id": f"d{number}", "mode": "daily", "amount": 5}
    return book.do("set_campaign_budget", business_center_id=center, ad_account_id=account, **daily)


def open_neighbour(book: Book, id: str) -> list[str | None]:
    """What becomes of opening a Business Center with an account of the same id, a voucher and a daily budget."""
    account: dict[str, Any] = {"billing": "prepay", "buying_type": "auction", "time_zone": "UTC", "owned": True}
    return [
        open_center(book, id),
        book.do("open_ad_account", business_center_id=id, ad_account_id=id, **account),
        book.do("grant_voucher", business_center_id=id, voucher_id="v", amount=1),
        budget_daily(book, 0, id, id),
    ]


@pytest.mark.parametrize("rules", [MEMORY_SHARED - 1, MEMORY_SHARED])
def test_a_business_center_that_takes_all_it_can_leaves_room_for_others(
    monkeypatch: pytest.MonkeyPatch, rules: int
) -> None:
    monkeypatch.setattr(memory_bounds, "MOST_HELD_BYTES", 300_000)
    book = Book(replace(STANDARD, rules=rules))
    for account in ("x", "y"):
        book.open(account)
    taken = sum(budget_daily(book, number) is None for number in range(300))
    held, all_held = book.rules.business_centers["b"].memory.bytes, book.rules.memory.bytes
    assert held == all_held
    assert budget_daily(book, 301) == "limit_reached"
    if rules < MEMORY_SHARED:
        assert taken > 190
        assert open_neighbour(book, "n")[0] == "limit_reached"
        return
    assert 2 * (300_000 - all_held) <= held < 2 * (300_000 - all_held) + 3 * CAMPAIGN_BYTES, "two thirds"
    assert [book.open("z"), book.do("grant_voucher", voucher_id="v", amount=1)] == ["limit_reached"] * 2
    assert book.do("set_campaign_budget", ad_account_id="a", campaign_id="d0", mode="unlimited") is None
    assert [book.open("z"), book.open("w")] == [None, "limit_reached"], "what it gives back it may take again"

    assert [open_neighbour(book, f"n{number}") for number in range(10)] == [[None] * 4] * 10
    greedy = sum(budget_daily(book, number, "n0", "n0") is None for number in range(300))
    assert greedy > 20, "a second one gets its share of the rest"
    assert open_neighbour(book, "last") == [None] * 4


def test_a_business_center_with_its_share_gets_no_further_campaigns_that_a_voucher_keeps_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory_bounds, "MOST_HELD_BYTES", 100_000)
    book = Book()
    book.do("deposit_cash", amount=1_000, ad_account_id="a")
    book.do("grant_voucher", voucher_id="v", amount=5, ad_account_id="a", campaign_ids=["c"])
    fates = [book.rules.event(book.event(1, f"c{number}"))[0] for number in range(80)]
    assert (fates[30], fates[-1]) == ("charged", "too_many_campaigns")
    assert 60_000 < book.rules.memory.bytes < 70_000
    assert open_neighbour(book, "n") == [None] * 4


def test_campaigns_that_a_voucher_keeps_in_memory_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_bounds, "MOST_HELD_BYTES", 20_000)
    book = Book()
    book.do("deposit_cash", amount=1_000, ad_account_id="a")
    before = book.rules.memory.bytes
    book.spend(1, "first")
    assert book.rules.memory.bytes == before
    book.do("grant_voucher", voucher_id="v", amount=5, ad_account_id="a", campaign_ids=["c"])
    fates = [book.rules.event(book.event(1, f"c{number}"))[0] for number in range(20)]
    assert fates[0] == "charged"
    assert fates[-1] == "too_many_campaigns"
    book.do("enable_automatic_allocation")
    assert book.rules.event(book.event(1, "another"))[0] == "charged", "they can rest now"


def open_center(book: Book, id: str) -> str | None:
    fields: dict[str, Any] = {"currency": "USD", "time_zone": "UTC", "finance_roles": True}
    command = OpenBusinessCenter(business_center_id=id, role="admin", **fields)
    refused = book.rules.command(command, UUID(int=len(book.rules.business_centers)).bytes, {})
    return refused.code if refused else None
