"""The patterns that OpenAPI shows say all of their rule: what matches is taken, and what is taken matches."""

import re
from collections.abc import Callable
from datetime import date

from hypothesis import given
from hypothesis import strategies as st

from services.api import patterns
from shared.contracts.fields import TIME_PATTERN, parse_time
from shared.rules.incentives import parse_rate


def is_taken(parse: Callable[[str], object], text: str) -> bool:
    try:
        parse(text)
    except (ValueError, OverflowError):
        return False
    return True


def matches(pattern: str, text: str) -> bool:
    return re.fullmatch(pattern.strip("^$"), text, re.ASCII) is not None


# Around the ends, and every kind of century.
YEARS = (*range(1966, 2012), *range(2096, 2104), *range(2396, 2404), *range(2796, 2804), *range(2896, 2904), 2999, 3000)


def test_every_day_of_many_years_matches_and_nothing_else_does() -> None:
    possible = [f"{year}-{month:02}-{day:02}" for year in YEARS for month in range(14) for day in range(33)]
    days = [text for text in possible if is_taken(date.fromisoformat, text) and "1970" <= text < "3000"]
    assert [text for text in possible if matches(patterns.DAY, text)] == days


@given(st.dates(), st.integers(0, 14), st.integers(0, 33))
def test_a_times_date_is_of_the_calendar(day: date, month: int, number: int) -> None:
    for text in (day.isoformat(), f"{day.year:04}-{month:02}-{number:02}"):
        assert matches(patterns.TIME, f"{text}T00:00:00Z") == is_taken(date.fromisoformat, text)


@given(st.from_regex(patterns.TIME.strip("^$"), fullmatch=True))
def test_what_is_shown_as_a_time_is_taken(text: str) -> None:
    assert len(text) <= 64
    assert matches(TIME_PATTERN, text)
    assert is_taken(parse_time, text)


@given(st.from_regex(r"[01]\.[0-9]{0,7}|[0-9]{0,2}|0\.0{0,6}[0-9]?", fullmatch=True))
def test_a_rate_matches_where_it_is_one(text: str) -> None:
    assert matches(patterns.RATE, text) == (is_taken(parse_rate, text) and text.isascii())


@given(st.integers(0, 99_999), st.integers(0, 10**18 - 1))
def test_a_records_id_fits_the_database(shard: int, sequence: int) -> None:
    assert matches(patterns.RECORD_ID, f"{shard}-{sequence}") == (shard < 2**15)
