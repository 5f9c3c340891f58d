"""What each command writes, and what happens at the very edge of a rule: to the micro, to the microsecond."""

import json
from datetime import date, datetime
from typing import Any
from uuid import UUID

import pytest

from shared.rules.entries import Entry, canonical_json
from shared.rules.incentives import divide_half_even
from shared.rules.money import LARGEST_AMOUNT, LARGEST_BALANCE
from shared.rules.policy import AD_ACCOUNT_POCKETS, BUSINESS_CENTER_POCKETS, STANDARD, Policy, policy_of
from shared.rules.refusal import Refused, require_room
from shared.rules.reversals import ChargedSpend, Part, overflows, take_back
from shared.rules.setting_budgets import changes_today
from shared.rules.shard import DAY_US, Shard
from shared.rules.state import NO_GRANTS, AdAccount, BusinessCenter, GrantPocket
from tests.unit.pure_ledger import dump_pieces, load_pieces
from tests.unit.test_rules_tables import HOUR, NOON, TODAY, Book, budget_of
from tests.zones import INSTALLED
from tests.zones import zone as zone_of

Movement = tuple[str, str | None, str | None, str | None, str | None, int | None]


def movement(entry: Entry) -> Movement:
    """Kind, account, holder, pocket, grant and amount."""
    line, amount, *_ = entry
    return line.kind, line.ad_account_id, line.holder, line.pocket, line.grant_id, amount


def details(entry: Entry) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(entry[0].details or "{}")
    return found


def written(book: Book, type: str, role: str = "admin", **fields: Any) -> list[Entry]:
    """The entries that an accepted command writes."""
    before = len(book.rules.entries)
    assert book.do(type, role, **fields) is None
    return book.rules.entries[before:]


def moved(book: Book, type: str, **fields: Any) -> list[Movement]:
    """What an accepted command writes, pauses and resumes apart."""
    return [movement(each) for each in written(book, type, **fields) if each[0].kind not in ("pause", "resume")]


def reverse(book: Book, spend: int, amount: int, **fields: Any) -> str:
    return book.rules.event(book.event(amount, reverses=UUID(int=spend).bytes, **fields))[0]


def charge(book: Book, id: int, amount: int, **fields: Any) -> None:
    assert book.rules.event(book.event(amount, id=id, **fields))[0] == "charged"


def credit(amount: int, direction: str = "to_ad_account") -> dict[str, Any]:
    return {"ad_account_id": "a", "direction": direction, "pocket": "credit", "amount": amount}


# ---- What commands write --------------------------------------------------------------------------------------------


def test_the_money_commands_write_who_holds_what_where() -> None:
    book = Book()
    bc, own = "business_center", "ad_account"
    assert moved(book, "deposit_cash", amount=50) == [("deposit", None, bc, "cash", None, 50)]
    assert moved(book, "deposit_cash", amount=5, ad_account_id="a") == [("deposit", "a", own, "cash", None, 5)]
    assert moved(book, "set_credit_line", limit=40) == [("credit_limit_change", None, bc, "credit_line", None, 40)]
    assert moved(book, "set_credit_line", limit=30) == [("credit_limit_change", None, bc, "credit_line", None, -10)]
    assert moved(book, "transfer_balance", **credit(9)) == [
        ("transfer_out", "a", bc, "credit_line", None, -9),
        ("transfer_in", "a", own, "credit", None, 9),
    ]
    assert moved(book, "transfer_balance", **credit(2, "to_business_center")) == [
        ("transfer_out", "a", own, "credit", None, -2),
        ("transfer_in", "a", bc, "credit_line", None, 2),
    ]
    assert moved(book, "repay_credit", amount=7) == [("credit_repayment", None, bc, "credit_line", None, 7)]
    center = book.rules.business_centers["b"]
    assert (center.cash, center.credit_limit, center.credit_used, book.rules.accounts["a"].credit) == (50, 30, 0, 7)


def test_the_grant_commands_write_who_holds_what_where() -> None:
    book = Book()
    bc, own = "business_center", "ad_account"
    assert moved(book, "grant_voucher", voucher_id="v", amount=3) == [("grant", None, bc, "voucher", "v", 3)]
    assert moved(book, "grant_voucher", voucher_id="w", amount=4, ad_account_id="a") == [
        ("grant", "a", own, "voucher", "w", 4)
    ]
    assert moved(book, "grant_ad_credit", ad_credit_id="x", amount=6) == [("grant", None, bc, "ad_credit", "x", 6)]
    for amount in (4, 2):  # the second time to the same holding, and to the last micro
        assert moved(book, "allocate_ad_credit", ad_credit_id="x", ad_account_id="a", amount=amount) == [
            ("allocation_out", None, bc, "ad_credit", "x", -amount),
            ("allocation_in", "a", own, "ad_credit", "x", amount),
        ]
    assert book.do("allocate_ad_credit", ad_credit_id="x", ad_account_id="a", amount=1) == "insufficient_funds"
    assert book.do("allocate_ad_credit", ad_credit_id="y", ad_account_id="a", amount=1) == "not_found"
    assert len(book.rules.business_centers["b"].grants["ad_credit", "x"].holdings) == 2


def test_the_first_entry_of_a_command_carries_it_and_the_rest_are_counted() -> None:
    book = Book()
    book.do("grant_ad_credit", ad_credit_id="x", amount=6)
    entries = written(book, "allocate_ad_credit", ad_credit_id="x", ad_account_id="a", amount=4)
    assert [(entry[0].kind, entry[4]) for entry in entries] == [
        ("allocation_out", 0),
        ("allocation_in", 1),
        ("resume", 2),
    ]
    assert [details(entry).get("command") for entry in entries] == [{"type": "allocate_ad_credit"}, None, None]
    assert len({entry[3] for entry in entries}) == 1
    assert all(entry[2] == NOON for entry in entries)


def test_enabling_moves_cash_credit_and_untied_vouchers_and_says_who_is_left_out() -> None:
    book = Book()
    book.open("p", billing="prepay")
    book.do("set_credit_line", limit=40)
    book.do("deposit_cash", amount=5, ad_account_id="a")
    book.do("transfer_balance", **credit(9))
    for name, campaigns in (("v", None), ("tied", ["c"])):
        book.do("grant_voucher", voucher_id=name, amount=3, ad_account_id="a", campaign_ids=campaigns)
    entries = written(book, "enable_automatic_allocation")
    assert [movement(entry) for entry in entries] == [
        ("automatic_allocation_enabled", None, None, None, None, None),
        ("transfer_out", "a", "ad_account", "cash", None, -5),
        ("transfer_in", "a", "business_center", "cash", None, 5),
        ("transfer_out", "a", "ad_account", "credit", None, -9),
        ("transfer_in", "a", "business_center", "credit_line", None, 9),
        ("transfer_out", "a", "ad_account", "voucher", "v", -3),
        ("transfer_in", "a", "business_center", "voucher", "v", 3),
        ("budget_synced", "a", None, None, None, None),
    ]
    assert details(entries[0]) == {
        "command": {"type": "enable_automatic_allocation"},
        "via": "topic",
        "left_out": [{"ad_account_id": "p", "reason": "not_monthly_invoicing"}],
        "participants": ["a"],
    }
    assert details(entries[-1]) == {
        "mode": "custom",
        "amount": 5 + 9 + 3 + 3,
        "spent": 0,
        "started_at": NOON,
        "restarted": True,
        "day": "2027-03-10",
        "changes_today": 0,
    }
    account = book.rules.accounts["a"]
    assert account.budget.started_position == len(book.rules.entries)
    assert (account.cash, account.credit, account.vouchers.total, account.vouchers.tied) == (0, 0, 3, 3)
    assert book.rules.business_centers["b"].credit_used == 0


@pytest.mark.parametrize(
    ("fields", "left_out"),
    [
        ({}, None),
        ({"owned": False}, "not_owned"),
        ({"buying_type": "reservation"}, "not_auction"),
        ({"billing": "prepay"}, "not_monthly_invoicing"),
    ],
)
@pytest.mark.parametrize("enabled", [True, False])
def test_opening_an_account_says_whether_it_takes_part(
    fields: dict[str, Any], left_out: str | None, enabled: bool
) -> None:
    book = Book()
    if enabled:
        book.do("enable_automatic_allocation")
    opened = {
        "billing": "monthly_invoicing",
        "buying_type": "auction",
        "time_zone": "Asia/Tokyo",
        "owned": True,
        **fields,
    }
    first, pause = written(book, "open_ad_account", ad_account_id="n", **opened)
    assert (first[0].kind, first[0].ad_account_id) == ("ad_account_opened", "n")
    takes_part = enabled and left_out is None
    assert details(first) == {
        "command": {"type": "open_ad_account"},
        "via": "topic",
        **opened,
        "automatic_allocation": takes_part,
        "left_out": left_out,
    }
    cause = "business_center_balance" if takes_part else "ad_account_balance"
    assert (pause[0].kind, pause[0].cause, details(pause)) == ("pause", cause, {"causes": [cause]})


def test_opening_a_business_center_says_its_currency_zone_and_roles() -> None:
    rules = Book()
    fields: dict[str, Any] = {"currency": "EUR", "time_zone": "Asia/Tokyo", "finance_roles": False}
    [entry] = written(rules, "open_business_center", business_center_id="n", **fields)
    assert (entry[0].kind, entry[0].business_center_id) == ("business_center_opened", "n")
    assert details(entry) == {"command": {"type": "open_business_center"}, "via": "topic", **fields}


def test_what_is_open_already_is_not_opened_again_wherever_it_is() -> None:
    book = Book()
    assert book.do("open_business_center", currency="USD", time_zone="UTC", finance_roles=True) == "already_exists"
    assert book.open("a") == "already_exists"
    book.rules.accounts_elsewhere = {"far"}
    assert book.open("far") == "already_exists"
    assert book.open("n", zone="Mars/Olympus") == "invalid"
    bad: dict[str, Any] = {"currency": "USD", "time_zone": "Mars/Olympus", "finance_roles": True}
    assert book.do("open_business_center", business_center_id="n", **bad) == "invalid"


def test_setting_and_resetting_budgets_write_the_budget_as_it_now_is() -> None:
    book = Book()
    book.do("deposit_cash", amount=100, ad_account_id="a")
    [first] = written(book, "set_budget", ad_account_id="a", mode="custom", amount=30)
    book.spend(8)
    [second] = written(book, "set_budget", ad_account_id="a", mode="custom", amount=40)
    [reset] = written(book, "reset_budget", ad_account_id="a")
    [daily] = written(book, "set_budget", ad_account_id="a", mode="daily", amount=50)
    assert [entry[0].kind for entry in (first, second, reset, daily)] == ["budget_set"] * 2 + [
        "budget_reset",
        "budget_set",
    ]
    names = ("mode", "amount", "spent", "started_at", "restarted", "day", "changes_today")
    assert [tuple(details(entry)[name] for name in names) for entry in (first, second, reset, daily)] == [
        ("custom", 30, 0, NOON, True, "2027-03-10", 1),
        ("custom", 40, 8, NOON, False, "2027-03-10", 2),
        ("custom", 40, 0, NOON, True, "2027-03-10", 2),
        ("daily", 50, 0, None, False, "2027-03-10", 3),
    ]


def test_setting_a_campaigns_budget_writes_the_campaign_its_mode_and_amount() -> None:
    book = Book()
    [entry] = written(book, "set_campaign_budget", ad_account_id="a", campaign_id="c", mode="lifetime", amount=9)
    assert (entry[0].kind, entry[0].ad_account_id, entry[0].campaign_id) == ("campaign_budget_set", "a", "c")
    assert details(entry) == {
        "command": {"type": "set_campaign_budget"},
        "via": "topic",
        "mode": "lifetime",
        "amount": 9,
    }


def test_an_account_set_to_unlimited_gets_a_synced_budget_and_one_with_a_finite_budget_does_not() -> None:
    for mode, amount in (("unlimited", None), ("daily", 5), ("monthly", 5), ("custom", 5)):
        book = Book()
        book.do("set_budget", ad_account_id="a", mode=mode, amount=amount)
        kinds = [entry[0].kind for entry in written(book, "enable_automatic_allocation")]
        assert ("budget_synced" in kinds) == (mode == "unlimited")


# ---- Refusals at the edge -------------------------------------------------------------------------------------------


def test_a_refusal_has_a_code_and_a_sentence() -> None:
    refused = Refused("invalid", "no")
    assert (refused.code, refused.message, str(refused)) == ("invalid", "no", "no")


def test_a_balance_may_reach_the_last_of_64_bits() -> None:
    assert LARGEST_BALANCE == 9_223_372_036_854_775_807
    require_room(LARGEST_BALANCE - 1, 1)
    with pytest.raises(Refused):
        require_room(LARGEST_BALANCE, 1)


def test_each_balance_is_kept_within_64_bits() -> None:
    book = Book()
    center, account = book.rules.business_centers["b"], book.rules.accounts["a"]
    book.do("grant_ad_credit", ad_credit_id="x", amount=5)
    give_pockets_of_their_own(center, account)
    commands: list[tuple[Any, str, str, dict[str, Any]]] = [
        (center, "cash", "deposit_cash", {}),
        (account, "cash", "deposit_cash", {"ad_account_id": "a"}),
        (center.vouchers, "total", "grant_voucher", {"voucher_id": "v"}),
        (account.vouchers, "total", "grant_voucher", {"voucher_id": "v", "ad_account_id": "a"}),
        (center.ad_credits, "total", "grant_ad_credit", {"ad_credit_id": "y"}),
        (account.ad_credits, "total", "allocate_ad_credit", {"ad_credit_id": "x", "ad_account_id": "a"}),
        (account, "credit", "transfer_balance", credit(1)),
        (center, "cash", "transfer_balance", {**credit(1, "to_business_center"), "pocket": "cash"}),
    ]
    for holder, name, command, fields in commands:
        before = getattr(holder, name)
        setattr(holder, name, LARGEST_BALANCE)
        assert book.do(command, **{**fields, "amount": 1}) == "invalid", command
        assert overflows(account, 1)
        assert not overflows(account, 0)
        setattr(holder, name, before)
    assert not overflows(account, 1)
    center.credit_used = -LARGEST_BALANCE
    assert book.do("set_credit_line", limit=1) == "invalid"
    assert book.do("transfer_balance", **credit(1, "to_business_center")) == "invalid"
    assert overflows(account, 1)
    assert book.do("set_credit_line", limit=0) is None


def give_pockets_of_their_own(center: BusinessCenter, account: AdAccount) -> None:
    """As the first grant does: a test may then set what they hold."""
    for holder in (center, account):
        for kind in ("vouchers", "ad_credits"):
            if getattr(holder, kind) is NO_GRANTS:
                setattr(holder, kind, GrantPocket())


def test_enabling_is_refused_where_the_balances_do_not_fit_together() -> None:
    for name in ("cash", "voucher"):
        book = Book()
        center, account = book.rules.business_centers["b"], book.rules.accounts["a"]
        if name == "cash":
            center.cash, account.cash = LARGEST_BALANCE, 1
        else:
            give_pockets_of_their_own(center, account)
            center.vouchers.total, account.vouchers.total = LARGEST_BALANCE, 1
        assert book.do("enable_automatic_allocation") == "invalid"
        assert not account.participates


def test_enabling_is_refused_where_the_credit_of_the_accounts_does_not_fit_in_the_line() -> None:
    book = Book()
    book.do("set_credit_line", limit=LARGEST_AMOUNT)
    for number in range(10):
        book.open(f"a-{number}")
        assert book.do("transfer_balance", **{**credit(LARGEST_AMOUNT), "ad_account_id": f"a-{number}"}) is None
        assert book.do("repay_credit", amount=LARGEST_AMOUNT) is None
    center, before = book.rules.business_centers["b"], len(book.rules.entries)
    assert book.do("enable_automatic_allocation") == "invalid"
    assert (center.automatic_since, len(book.rules.entries)) == (None, before)
    book.do("transfer_balance", **{**credit(LARGEST_AMOUNT, "to_business_center"), "ad_account_id": "a-0"})
    book.do("set_credit_line", limit=0)
    book.do("deposit_cash", amount=1, ad_account_id="a")
    center.credit_used += 10 * LARGEST_AMOUNT - LARGEST_BALANCE
    assert book.do("enable_automatic_allocation") is None, "to the last of 64 bits they fit"
    assert center.credit_available == LARGEST_BALANCE


def test_a_synced_budget_may_be_more_than_any_one_balance() -> None:
    book = Book()
    account = book.rules.accounts["a"]
    account.cash = account.credit = LARGEST_BALANCE
    assert book.do("enable_automatic_allocation") is None
    assert account.budget.amount == 2 * LARGEST_BALANCE


def test_a_grant_expires_in_the_future_and_a_tied_voucher_names_campaigns_and_an_account() -> None:
    book = Book()
    voucher: dict[str, Any] = {"voucher_id": "v", "amount": 1}
    assert book.do("grant_voucher", **voucher, expires_at=NOON) == "invalid"
    assert book.do("grant_ad_credit", ad_credit_id="x", amount=1, expires_at=NOON) == "invalid"
    assert book.do("grant_voucher", **voucher, campaign_ids=[], ad_account_id="a") == "invalid"
    assert book.do("grant_voucher", **voucher, campaign_ids=["c"]) == "invalid"
    assert book.do("grant_voucher", **voucher, expires_at=NOON + 1) is None
    assert book.do("grant_voucher", **voucher) == "already_exists"
    assert book.do("grant_ad_credit", ad_credit_id="v", amount=1) is None


def test_amounts_of_commands_are_above_zero_and_an_unlimited_budget_has_none() -> None:
    book = Book()
    for command, fields in (
        ("deposit_cash", {}),
        ("repay_credit", {}),
        ("grant_voucher", {"voucher_id": "v"}),
        ("grant_ad_credit", {"ad_credit_id": "x"}),
        ("allocate_ad_credit", {"ad_credit_id": "x", "ad_account_id": "a"}),
        ("transfer_balance", {**credit(0)}),
        ("set_budget", {"ad_account_id": "a", "mode": "daily"}),
        ("set_campaign_budget", {"ad_account_id": "a", "campaign_id": "c", "mode": "daily"}),
    ):
        assert book.do(command, **{**fields, "amount": 0}) == "invalid", command
    assert book.do("set_budget", ad_account_id="a", mode="daily") == "invalid"
    assert book.do("set_budget", ad_account_id="a", mode="unlimited", amount=1) == "invalid"


def test_every_command_needs_a_role_and_its_business_center() -> None:
    book = Book()
    book.do("set_credit_line", limit=9)
    book.do("transfer_balance", **credit(5))
    book.do("grant_ad_credit", ad_credit_id="x", amount=1)
    grant: dict[str, Any] = {"amount": 1}
    commands: dict[str, dict[str, Any]] = {
        "deposit_cash": grant,
        "set_credit_line": {"limit": 1},
        "repay_credit": grant,
        "grant_voucher": {**grant, "voucher_id": "v"},
        "grant_ad_credit": {**grant, "ad_credit_id": "y"},
        "allocate_ad_credit": {**grant, "ad_credit_id": "x", "ad_account_id": "a"},
        "transfer_balance": credit(1),
        "enable_automatic_allocation": {},
        "disable_automatic_allocation": {},
        "set_budget": {"ad_account_id": "a", "mode": "unlimited"},
        "reset_budget": {"ad_account_id": "a"},
        "set_campaign_budget": {"ad_account_id": "a", "campaign_id": "c", "mode": "unlimited"},
        "open_ad_account": {
            "ad_account_id": "n",
            "billing": "prepay",
            "buying_type": "auction",
            "time_zone": "UTC",
            "owned": True,
        },
    }
    before = len(book.rules.entries)
    for command, fields in commands.items():
        assert book.do(command, "finance_analyst", **fields) == "permission_denied", command
        assert book.do(command, business_center_id="nobody", **fields) == "not_found", command
        if "ad_account_id" in fields and command != "open_ad_account":
            assert book.do(command, **{**fields, "ad_account_id": "nobody"}) == "not_found", command
    opening: dict[str, Any] = {"business_center_id": "n", "currency": "USD", "time_zone": "UTC", "finance_roles": False}
    assert book.do("open_business_center", "finance_manager", **opening) == "permission_denied"
    assert len(book.rules.entries) == before


def test_all_that_is_held_can_be_transferred_and_repaid_but_not_one_more() -> None:
    book = Book()
    book.do("deposit_cash", amount=10)
    book.do("set_credit_line", limit=6)
    cash = {**credit(0), "pocket": "cash"}
    back = {**cash, "direction": "to_business_center"}
    assert book.do("transfer_balance", **{**cash, "amount": 11}) == "insufficient_funds"
    assert book.do("transfer_balance", **{**cash, "amount": 10}) is None
    assert book.do("transfer_balance", **credit(7)) == "insufficient_funds"
    assert book.do("transfer_balance", **credit(6)) is None
    assert book.do("transfer_balance", **{**back, "amount": 11}) == "insufficient_funds"
    assert book.do("transfer_balance", **{**back, "amount": 10}) is None
    assert book.do("repay_credit", amount=7) == "invalid"
    assert book.do("repay_credit", amount=6) is None


# ---- Pauses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ("deposit_cash", {"amount": 1}),
        ("set_credit_line", {"limit": 1}),
        ("grant_voucher", {"voucher_id": "v", "amount": 1}),
    ],
)
def test_anything_for_the_business_center_resumes_its_participants_and_nobody_else(
    command: tuple[str, dict[str, Any]],
) -> None:
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


def test_only_the_last_pocket_of_the_business_center_pauses_and_each_pause_says_all_causes() -> None:
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


def test_a_campaign_that_only_others_vouchers_could_pay_for_stops_alone_until_money_comes() -> None:
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


def test_a_campaign_with_a_voucher_of_its_own_delivers_though_another_is_tied_to_others() -> None:
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


def test_a_new_policy_holds_for_accounts_and_for_the_spends_after_it() -> None:
    book = Book()
    book.do("deposit_cash", amount=5, ad_account_id="a")
    book.rules.begin(NOON, Policy("no-cash", ad_account=("voucher",)))
    assert [(line.kind, line.cause) for line, *_ in book.rules.entries] == [("pause", "ad_account_balance")]
    assert book.spend(2) == [("ad_account_balance", 2)]
    book.rules.begin(NOON, STANDARD)
    assert book.spend(2) == [("cash", -2)]


# ---- Reversals and expiry -------------------------------------------------------------------------------------------


def test_a_reversal_writes_what_it_reverses_and_why() -> None:
    book = Book()
    book.do("deposit_cash", amount=3, ad_account_id="a")
    book.do("grant_voucher", voucher_id="v", amount=5, ad_account_id="a")
    charge(book, 1, 10, at=NOON - 1)
    position = book.rules.position + len(book.rules.entries) - 3
    before = len(book.rules.entries)
    event = book.event(9, reverses=UUID(int=1).bytes, at=NOON)
    assert book.rules.event((*event[:8], "fraud"))[0] == "charged"
    entries = book.rules.entries[before:]
    assert [movement(entry) for entry in entries] == [
        ("reversal", "a", None, None, None, -2),
        ("reversal", "a", "ad_account", "cash", None, 3),
        ("reversal", "a", "ad_account", "voucher", "v", 4),
        ("resume", "a", None, None, None, None),
    ]
    assert entries[0][0].cause == "ad_account_balance"
    for line, _, at, source, _, day, period in entries[:3]:
        assert (line.reverses, at, source, day, period) == (UUID(int=1).bytes, NOON, event[0], TODAY, TODAY)
        assert json.loads(line.details or "") == {
            "spend_occurred_at": NOON - 1,
            "spend_position": position,
            "reason": "fraud",
        }
    assert [entry[4] for entry in entries] == [0, 1, 2, 3]
    assert reverse(book, 1, 2) == "reversal_exceeds_spend"
    before = len(book.rules.entries)
    assert reverse(book, 1, 1) == "charged"
    [last] = book.rules.entries[before:]
    assert (movement(last), sorted(details(last))) == (
        ("reversal", "a", "ad_account", "voucher", "v", 1),
        ["spend_occurred_at", "spend_position"],
    )


def test_a_spend_of_the_batch_before_is_reversed_at_its_own_position() -> None:
    book = Book()
    book.do("deposit_cash", amount=30, ad_account_id="a")
    charge(book, 1, 4)
    charge(book, 2, 5)
    position = book.rules.position + len(book.rules.entries)
    book.later(NOON)
    for amount in (2, 3):
        before = len(book.rules.entries)
        assert reverse(book, 2, amount) == "charged"
        assert details(book.rules.entries[before])["spend_position"] == position
    assert reverse(book, 2, 1) == "reversal_exceeds_spend"
    assert reverse(book, 1, 5) == "reversal_exceeds_spend"
    book.later(NOON)
    assert reverse(book, 2, 1) == "reversal_exceeds_spend"


def test_a_reversal_that_no_balance_could_hold_is_invalid() -> None:
    book = Book()
    book.do("deposit_cash", amount=30, ad_account_id="a")
    charge(book, 1, 4)
    book.rules.accounts["a"].cash = LARGEST_BALANCE - 3
    assert reverse(book, 1, 4) == "invalid"
    assert reverse(book, 1, 3) == "charged"


def test_a_reversal_can_not_be_reversed() -> None:
    book = Book()
    book.do("deposit_cash", amount=30, ad_account_id="a")
    charge(book, 1, 4)
    charge(book, 2, 1, reverses=UUID(int=1).bytes)
    assert reverse(book, 2, 1) == "unknown_reversal"


def test_account_credit_of_a_participant_returns_to_the_credit_line_and_that_of_others_to_them() -> None:
    for enabled in (False, True):
        book = Book()
        book.do("set_budget", ad_account_id="a", mode="custom", amount=1000)
        book.do("set_credit_line", limit=10)
        book.do("transfer_balance", **credit(6))
        charge(book, 1, 4)
        if enabled:
            book.do("enable_automatic_allocation")
        before = len(book.rules.entries)
        assert reverse(book, 1, 3) == "charged"
        holder, pocket = ("business_center", "credit_line") if enabled else ("ad_account", "credit")
        assert movement(book.rules.entries[before]) == ("reversal", "a", holder, pocket, None, 3)
        center, account = book.rules.business_centers["b"], book.rules.accounts["a"]
        assert (center.credit_used, account.credit) == ((1, 0) if enabled else (6, 5))


def test_what_the_business_center_paid_returns_to_it() -> None:
    book = Book()
    book.do("set_budget", ad_account_id="a", mode="custom", amount=1000)
    book.do("enable_automatic_allocation")
    book.do("deposit_cash", amount=4)
    book.do("set_credit_line", limit=4)
    book.do("grant_voucher", voucher_id="v", amount=4)
    charge(book, 1, 12)
    before = len(book.rules.entries)
    assert reverse(book, 1, 11) == "charged"
    bc = "business_center"
    assert [movement(entry) for entry in book.rules.entries[before:]] == [
        ("reversal", "a", bc, "credit_line", None, 4),
        ("reversal", "a", bc, "cash", None, 4),
        ("reversal", "a", bc, "voucher", "v", 3),
        ("resume", "a", None, None, None, None),
    ]


def test_the_part_of_an_expired_grant_is_forfeited() -> None:
    book = Book()
    book.do("grant_voucher", voucher_id="v", amount=5, ad_account_id="a", expires_at=NOON + 1)
    charge(book, 1, 4)
    book.later(NOON + 1)
    assert [movement(entry) for entry in book.rules.entries] == [
        ("expiry", "a", "ad_account", "voucher", "v", -1),
        ("pause", "a", None, None, None, None),
    ]
    before = len(book.rules.entries)
    assert reverse(book, 1, 4) == "charged"
    assert [movement(entry) for entry in book.rules.entries[before:]] == [("forfeit", "a", None, None, "v", 4)]
    assert book.rules.accounts["a"].vouchers.total == 0


def test_an_ad_credit_expires_in_the_pool_and_in_every_account_even_where_the_pool_has_nothing_left() -> None:
    for allocated in (10, 7):
        book = Book()
        book.open("second")
        book.do("grant_ad_credit", ad_credit_id="x", amount=10, expires_at=NOON + HOUR)
        book.do("allocate_ad_credit", ad_credit_id="x", ad_account_id="a", amount=allocated - 2)
        book.do("allocate_ad_credit", ad_credit_id="x", ad_account_id="second", amount=2)
        book.later(NOON + HOUR)
        pool = [("expiry", None, "business_center", "ad_credit", "x", -3)] if allocated == 7 else []
        assert [movement(entry) for entry in book.rules.entries] == [
            *pool,
            ("expiry", "a", "ad_account", "ad_credit", "x", 2 - allocated),
            ("expiry", "second", "ad_account", "ad_credit", "x", -2),
            ("pause", "a", None, None, None, None),
            ("pause", "second", None, None, None, None),
        ]


def test_a_shared_voucher_that_expires_pauses_the_participants() -> None:
    book = Book()
    book.do("set_budget", ad_account_id="a", mode="custom", amount=1000)
    book.do("enable_automatic_allocation")
    book.do("grant_voucher", voucher_id="v", amount=5, expires_at=NOON + HOUR)
    assert book.causes == []
    book.later(NOON + HOUR)
    assert book.causes == ["business_center_balance"]


def test_a_custom_budget_is_not_shrunk_by_the_reversal_of_a_spend_from_before_it() -> None:
    book = Book()
    book.do("deposit_cash", amount=100, ad_account_id="a")
    charge(book, 1, 8)
    book.do("set_budget", ad_account_id="a", mode="custom", amount=10)
    charge(book, 2, 6)
    reverse(book, 1, 8)
    assert book.rules.accounts["a"].budget.counted == 6
    reverse(book, 2, 5)
    assert book.rules.accounts["a"].budget.counted == 1


def test_a_part_taken_back_before_is_the_overdelivered_one_then_the_last_drawn() -> None:
    parts = [
        Part("ad_account", "voucher", "v", None, 5),
        Part("ad_account", "cash", None, None, 3),
        Part(None, None, None, "ad_account_balance", 2),
    ]
    spend = ChargedSpend("b", "a", "c", NOON, 1, TODAY, TODAY, parts)
    take_back(spend, 4)
    assert ([part.left for part in parts], spend.left()) == ([5, 1, 0], 6)


# ---- Time -----------------------------------------------------------------------------------------------------------


def test_the_next_timer_is_the_earliest_expiry_or_turn_over() -> None:
    book = Book()
    assert book.rules.next_due() is None
    book.do("grant_voucher", voucher_id="v", amount=5, expires_at=NOON + 2 * DAY_US)
    assert book.rules.next_due() == NOON + 2 * DAY_US
    book.do("set_budget", ad_account_id="a", mode="daily", amount=5)
    assert book.rules.next_due() == NOON + 12 * HOUR
    book.later(NOON + 12 * HOUR - 1)
    assert book.rules.next_due() == NOON + 12 * HOUR
    book.later(NOON + 12 * HOUR)
    assert book.rules.next_due() == NOON + 36 * HOUR


def test_a_batch_that_names_no_policy_keeps_the_one_before() -> None:
    book = Book()
    book.rules.begin(NOON)
    assert (book.rules.policy, book.rules.entries) == (STANDARD, [])


def test_time_never_goes_back() -> None:
    book = Book()
    book.later(NOON + HOUR)
    book.later(NOON)
    assert book.rules.now == NOON + HOUR


def test_changes_of_a_budget_are_those_of_its_accounts_day() -> None:
    book = Book()
    account = book.rules.accounts["a"]
    assert changes_today(account) == 0
    book.do("set_budget", ad_account_id="a", mode="daily", amount=5)
    assert changes_today(account) == 1
    book.later(NOON + 12 * HOUR)
    assert changes_today(account) == 0


def test_a_replay_knows_no_window() -> None:
    rules = Shard(STANDARD, None)
    book = Book()
    book.rules.set_window(None)
    book.do("deposit_cash", amount=9, ad_account_id="a")
    assert book.spend(1, at=NOON - 4000 * DAY_US) == [("cash", -1)]
    assert rules.next_due() is None


def test_exhausted_is_at_exactly_nothing_left() -> None:
    for spent, exhausted in ((99, False), (100, True), (101, True)):
        assert budget_of((TODAY, "daily", 100), spent={TODAY: spent}).exhausted(TODAY) == exhausted
    assert not budget_of((TODAY, "unlimited", None), spent={TODAY: 5}).exhausted(TODAY)


def test_the_period_of_a_spend_is_its_day_its_month_or_the_start_of_the_custom_budget() -> None:
    first = date(2027, 3, 1).toordinal()
    assert budget_of((TODAY - 9, "daily", 1)).period(TODAY - 1, TODAY) == TODAY - 1
    assert budget_of((TODAY - 9, "monthly", 1)).period(TODAY - 1, TODAY) == first
    custom = budget_of((TODAY - 9, "custom", 1))
    custom.start_counting(NOON, TODAY - 3, 7)
    assert custom.period(TODAY - 1, TODAY) == TODAY - 3
    assert (custom.counted, custom.started_at, custom.started_position) == (0, NOON, 7)


@pytest.mark.parametrize(
    ("zone", "day", "begins"),
    [
        # Half past eleven became half past twelve: the day begins at half past twelve.
        ("America/Toronto", date(1919, 3, 31), "1919-03-31T04:30:00+00:00"),
        # A minute after midnight it was 23:01 again: the first midnight counts.
        ("America/St_Johns", date(2010, 11, 7), "2010-11-07T02:30:00+00:00"),
    ],
)
def test_days_of_clocks_that_jump_around_midnight(zone: str, day: date, begins: str) -> None:
    assert zone_of(zone).start(day.toordinal()) == int(datetime.fromisoformat(begins).timestamp()) * 1_000_000


# ---- Policies and snapshots -----------------------------------------------------------------------------------------


def test_the_pockets_and_their_order_are_those_of_the_domain_page() -> None:
    assert AD_ACCOUNT_POCKETS == ("voucher", "ad_credit", "cash", "credit")
    assert BUSINESS_CENTER_POCKETS == ("voucher", "cash", "credit_line")
    assert STANDARD.content() == {
        "version": "standard-1",
        "ad_account": ["voucher", "ad_credit", "cash", "credit"],
        "business_center": ["voucher", "cash", "credit_line"],
    }
    assert policy_of({"version": "2", "ad_account": ["cash"], "business_center": []}) == Policy("2", ("cash",), ())


def test_a_snapshot_keeps_everything_and_decides_on_as_before() -> None:
    book = Book()
    book.open("second", zone="Asia/Tokyo")
    book.do("open_ad_account", ad_account_id="p", billing="prepay", buying_type="auction", time_zone="UTC", owned=False)
    book.do("set_credit_line", limit=20)
    book.do("transfer_balance", **credit(6))
    book.do("deposit_cash", amount=50, ad_account_id="a")
    book.do("grant_voucher", voucher_id="t", amount=3, ad_account_id="a", campaign_ids=["z", "y"], expires_at=NOON + 1)
    book.do("grant_voucher", voucher_id="v", amount=3)
    book.do("grant_ad_credit", ad_credit_id="x", amount=10)
    book.do("allocate_ad_credit", ad_credit_id="x", ad_account_id="a", amount=4)
    book.do("set_budget", ad_account_id="a", mode="monthly", amount=70)
    book.do("set_campaign_budget", ad_account_id="a", campaign_id="c", mode="lifetime", amount=60)
    for days in (0, 1, 30):
        book.later(NOON + days * DAY_US)
        book.spend(5, at=book.rules.now)
    again = Shard(Policy("other"), zones=INSTALLED)
    load_pieces(again, dump_pieces(book.rules))
    assert dump_pieces(again) == dump_pieces(book.rules)
    assert (again.now, again.policy) == (book.rules.now, STANDARD)
    assert again.position == again.batch.position == book.rules.position + len(book.rules.entries)
    assert again.next_due() == book.rules.next_due()
    event, found = book.event(100, at=NOON + 29 * DAY_US, id=77), []
    for rules in (again, book.rules):
        before = len(rules.entries)
        assert rules.event(event)[0] == "charged"
        found.append([movement(entry) for entry in rules.entries[before:]])
    assert found[0] == found[1]


def test_a_snapshot_keeps_that_a_campaign_is_stopped() -> None:
    book = Book()
    book.do("grant_voucher", voucher_id="v", amount=20, ad_account_id="a", campaign_ids=["other"])
    book.spend(1, "c")
    again = Shard(zones=INSTALLED)
    load_pieces(again, dump_pieces(book.rules))
    book.rules = again
    assert again.accounts["a"].campaigns["c"].causes == len(again.accounts["a"].stopped_campaigns) == 1
    book.do("deposit_cash", amount=1, ad_account_id="a")
    assert again.accounts["a"].campaigns["c"].causes == len(again.accounts["a"].stopped_campaigns) == 0


def test_halves_go_to_the_even_neighbour() -> None:
    assert [divide_half_even(number, 2) for number in range(-5, 10, 2)] == [-2, -2, 0, 0, 2, 2, 4, 4]


def test_what_an_account_brings_keeps_it_delivering() -> None:
    book = Book()
    book.do("deposit_cash", amount=5, ad_account_id="a")
    book.do("enable_automatic_allocation")
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


def test_a_budget_of_all_times_and_an_untouched_month_hold_a_late_spend() -> None:
    assert budget_of((TODAY - 3, "daily", 10), (TODAY, "lifetime", 7)).room(TODAY - 1, TODAY) == 7
    assert budget_of((TODAY - 60, "monthly", 600), spent={TODAY: 99}).room(TODAY - 40, TODAY) == 600


def test_a_reset_budget_counts_the_very_next_spend_and_not_the_one_before() -> None:
    book = Book()
    book.do("deposit_cash", amount=100, ad_account_id="a")
    book.do("set_budget", ad_account_id="a", mode="custom", amount=30)
    charge(book, 1, 8)
    book.do("reset_budget", ad_account_id="a")
    charge(book, 2, 3)
    assert book.rules.accounts["a"].budget.counted == 3
    reverse(book, 1, 8)
    assert book.rules.accounts["a"].budget.counted == 3


def test_a_reversal_that_comes_twice_is_a_duplicate() -> None:
    book = Book()
    book.do("deposit_cash", amount=9, ad_account_id="a")
    charge(book, 1, 8)
    event = book.event(2, reverses=UUID(int=1).bytes)
    assert [book.rules.event(event)[0] for _ in range(2)] == ["charged", "duplicate"]


def test_a_day_has_24_hours_and_json_one_form() -> None:
    assert DAY_US == 24 * HOUR
    assert canonical_json({"b": [1, 2], "a": "é"}) == '{"a":"\\u00e9","b":[1,2]}'
