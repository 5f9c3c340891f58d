"""A bound for one spend of a Business Center: a larger spend is unusual, and claims no event id."""

from dataclasses import replace
from typing import Any, get_args
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.contracts.commands import FINANCE_COMMAND, Role
from shared.rules import vocabulary
from shared.rules.policy import STANDARD
from shared.rules.roles import may
from tests.unit.test_rules_tables import NOON, ONE, Book


def bounded(amount: int | None = 5) -> Book:
    book = Book()
    assert book.do("deposit_cash", amount=1000, ad_account_id="a") is None
    assert set_bound(book, amount) is None
    return book


def set_bound(book: Book, amount: int | None, role: str = "admin") -> str | None:
    return book.do("set_largest_spend", role, **({} if amount is None else {"amount": amount}))


@given(bounds=st.lists(st.none() | st.integers(1, 20), max_size=6), amount=st.integers(1, 25))
def test_the_last_bound_holds_and_removing_it_accepts_every_spend(bounds: list[int | None], amount: int) -> None:
    book = Book()
    for bound in bounds:
        assert set_bound(book, bound) is None
    last = bounds[-1] if bounds else None
    expected = "charged" if last is None or amount <= last else "amount_unusual"
    assert book.rules.event(book.event(amount))[0] == expected


def test_an_unusual_spend_writes_nothing_and_claims_no_id() -> None:
    book = bounded()
    before = len(book.rules.entries)
    assert book.rules.event(book.event(6, campaign="new", id=1))[0] == "amount_unusual"
    assert len(book.rules.entries) == before
    assert "new" not in book.rules.accounts["a"].campaigns
    assert book.rules.event(book.event(4, id=1))[0] == "charged"
    assert book.rules.event(book.event(6, id=1))[0] == "content_conflict"


def test_a_quarantined_spend_is_charged_by_a_replay_after_the_bound_is_raised() -> None:
    book, waiting = bounded(), UUID(int=7)
    event = book.event(6, id=waiting.int)
    assert book.rules.event(event) == ("amount_unusual", "the Business Center's largest spend is 0.000005")
    assert set_bound(book, 6) is None
    assert book.rules.event(event)[0] == "charged"
    assert book.rules.event(event)[0] == "duplicate"


def test_the_bound_is_checked_last_and_only_for_spends() -> None:
    book = bounded(None)
    assert book.rules.event(book.event(9, id=1))[0] == "charged"
    assert set_bound(book, 5) is None
    first = UUID(int=1).bytes
    cases = [
        (book.event(9, center="x"), "unknown_business_center"),
        (book.event(9, account="x"), "unknown_ad_account"),
        (book.event(9, currency="EUR"), "currency_mismatch"),
        (book.event(9, at=0), "too_old"),
        (book.event(9, at=2 * NOON), "too_far_ahead"),
        (book.event(9, id=1), "duplicate"),
        (book.event(8, id=1), "content_conflict"),
        (book.event(10, reverses=first), "reversal_exceeds_spend"),
        (book.event(9, reverses=first), "charged"),
        (book.event(9), "amount_unusual"),
    ]
    assert [book.rules.event(event)[0] for event, _ in cases] == [expected for _, expected in cases]


def test_the_bound_holds_only_for_its_own_business_center() -> None:
    book = bounded()
    opening: dict[str, Any] = {"currency": "USD", "time_zone": "UTC", "finance_roles": True}
    assert book.do("open_business_center", business_center_id="other", **opening) is None
    account: dict[str, Any] = {"billing": "prepay", "buying_type": "auction", "time_zone": "UTC", "owned": True}
    assert book.do("open_ad_account", business_center_id="other", ad_account_id="o", **account) is None
    assert book.rules.event(book.event(9, center="other", account="o"))[0] == "charged"


def test_only_some_roles_may_set_the_bound() -> None:
    ways = {role: set_bound(Book(), 5, role) for role in vocabulary.ROLES}
    assert {role for role, code in ways.items() if code is None} == {"admin", "finance_manager", "system"}
    assert not may("finance_manager", "set_largest_spend", finance_roles=False)
    assert set_bound(Book(), 0) == "invalid"


@pytest.mark.parametrize("rules", [1, 2])
def test_earlier_rules_have_no_bound(rules: int) -> None:
    book = Book(replace(STANDARD, rules=rules))
    assert set_bound(book, 5) == "invalid"
    assert book.rules.event(book.event(10**12 * ONE - 1))[0] == "charged"


def test_the_vocabulary_has_every_command_and_role() -> None:
    assert tuple(choices_of(FINANCE_COMMAND.core_schema)) == vocabulary.COMMAND_TYPES
    assert get_args(Role) == vocabulary.ROLES


def choices_of(schema: Any) -> list[str]:
    """Return the types of commands, from the schema of the contract."""
    while schema["type"] != "tagged-union":
        schema = schema["schema"]
    return list(schema["choices"])
