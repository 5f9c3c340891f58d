"""What a command may hold, and the entries that commands write: their holders, pockets and details."""

from dataclasses import MISSING, fields
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from shared.contracts.commands import TIMES, AnyCommand
from shared.contracts.fields import AMOUNT_PATTERN, TIME_PATTERN
from shared.rules import vocabulary
from shared.rules.command_types import AMOUNTS, COMMANDS
from tests.unit.test_rules_tables import NOON, Book
from tests.unit.what_is_written import credit, details, moved, written

MESSAGES: dict[str, type[BaseModel]] = {
    get_args(message.model_fields["type"].annotation)[0]: message for message in get_args(get_args(AnyCommand)[0])
}
# `role` is the actor's; the other fields decide nothing.
NOT_IN_THE_RULES = {"command_id", "type", "issued_at", "actor", "preview"}


@pytest.mark.parametrize("type_", vocabulary.COMMAND_TYPES)
def test_the_rules_take_every_field_of_the_message_that_may_decide_something(type_: str) -> None:
    message = MESSAGES[type_].model_fields
    taken = {field.name: field.default is MISSING for field in fields(COMMANDS[type_])}
    assert taken.keys() - {"role"} == message.keys() - NOT_IN_THE_RULES
    # The ledger keeps a message with the values that were left out, and leaves out those that are null.
    nullable = {name for name, field in message.items() if field.default is None}
    assert {name for name, needed in taken.items() if not needed} == nullable - NOT_IN_THE_RULES


def test_every_amount_and_time_of_a_message_is_declared_as_such() -> None:
    """One that is not would reach the rules as text, and the policy's `largest_amount` would not bound it."""
    fields = [each for message in MESSAGES.values() for each in message.model_json_schema()["properties"].items()]
    assert {name for name, field in fields if AMOUNT_PATTERN in patterns_of(field)} == set(AMOUNTS)
    assert {name for name, field in fields if TIME_PATTERN in patterns_of(field)} == set(TIMES)


def patterns_of(field: dict[str, Any]) -> list[str | None]:
    return [each.get("pattern") for each in (field, *field.get("anyOf", ()))]


def test_every_command_has_a_type_in_the_rules() -> None:
    assert tuple(COMMANDS) == tuple(MESSAGES) == vocabulary.COMMAND_TYPES


def test_money_commands_write_the_amount_holder_and_pocket() -> None:
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


def test_grant_commands_write_the_amount_holder_and_pocket() -> None:
    book = Book()
    bc, own = "business_center", "ad_account"
    assert moved(book, "grant_voucher", voucher_id="v", amount=3) == [("grant", None, bc, "voucher", "v", 3)]
    assert moved(book, "grant_voucher", voucher_id="w", amount=4, ad_account_id="a") == [
        ("grant", "a", own, "voucher", "w", 4)
    ]
    assert moved(book, "grant_ad_credit", ad_credit_id="x", amount=6) == [("grant", None, bc, "ad_credit", "x", 6)]
    for amount in (4, 2):  # the second allocation goes to the same holding, and takes the last micro
        assert moved(book, "allocate_ad_credit", ad_credit_id="x", ad_account_id="a", amount=amount) == [
            ("allocation_out", None, bc, "ad_credit", "x", -amount),
            ("allocation_in", "a", own, "ad_credit", "x", amount),
        ]
    assert book.do("allocate_ad_credit", ad_credit_id="x", ad_account_id="a", amount=1) == "insufficient_funds"
    assert book.do("allocate_ad_credit", ad_credit_id="y", ad_account_id="a", amount=1) == "not_found"
    assert len(book.rules.business_centers["b"].grants["ad_credit", "x"].holdings) == 2


def test_the_first_entry_of_a_command_contains_it_and_the_rest_are_numbered() -> None:
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


def test_opening_a_business_center_writes_its_currency_zone_and_roles() -> None:
    rules = Book()
    fields: dict[str, Any] = {"currency": "EUR", "time_zone": "Asia/Tokyo", "finance_roles": False}
    [entry] = written(rules, "open_business_center", business_center_id="n", **fields)
    assert (entry[0].kind, entry[0].business_center_id) == ("business_center_opened", "n")
    assert details(entry) == {"command": {"type": "open_business_center"}, "via": "topic", **fields}


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
def test_opening_an_account_writes_whether_it_participates(
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


def test_setting_and_resetting_a_budget_write_its_new_state() -> None:
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


def test_setting_a_campaign_budget_writes_the_campaign_mode_and_amount() -> None:
    book = Book()
    [entry] = written(book, "set_campaign_budget", ad_account_id="a", campaign_id="c", mode="lifetime", amount=9)
    assert (entry[0].kind, entry[0].ad_account_id, entry[0].campaign_id) == ("campaign_budget_set", "a", "c")
    assert details(entry) == {
        "command": {"type": "set_campaign_budget"},
        "via": "topic",
        "mode": "lifetime",
        "amount": 9,
    }
