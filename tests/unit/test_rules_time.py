"""Time in the rules: timers, days, and the window within which events are accepted."""

from datetime import date, datetime

import pytest

from shared.rules.policy import STANDARD
from shared.rules.shard import DAY_US, Shard
from tests.unit.test_rules_tables import HOUR, NOON, Book
from tests.zones import zone as zone_of


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


def test_time_never_goes_backwards() -> None:
    book = Book()
    book.later(NOON + HOUR)
    book.later(NOON)
    assert book.rules.now == NOON + HOUR


def test_a_replay_has_no_deduplication_window() -> None:
    rules = Shard(STANDARD, None)
    book = Book()
    book.rules.set_window(None)
    book.do("deposit_cash", amount=9, ad_account_id="a")
    assert book.spend(1, at=NOON - 4000 * DAY_US) == [("cash", -1)]
    assert rules.next_due() is None


@pytest.mark.parametrize(
    ("zone", "day", "begins"),
    [
        # Half past eleven became half past twelve: the day begins at half past twelve.
        ("America/Toronto", date(1919, 3, 31), "1919-03-31T04:30:00+00:00"),
        # A minute after midnight it was 23:01 again: the first midnight counts.
        ("America/St_Johns", date(2010, 11, 7), "2010-11-07T02:30:00+00:00"),
    ],
)
def test_days_begin_correctly_in_zones_whose_clocks_change_at_midnight(zone: str, day: date, begins: str) -> None:
    assert zone_of(zone).start(day.toordinal()) == int(datetime.fromisoformat(begins).timestamp()) * 1_000_000


def test_the_constant_for_a_day_is_24_hours() -> None:
    assert DAY_US == 24 * HOUR
