"""Grants that expire: what is forfeited, where, and which accounts pause."""

from tests.unit.test_rules_tables import HOUR, NOON, Book
from tests.unit.what_is_written import charge, movement, reverse


def test_the_remaining_part_of_an_expired_grant_is_forfeited() -> None:
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


def test_an_ad_credit_expires_in_the_pool_and_every_account_even_if_the_pool_is_empty() -> None:
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
