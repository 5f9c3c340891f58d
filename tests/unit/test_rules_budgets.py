"""Budgets: what counts towards them, in which period, and when they are exhausted."""

from datetime import date

from shared.rules.setting_budgets import changes_today
from tests.unit.test_rules_tables import HOUR, NOON, TODAY, Book, budget_of
from tests.unit.what_is_written import charge, reverse


def test_a_budget_is_exhausted_exactly_when_nothing_is_left() -> None:
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


def test_a_lifetime_budget_and_an_untouched_month_bound_a_late_spend() -> None:
    assert budget_of((TODAY - 3, "daily", 10), (TODAY, "lifetime", 7)).room(TODAY - 1, TODAY) == 7
    assert budget_of((TODAY - 60, "monthly", 600), spent={TODAY: 99}).room(TODAY - 40, TODAY) == 600


def test_reversing_a_spend_from_before_a_custom_budget_does_not_change_the_budget() -> None:
    book = Book()
    book.do("deposit_cash", amount=100, ad_account_id="a")
    charge(book, 1, 8)
    book.do("set_budget", ad_account_id="a", mode="custom", amount=10)
    charge(book, 2, 6)
    reverse(book, 1, 8)
    assert book.rules.accounts["a"].budget.counted == 6
    reverse(book, 2, 5)
    assert book.rules.accounts["a"].budget.counted == 1


def test_a_reset_budget_counts_the_next_spend_and_not_the_one_before() -> None:
    book = Book()
    book.do("deposit_cash", amount=100, ad_account_id="a")
    book.do("set_budget", ad_account_id="a", mode="custom", amount=30)
    charge(book, 1, 8)
    book.do("reset_budget", ad_account_id="a")
    charge(book, 2, 3)
    assert book.rules.accounts["a"].budget.counted == 3
    reverse(book, 1, 8)
    assert book.rules.accounts["a"].budget.counted == 3


def test_budget_changes_are_counted_by_the_day_of_the_account() -> None:
    book = Book()
    account = book.rules.accounts["a"]
    assert changes_today(account) == 0
    book.do("set_budget", ad_account_id="a", mode="daily", amount=5)
    assert changes_today(account) == 1
    book.later(NOON + 12 * HOUR)
    assert changes_today(account) == 0
