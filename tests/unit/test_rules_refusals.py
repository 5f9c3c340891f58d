"""The exact bounds of refusals: one micro more is refused, one micro less is accepted."""

from typing import Any

import pytest

from shared.rules.money import LARGEST_BALANCE
from shared.rules.refusal import Refused, require_room
from tests.unit.test_rules_tables import NOON, Book
from tests.unit.what_is_written import credit, give_own_pockets


def test_a_refusal_has_a_code_and_a_message() -> None:
    refused = Refused("invalid", "no")
    assert (refused.code, refused.message, str(refused)) == ("invalid", "no", "no")


def test_a_balance_may_reach_the_largest_64_bit_number() -> None:
    assert LARGEST_BALANCE == 9_223_372_036_854_775_807
    require_room(LARGEST_BALANCE - 1, 1)
    with pytest.raises(Refused):
        require_room(LARGEST_BALANCE, 1)


def test_each_balance_is_kept_within_64_bits() -> None:
    book = Book()
    center, account = book.rules.business_centers["b"], book.rules.accounts["a"]
    book.do("grant_ad_credit", ad_credit_id="x", amount=5)
    give_own_pockets(center, account)
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
        setattr(holder, name, before)
    center.credit_used = -LARGEST_BALANCE
    assert book.do("set_credit_line", limit=1) == "invalid"
    assert book.do("transfer_balance", **credit(1, "to_business_center")) == "invalid"
    assert book.do("set_credit_line", limit=0) is None


def test_an_account_or_business_center_that_exists_anywhere_cannot_be_opened_again() -> None:
    book = Book()
    assert book.do("open_business_center", currency="USD", time_zone="UTC", finance_roles=True) == "already_exists"
    assert book.open("a") == "already_exists"
    book.rules.accounts_elsewhere = {"far"}
    assert book.open("far") == "already_exists"
    assert book.open("n", zone="Mars/Olympus") == "invalid"
    bad: dict[str, Any] = {"currency": "USD", "time_zone": "Mars/Olympus", "finance_roles": True}
    assert book.do("open_business_center", business_center_id="n", **bad) == "invalid"


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


def test_the_whole_balance_can_be_transferred_and_repaid_but_no_more() -> None:
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
