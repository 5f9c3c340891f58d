"""Reversals: what returns to which holder, and what the entries say of the spend."""

import json
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from shared.rules.money import LARGEST_BALANCE
from shared.rules.policy import STANDARD
from shared.rules.reversals import ChargedSpend, Part, take_back
from shared.rules.versions import RETURNS_COUNTED
from tests.unit.test_rules_tables import NOON, TODAY, Book
from tests.unit.what_is_written import charge, credit, details, give_own_pockets, movement, reverse


def test_a_reversal_writes_its_spend_and_its_reason() -> None:
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


def test_a_spend_of_the_previous_batch_is_reversed_at_its_own_position() -> None:
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


def test_a_reversal_too_large_for_any_balance_is_invalid() -> None:
    book = Book()
    book.do("deposit_cash", amount=30, ad_account_id="a")
    charge(book, 1, 4)
    book.rules.accounts["a"].cash = LARGEST_BALANCE - 3
    assert reverse(book, 1, 4) == "invalid"
    assert reverse(book, 1, 3) == "charged"


ACCOUNT_FIELDS = (("account", "cash"), ("account", "credit"), ("account", "vouchers"), ("account", "ad_credits"))
CENTER_FIELDS = (("center", "cash"), ("center", "vouchers"), ("center", "ad_credits"), ("center", "credit_used"))


def fill_up(book: Book, field: tuple[str, str], room: int) -> None:
    """Let a balance hold as much as 64 bits do, less some room."""
    center, account = book.rules.business_centers["b"], book.rules.accounts["a"]
    give_own_pockets(center, account)
    owner, (_, name) = account if field[0] == "account" else center, field
    if name == "credit_used":
        center.credit_used = center.credit_limit - (LARGEST_BALANCE - room)
    elif name in ("vouchers", "ad_credits"):
        getattr(owner, name).total = LARGEST_BALANCE - room
    else:
        setattr(owner, name, LARGEST_BALANCE - room)


SHARES: list[dict[str, Any]] = [
    {"type": "enable_automatic_allocation"},
    {"type": "set_budget", "ad_account_id": "a", "mode": "unlimited", "amount": None},
]
# What gives the account money before the spend, what happens after it, and the balance to which the money returns.
RETURNS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], tuple[str, str] | None]] = {
    "own cash": ([{"type": "deposit_cash", "ad_account_id": "a"}], [], ("account", "cash")),
    "own credit": (
        [{"type": "set_credit_line", "limit": 9}, {"type": "transfer_balance", **credit(4)}],
        [],
        ("account", "credit"),
    ),
    "own voucher": ([{"type": "grant_voucher", "voucher_id": "v", "ad_account_id": "a"}], [], ("account", "vouchers")),
    "ad credit": (
        [
            {"type": "grant_ad_credit", "ad_credit_id": "x"},
            {"type": "allocate_ad_credit", "ad_credit_id": "x", "ad_account_id": "a"},
        ],
        [],
        ("account", "ad_credits"),
    ),
    "shared cash": ([*SHARES, {"type": "deposit_cash"}], [], ("center", "cash")),
    "shared voucher": (
        [*SHARES, {"type": "grant_voucher", "voucher_id": "v"}],
        [],
        ("center", "vouchers"),
    ),
    "credit line": (
        [*SHARES, {"type": "set_credit_line", "limit": 4}],
        [],
        ("center", "credit_used"),
    ),
    "own credit that joined the credit line": (
        [{"type": "set_credit_line", "limit": 9}, {"type": "transfer_balance", **credit(4)}],
        [{"type": "enable_automatic_allocation"}],
        ("center", "credit_used"),
    ),
    "own voucher that joined": (
        [{"type": "grant_voucher", "voucher_id": "v", "amount": 5, "ad_account_id": "a"}],
        [{"type": "enable_automatic_allocation"}],
        ("center", "vouchers"),
    ),
    "a voucher that has expired": (
        [{"type": "grant_voucher", "voucher_id": "v", "ad_account_id": "a", "expires_at": NOON + 1}],
        [{"later": NOON + 1}],
        None,
    ),
    "nobody": ([], [], None),
}


@pytest.mark.parametrize("rules", [RETURNS_COUNTED - 1, RETURNS_COUNTED])
@pytest.mark.parametrize("paid", RETURNS)
def test_only_the_balance_to_which_money_returns_must_have_room_for_it(paid: str, rules: int) -> None:
    before, after, reached = RETURNS[paid]
    for field in (*ACCOUNT_FIELDS, *CENTER_FIELDS):
        book = Book(replace(STANDARD, rules=rules))
        for told in before:
            fields = (
                told if told["type"] in ("enable_automatic_allocation", "set_credit_line") else {"amount": 4} | told
            )
            assert book.do(**fields) is None
        charge(book, 1, 4)
        for told in after:
            if "later" in told:
                book.later(told["later"])
            else:
                assert book.do(**told) is None
        fill_up(book, field, room=3)
        fits = rules >= RETURNS_COUNTED and field != reached
        assert reverse(book, 1, 4) == ("charged" if fits else "invalid"), field
        fill_up(book, field, room=3)
        assert reverse(book, 1, 1 if fits else 3) == ("reversal_exceeds_spend" if fits else "charged"), field


def test_parts_that_return_to_one_balance_count_together() -> None:
    book = Book()
    for voucher in ("v", "w"):
        book.do("grant_voucher", voucher_id=voucher, amount=2, ad_account_id="a")
    charge(book, 1, 4)
    fill_up(book, ("account", "vouchers"), room=3)
    assert reverse(book, 1, 4) == "invalid"
    assert reverse(book, 1, 3) == "charged"


def test_a_reversal_cannot_be_reversed() -> None:
    book = Book()
    book.do("deposit_cash", amount=30, ad_account_id="a")
    charge(book, 1, 4)
    charge(book, 2, 1, reverses=UUID(int=1).bytes)
    assert reverse(book, 2, 1) == "unknown_reversal"


def test_a_repeated_reversal_is_a_duplicate() -> None:
    book = Book()
    book.do("deposit_cash", amount=9, ad_account_id="a")
    charge(book, 1, 8)
    event = book.event(2, reverses=UUID(int=1).bytes)
    assert [book.rules.event(event)[0] for _ in range(2)] == ["charged", "duplicate"]


def test_account_credit_returns_to_the_credit_line_only_for_participants() -> None:
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


def test_money_that_the_business_center_paid_returns_to_it() -> None:
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


def test_earlier_reversals_took_the_overdelivered_part_first_and_then_the_last_draws() -> None:
    parts = [
        Part("ad_account", "voucher", "v", None, 5),
        Part("ad_account", "cash", None, None, 3),
        Part(None, None, None, "ad_account_balance", 2),
    ]
    spend = ChargedSpend("b", "a", "c", NOON, 1, TODAY, TODAY, parts)
    take_back(spend, 4)
    assert ([part.left for part in parts], spend.left()) == ([5, 1, 0], 6)
