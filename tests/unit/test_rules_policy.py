"""The policy: which pockets pay, in which order, and from which batch on."""

from shared.rules.policy import STANDARD, Policy, policy_of
from shared.rules.vocabulary import AD_ACCOUNT_WATERFALL, BUSINESS_CENTER_WATERFALL
from tests.unit.test_rules_tables import NOON, Book


def test_the_pockets_and_their_order_are_those_of_the_domain_page() -> None:
    assert AD_ACCOUNT_WATERFALL == ("voucher", "ad_credit", "cash", "credit")
    assert BUSINESS_CENTER_WATERFALL == ("voucher", "cash", "credit_line")
    assert STANDARD.content() == {
        "version": "standard-1",
        "ad_account": ["voucher", "ad_credit", "cash", "credit"],
        "business_center": ["voucher", "cash", "credit_line"],
    }
    assert policy_of({"version": "2", "ad_account": ["cash"], "business_center": []}) == Policy("2", ("cash",), ())


def test_a_new_policy_applies_to_accounts_and_to_later_spends() -> None:
    book = Book()
    book.do("deposit_cash", amount=5, ad_account_id="a")
    book.rules.begin(NOON, Policy("no-cash", ad_account=("voucher",)))
    assert [(line.kind, line.cause) for line, *_ in book.rules.entries] == [("pause", "ad_account_balance")]
    assert book.spend(2) == [("ad_account_balance", 2)]
    book.rules.begin(NOON, STANDARD)
    assert book.spend(2) == [("cash", -2)]


def test_a_batch_without_a_policy_keeps_the_previous_one() -> None:
    book = Book()
    book.rules.begin(NOON)
    assert (book.rules.policy, book.rules.entries) == (STANDARD, [])
