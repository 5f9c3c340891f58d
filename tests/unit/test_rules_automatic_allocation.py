"""Enabling automatic allocation: what moves, which accounts take part, and when it is refused."""

from shared.rules.money import LARGEST_BALANCE
from tests.unit.test_rules_tables import LARGEST_AMOUNT, NOON, Book
from tests.unit.what_is_written import credit, details, give_own_pockets, movement, written


def test_enabling_moves_cash_credit_and_untied_vouchers_and_names_the_accounts_left_out() -> None:
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


def test_an_account_set_to_unlimited_gets_a_synced_budget_and_one_with_a_finite_budget_does_not() -> None:
    for mode, amount in (("unlimited", None), ("daily", 5), ("monthly", 5), ("custom", 5)):
        book = Book()
        book.do("set_budget", ad_account_id="a", mode=mode, amount=amount)
        kinds = [entry[0].kind for entry in written(book, "enable_automatic_allocation")]
        assert ("budget_synced" in kinds) == (mode == "unlimited")


def test_a_synced_budget_may_be_more_than_any_one_balance() -> None:
    book = Book()
    account = book.rules.accounts["a"]
    account.cash = account.credit = LARGEST_BALANCE
    assert book.do("enable_automatic_allocation") is None
    assert account.budget.amount == 2 * LARGEST_BALANCE


def test_the_money_that_an_account_brings_keeps_it_delivering() -> None:
    book = Book()
    book.do("deposit_cash", amount=5, ad_account_id="a")
    book.do("enable_automatic_allocation")
    assert book.causes == []


def test_enabling_is_refused_if_the_sum_of_the_balances_is_too_large() -> None:
    for name in ("cash", "voucher"):
        book = Book()
        center, account = book.rules.business_centers["b"], book.rules.accounts["a"]
        if name == "cash":
            center.cash, account.cash = LARGEST_BALANCE, 1
        else:
            give_own_pockets(center, account)
            center.vouchers.total, account.vouchers.total = LARGEST_BALANCE, 1
        assert book.do("enable_automatic_allocation") == "invalid"
        assert not account.participates


def test_enabling_is_refused_if_the_credit_of_the_accounts_exceeds_the_credit_line() -> None:
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
