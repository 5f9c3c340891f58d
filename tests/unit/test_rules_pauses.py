"""Pauses are updated step by step, and at every moment equal those that are computed from scratch."""

from collections import defaultdict
from itertools import groupby
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.rules.pauses import AD_ACCOUNT_BALANCE, AD_ACCOUNT_BUDGET, BUSINESS_CENTER_BALANCE, CAMPAIGN_BUDGET
from shared.rules.policy import Policy
from shared.rules.shard import DAY_US
from shared.rules.state import AdAccount, BusinessCenter, Campaign
from tests.unit.pure_ledger import PureLedger
from tests.unit.test_rules_tables import HOUR, NOON, Book
from tests.unit.tied_work import TiedWork
from tests.unit.what_is_written import charge, details, moved, reverse, written


def held(center: BusinessCenter, account: AdAccount | None, kind: str) -> list[tuple[frozenset[str] | None, int]]:
    """Return what a holder has of each grant: the campaigns that it is tied to, and the amount."""
    grants = [grant for grant in center.grants.values() if grant.kind == kind]
    return [(grant.campaigns, each.remaining) for grant in grants for each in grant.holdings if each.account is account]


def balance(holder: AdAccount | BusinessCenter, pocket: str) -> int:
    if pocket in ("voucher", "ad_credit"):
        center, account = (holder, None) if isinstance(holder, BusinessCenter) else (holder.business_center, holder)
        return sum(amount for _, amount in held(center, account, pocket))
    if isinstance(holder, BusinessCenter):
        return holder.cash if pocket == "cash" else max(0, holder.credit_limit - holder.credit_used)
    return holder.cash if pocket == "cash" else holder.credit


def is_used_up(entity: AdAccount | Campaign, account: AdAccount) -> bool:
    amount, today = entity.budget.amount, account.zone.today
    return amount is not None and entity.budget.spent(entity.budget.mode, today) >= amount


def causes_of_account(account: AdAccount, policy: Policy) -> int:
    """Return the causes by section 5 of the domain page, word for word."""
    center = account.business_center
    causes = AD_ACCOUNT_BUDGET if is_used_up(account, account) else 0
    if account.participates:
        drawable = sum(balance(center, pocket) for pocket in policy.business_center)
        return causes | (0 if drawable else BUSINESS_CENTER_BALANCE)
    own = sum(balance(account, pocket) for pocket in policy.ad_account)
    return causes | (0 if own else AD_ACCOUNT_BALANCE)


def causes_of_campaign(campaign: Campaign, policy: Policy) -> int:
    """Return the causes: its budget, and all money left of its account is tied to other campaigns (section 5.4)."""
    account = campaign.account
    causes = CAMPAIGN_BUDGET if is_used_up(campaign, account) else 0
    if account.participates or "voucher" not in policy.ad_account:
        return causes
    vouchers = [(tied_to, amount) for tied_to, amount in held(account.business_center, account, "voucher") if amount]
    others = sum(amount for tied_to, amount in vouchers if tied_to is not None and campaign.id not in tied_to)
    own = sum(balance(account, pocket) for pocket in policy.ad_account)
    return causes | (AD_ACCOUNT_BALANCE if own and own == others and has_no_payer(vouchers, campaign) else 0)


def has_no_payer(vouchers: list[tuple[frozenset[str] | None, int]], campaign: Campaign) -> bool:
    return not any(tied_to is None or campaign.id in tied_to for tied_to, _ in vouchers)


def assert_causes_are_what_balances_and_budgets_say(ledger: PureLedger) -> None:
    policy = ledger.rules.policy
    for account in ledger.rules.accounts.values():
        assert account.causes == causes_of_account(account, policy), account.id
        for campaign in account.campaigns.values():
            assert campaign.causes == causes_of_campaign(campaign, policy), (account.id, campaign.id)


def assert_written_in_order(ledger: PureLedger, first: int) -> None:
    """Assert the order within a step: the changes of an account, then those of its campaigns in order of creation."""
    steps: defaultdict[tuple[bytes | None, int, str], list[int]] = defaultdict(list)
    number = 0
    for line, amount, _, source, part, _, _ in ledger.entries[first:]:
        number += part == 0
        if amount is None and line.cause is not None and line.ad_account_id is not None:
            account = ledger.rules.accounts[line.ad_account_id]
            campaign = account.campaigns[line.campaign_id] if line.campaign_id is not None else None
            steps[source, number, account.id].append(-1 if campaign is None else campaign.order)
    for orders in steps.values():
        assert [order for order, _ in groupby(orders)] == sorted(set(orders))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000), campaigns=st.integers(3, 9))
def test_causes_after_every_input_are_the_same_as_computed_from_scratch(seed: int, campaigns: int) -> None:
    ledger, first = PureLedger(), 0
    for policy, now, messages in TiedWork(seed, campaigns).history(80):
        ledger.policy = policy
        for message in messages:
            ledger.batch([message], now)
            assert_causes_are_what_balances_and_budgets_say(ledger)
            assert_written_in_order(ledger, first)
            first = len(ledger.entries)


@pytest.mark.parametrize("seed", range(3))
def test_causes_after_every_reload_are_the_same_as_computed_from_scratch(seed: int) -> None:
    ledger = PureLedger()
    for number, (policy, now, messages) in enumerate(TiedWork(seed).history(150)):
        ledger.policy = policy
        if number % 3 == 0:
            ledger.reload()
        ledger.batch(messages, now)
        assert_causes_are_what_balances_and_budgets_say(ledger)


# ---- Order of pauses and resumes ------------------------------------------------------------------------------------


def changes(book: Book, first: int) -> list[tuple[str, str | None, str | None, int]]:
    """Return kind, campaign, cause and part of the pauses and resumes from an index on."""
    return [
        (line.kind, line.campaign_id, line.cause, part)
        for line, _, _, _, part, _, _ in book.rules.entries[first:]
        if line.kind in ("pause", "resume")
    ]


def with_only_tied_money(*tied: str, expires_at: int | None = None) -> Book:
    """Return a book of c1, c2, c3 without cash. Each voucher is tied to some of them, and the last may expire."""
    book = Book()
    book.do("deposit_cash", amount=30, ad_account_id="a")
    for number, campaign in enumerate(("c1", "c2", "c3"), 1):
        book.rules.event(book.event(10, campaign, id=number))
    for campaign in tied:
        ends: dict[str, Any] = {"expires_at": expires_at} if campaign == tied[-1] else {}
        book.do("grant_voucher", voucher_id=campaign, amount=5, ad_account_id="a", campaign_ids=[campaign], **ends)
    return book


def test_a_reversal_resumes_its_own_campaign_in_order_with_the_others() -> None:
    book = with_only_tied_money("c2")
    book.do("set_campaign_budget", ad_account_id="a", campaign_id="c2", mode="lifetime", amount=10)
    first = len(book.rules.entries)
    book.rules.event(book.event(1, "c2", reverses=UUID(int=2).bytes))
    assert changes(book, first) == [
        ("resume", "c1", "ad_account_balance", 1),
        ("resume", "c2", "campaign_budget", 2),
        ("resume", "c3", "ad_account_balance", 3),
    ]


def test_an_expiry_at_midnight_sees_the_daily_budgets_of_the_new_day() -> None:
    book = with_only_tied_money("c1", "c2", expires_at=NOON + 12 * HOUR)
    book.do("set_campaign_budget", ad_account_id="a", campaign_id="c1", mode="daily", amount=10)
    book.later(NOON + 12 * HOUR)
    assert changes(book, 0) == [("resume", "c1", "campaign_budget", 1), ("pause", "c2", "ad_account_balance", 2)]


@pytest.mark.parametrize("ahead", [13 * HOUR, DAY_US])
def test_a_day_whose_budget_was_spent_in_advance_begins_with_a_pause(ahead: int) -> None:
    book = Book()
    book.do("deposit_cash", amount=100, ad_account_id="a")
    book.spend(10, "c", NOON + ahead)
    book.do("set_campaign_budget", ad_account_id="a", campaign_id="c", mode="daily", amount=10)
    book.later(NOON + 12 * HOUR)
    assert changes(book, 0) == [("pause", "c", "campaign_budget", 0)]
    book.later(NOON + 36 * HOUR)
    assert changes(book, 0) == [("resume", "c", "campaign_budget", 0)]


def test_a_day_spent_in_advance_across_a_short_day_begins_with_a_pause() -> None:
    """On 28 March 2027 the day has 23 hours in Berlin: 24 hours after 23:59 of the 27th it is the 29th."""
    book = Book()
    book.open("b", zone="Europe/Berlin")
    book.do("deposit_cash", amount=100, ad_account_id="b")
    before_midnight = NOON + 17 * DAY_US + 11 * HOUR - 60_000_000
    book.later(before_midnight)
    book.do("set_campaign_budget", ad_account_id="b", campaign_id="c", mode="daily", amount=10)
    book.rules.event(book.event(10, "c", before_midnight + DAY_US, account="b"))
    book.later(before_midnight + HOUR)
    assert changes(book, 0) == []
    book.later(before_midnight + DAY_US)
    assert changes(book, 0) == [("pause", "c", "campaign_budget", 0)]


@pytest.mark.parametrize(
    "command",
    [
        ("deposit_cash", {"amount": 1}),
        ("set_credit_line", {"limit": 1}),
        ("grant_voucher", {"voucher_id": "v", "amount": 1}),
    ],
)
def test_money_for_the_business_center_resumes_only_its_participants(command: tuple[str, dict[str, Any]]) -> None:
    book = Book()
    book.open("p", billing="prepay")
    book.open("second")
    book.do("set_budget", ad_account_id="a", mode="custom", amount=1000)
    book.do("enable_automatic_allocation")
    assert book.causes == ["business_center_balance"]
    entries = written(book, command[0], **command[1])
    resumed = [entry[0].ad_account_id for entry in entries if entry[0].kind == "resume"]
    assert resumed == ["a", "second"]
    assert book.causes == []
    assert not book.rules.business_centers["b"].empty


def test_a_repayment_and_a_cut_of_the_credit_line_resume_and_pause() -> None:
    book = Book()
    book.do("set_budget", ad_account_id="a", mode="custom", amount=1000)
    book.do("enable_automatic_allocation")
    book.do("set_credit_line", limit=10)
    assert book.spend(10) == [("credit_line", -10)]
    assert book.causes == ["business_center_balance"]
    book.do("repay_credit", amount=4)
    assert book.causes == []
    book.do("set_credit_line", limit=6)
    assert book.causes == ["business_center_balance"]
    book.do("set_credit_line", limit=2)
    assert book.rules.business_centers["b"].credit_available == -4
    assert book.rules.business_centers["b"].holds("credit_line") == 0
    assert book.spend(1) == [("business_center_balance", 1)]


def test_an_overpaid_line_can_be_drawn_above_its_limit() -> None:
    book = Book()
    book.do("set_budget", ad_account_id="a", mode="custom", amount=1000)
    book.do("enable_automatic_allocation")
    book.do("set_credit_line", limit=10)
    charge(book, 1, 10)
    book.do("repay_credit", amount=10)
    assert reverse(book, 1, 10) == "charged"
    assert book.rules.business_centers["b"].holds("credit_line") == 20
    assert book.spend(25) == [("credit_line", -20), ("business_center_balance", 5)]


def test_only_the_last_empty_pocket_of_the_business_center_pauses_and_each_pause_names_all_causes() -> None:
    book = Book()
    book.do("set_budget", ad_account_id="a", mode="custom", amount=8)
    book.do("enable_automatic_allocation")
    book.do("deposit_cash", amount=3)
    book.do("grant_voucher", voucher_id="v", amount=5)
    before = len(book.rules.entries)
    book.spend(7)
    assert book.causes == []
    book.spend(1)
    pauses = [entry for entry in book.rules.entries[before:] if entry[0].kind == "pause"]
    assert [(entry[0].cause, details(entry)["causes"]) for entry in pauses] == [
        ("ad_account_budget", ["ad_account_budget"]),
        ("business_center_balance", ["ad_account_budget", "business_center_balance"]),
    ]
    assert [entry[4] for entry in pauses] == [1, 2]


def test_only_a_campaign_without_a_usable_voucher_is_paused_until_money_comes() -> None:
    book = Book()
    book.do("deposit_cash", amount=1, ad_account_id="a")
    book.do("grant_voucher", voucher_id="v", amount=20, ad_account_id="a", campaign_ids=["other"])
    book.spend(1, "other")
    book.spend(0, "c")
    account = book.rules.accounts["a"]
    assert book.spend(1, "c") == [("cash", -1)]
    assert {id: each.causes for id, each in account.campaigns.items()} == {"other": 0, "c": 1}
    assert len(account.stopped_campaigns) == 1
    book.do("deposit_cash", amount=1, ad_account_id="a")
    assert [each.causes for each in account.campaigns.values()] == [0, 0]
    assert not account.stopped_campaigns
    assert book.causes == []


def test_a_campaign_pauses_at_its_own_budget_and_its_account_does_not() -> None:
    book = Book()
    book.do("deposit_cash", amount=100, ad_account_id="a")
    book.do("set_campaign_budget", ad_account_id="a", campaign_id="c", mode="daily", amount=5)
    assert book.spend(7) == [("cash", -5), ("campaign_budget", 2)]
    campaign = book.rules.accounts["a"].campaigns["c"]
    assert (book.causes, campaign.causes) == ([], 8)
    book.later(NOON + 12 * HOUR)
    assert [(line.kind, line.campaign_id) for line, *_ in book.rules.entries] == [("resume", "c")]
    assert campaign.causes == 0


def test_a_campaign_with_its_own_voucher_delivers_although_another_is_tied_elsewhere() -> None:
    book = Book()
    for name, campaign in (("v", "c"), ("w", "other")):
        book.do("grant_voucher", voucher_id=name, amount=5, ad_account_id="a", campaign_ids=[campaign])
    book.spend(1, "c")
    assert book.rules.accounts["a"].campaigns["c"].causes == 0
    assert book.spend(5, "c") == [("v", -4), ("ad_account_balance", 1)]
    assert book.rules.accounts["a"].campaigns["c"].causes == 1


def test_a_transfer_that_empties_the_business_center_pauses_its_participants() -> None:
    book = Book()
    book.open("p", billing="prepay")
    book.do("set_budget", ad_account_id="a", mode="custom", amount=1000)
    book.do("enable_automatic_allocation")
    book.do("deposit_cash", amount=5)
    transfer: dict[str, Any] = {"ad_account_id": "p", "pocket": "cash", "amount": 5}
    book.do("transfer_balance", direction="to_ad_account", **transfer)
    assert book.causes == ["business_center_balance"]
    book.do("transfer_balance", direction="to_business_center", **transfer)
    assert book.causes == []


def test_an_account_that_gives_back_its_last_micro_pauses() -> None:
    book = Book()
    book.do("deposit_cash", amount=1, ad_account_id="a")
    fields: dict[str, Any] = {"ad_account_id": "a", "direction": "to_business_center", "pocket": "cash", "amount": 1}
    assert moved(book, "transfer_balance", **fields) == [
        ("transfer_out", "a", "ad_account", "cash", None, -1),
        ("transfer_in", "a", "business_center", "cash", None, 1),
    ]
    assert book.causes == ["ad_account_balance"]
