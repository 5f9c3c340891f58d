"""The cost of an input depends on what it changes, not on how much exists. Measured in interpreter steps and in time.

The sizes are 10,000 accounts and 100,000 campaigns. Steps are counted on fewer, because counting takes 50 times as
long.
"""

import gc
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest

from shared.rules import pauses, shard
from shared.rules.policy import STANDARD
from shared.rules.shard import DAY_US
from shared.rules.versions import BATCHES_BOUNDED, CENTERS_BOUNDED
from tests.unit.test_rules_tables import NOON, Book

Call = Callable[[], object]
TRIES = 5


def steps(call: Call) -> int:
    """Return how many bytecodes the call runs, with those of loops inside expressions."""
    count = 0

    def trace(frame: FrameType, event: str, _arg: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def seconds(call: Call) -> float:
    """Return the processor time of the call, in seconds."""
    gc.collect()
    gc.disable()
    try:
        started = time.process_time()
        call()
        return time.process_time() - started
    finally:
        gc.enable()


def takes_less(times: float, large: Callable[[], Call], small: Callable[[], Call]) -> bool:
    """Return whether one call takes less than this many times what the other takes.

    Other work on the machine only makes a call slower, so if it holds, one of a few tries shows it.
    """
    return any(seconds(large()) < times * seconds(small()) for _ in range(TRIES))


# ---- Enabling automatic allocation ----------------------------------------------------------------------------------


def with_vouchers(accounts: int) -> Book:
    book = Book()
    for number in range(accounts):
        book.open(f"a-{number}")
        book.do("grant_voucher", voucher_id=str(number), amount=5, ad_account_id=f"a-{number}")
    return book


def enable(book: Book) -> Call:
    return lambda: book.do("enable_automatic_allocation")


def test_the_cost_of_enabling_grows_linearly_with_the_accounts() -> None:
    assert steps(enable(with_vouchers(500))) < 11 * steps(enable(with_vouchers(50)))


def test_enabling_with_ten_thousand_accounts_takes_a_few_seconds() -> None:
    assert takes_less(8, lambda: enable(with_vouchers(10_000)), lambda: enable(with_vouchers(2_000)))
    assert any(seconds(enable(with_vouchers(10_000))) < 5 for _ in range(TRIES))


def test_an_account_with_ten_thousand_vouchers_joins_quickly() -> None:
    def book(vouchers: int) -> Book:
        book = Book()
        for number in range(vouchers):
            book.do("grant_voucher", voucher_id=str(number), amount=5, ad_account_id="a")
        return book

    assert takes_less(8, lambda: enable(book(10_000)), lambda: enable(book(2_000)))


# ---- Many campaigns -------------------------------------------------------------------------------------------------


def with_campaigns(campaigns: int, mode: str | None = None, rules: int = BATCHES_BOUNDED) -> Book:
    """Return an account whose last money is a voucher that is tied to one campaign. Its other campaigns are stopped.

    Since version 3 of the rules those of a large account are not: each stops when it spends next.
    """
    book = Book(replace(STANDARD, rules=rules))
    book.do("deposit_cash", amount=campaigns, ad_account_id="a")
    for number in range(campaigns):
        book.spend(1, f"c-{number}")
        if mode:
            book.do("set_campaign_budget", ad_account_id="a", campaign_id=f"c-{number}", mode=mode, amount=10**6)
    book.do("grant_voucher", voucher_id="v", amount=10**9, ad_account_id="a", campaign_ids=["c-0"])
    stopped = 0 if rules >= CENTERS_BOUNDED and campaigns > pauses.LARGE_ACCOUNT else campaigns - 1
    assert len(book.rules.accounts["a"].stopped_campaigns) == stopped
    book.later(NOON)
    return book


def set_campaign_budget(book: Book) -> Call:
    return lambda: book.do("set_campaign_budget", ad_account_id="a", campaign_id="c-0", mode="daily", amount=10**6)


def end_another_voucher(book: Book) -> Call:
    """Use up a second voucher that is tied to a campaign, which then stops again."""
    book.do("grant_voucher", voucher_id="w", amount=1, ad_account_id="a", campaign_ids=["c-1"])
    return lambda: book.spend(1, "c-1")


@pytest.fixture(scope="module")
def few() -> Book:
    return with_campaigns(10)


@pytest.fixture(scope="module", params=[BATCHES_BOUNDED, CENTERS_BOUNDED], ids=["version 2", "version 3"])
def many(request: pytest.FixtureRequest) -> Book:
    return with_campaigns(100_000, rules=request.param)


def a_thousand(call: Call) -> Call:
    return lambda: [call() for _ in range(1_000)]


@pytest.mark.parametrize(
    "make",
    [
        lambda book: lambda: book.spend(1, "c-0"),
        lambda book: lambda: book.spend(1, "c-2"),
        set_campaign_budget,
        end_another_voucher,
    ],
    ids=["a spend that is paid", "a spend that no pocket pays", "a campaign's budget", "a tied voucher is used up"],
)
def test_the_cost_of_an_input_does_not_grow_with_the_campaigns(
    few: Book, many: Book, make: Callable[[Book], Call]
) -> None:
    among_few, among_many = make(few), make(many)
    assert steps(among_many) < 1.5 * steps(among_few)
    assert takes_less(3, lambda: a_thousand(make(many)), lambda: a_thousand(make(few)))


def test_a_new_day_looks_only_at_the_campaigns_that_it_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "FORGOTTEN_AT_ONCE", 0)

    def turn_over(campaigns: int) -> Call:
        book = with_campaigns(campaigns, "daily")
        book.do("deposit_cash", amount=10**9, ad_account_id="a")
        book.do("set_campaign_budget", ad_account_id="a", campaign_id="c-1", mode="daily", amount=1)
        return lambda: book.later(NOON + DAY_US)

    assert steps(turn_over(1_000)) < 1.5 * steps(turn_over(10))


# ---- Many grants ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [None, ["other"]])
def test_a_spend_looks_only_at_the_vouchers_that_pay(tied: list[str] | None) -> None:
    def spend(vouchers: int) -> Call:
        book = Book()
        for number in range(vouchers):
            book.do("grant_voucher", voucher_id=str(number), amount=5, ad_account_id="a", campaign_ids=tied)
        return lambda: book.spend(3)

    assert steps(spend(1_000)) < 1.5 * steps(spend(10))


def test_the_cost_of_an_allocation_does_not_grow_with_earlier_ones_of_the_ad_credit() -> None:
    def allocate(accounts: int) -> Call:
        book = Book()
        book.do("grant_ad_credit", ad_credit_id="x", amount=10**9)
        for number in range(accounts):
            book.open(f"a-{number}")
            book.do("allocate_ad_credit", ad_credit_id="x", ad_account_id=f"a-{number}", amount=1)
        return lambda: book.do("allocate_ad_credit", ad_credit_id="x", ad_account_id="a", amount=1)

    assert steps(allocate(1_000)) < 1.5 * steps(allocate(2))
