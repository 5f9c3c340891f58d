"""The patterns in OpenAPI are exact: a text matches if and only if it is accepted."""

import re
from collections.abc import Callable
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.api.door.patterns import RECORD_ID
from services.incentives.rating import parse_rate
from shared.contracts import patterns
from shared.contracts.fields import is_time, parse_time


def is_taken(parse: Callable[[str], object], text: str) -> bool:
    try:
        parse(text)
    except (ValueError, OverflowError):
        return False
    return True


def matches(pattern: str, text: str) -> bool:
    return re.fullmatch(pattern.strip("^$"), text, re.ASCII) is not None


# The first and last years, and every kind of century.
YEARS = (*range(1966, 2012), *range(2096, 2104), *range(2396, 2404), *range(2796, 2804), *range(2896, 2904), 2999, 3000)


def test_every_day_of_many_years_matches_and_nothing_else_matches() -> None:
    possible = [f"{year}-{month:02}-{day:02}" for year in YEARS for month in range(14) for day in range(33)]
    days = [text for text in possible if is_taken(date.fromisoformat, text) and "1970" <= text < "3000"]
    assert [text for text in possible if matches(patterns.DAY, text)] == days


@given(st.dates(), st.integers(0, 14), st.integers(0, 33))
def test_the_pattern_takes_only_dates_of_the_calendar(day: date, month: int, number: int) -> None:
    for text in (day.isoformat(), f"{day.year:04}-{month:02}-{number:02}"):
        assert matches(patterns.TIME, f"{text}T00:00:00Z") == is_taken(date.fromisoformat, text)


def is_taken_time(text: str) -> bool:
    return is_time(text) and is_taken(parse_time, text)


@given(st.from_regex(patterns.TIME.strip("^$"), fullmatch=True))
def test_text_that_the_api_shows_as_a_time_is_accepted(text: str) -> None:
    assert is_taken_time(text), text


@pytest.mark.parametrize(
    "text",
    [
        "0001-01-01T00:00:00Z",
        "0001-01-01t00:00:60-23:59",
        "0001-01-01T12:00:00+11:59",
        "0001-12-31T00:00:00+23:59",
        "2027-12-31T23:59:60Z",
        "2028-02-29T05:29:60.5+05:30",
        f"2027-12-31T23:59:59.{'9' * 43}z",
        f"2027-12-31T23:59:59.{'9' * 38}+23:59",
        "9999-01-31T23:59:60-23:59",
        "9999-12-31T00:00:00-08:00",
        "9999-12-31T23:59:59.999999999Z",
        "9999-12-31T23:59:59-00:00",
        "9999-12-31T00:00:00+23:59",
    ],
)
def test_the_pattern_matches_a_time_of_the_contract(text: str) -> None:
    assert is_taken_time(text)
    assert matches(patterns.TIME, text)


@pytest.mark.parametrize(
    "text",
    [
        "0000-12-31T23:59:59Z",
        "0001-01-01T00:00:00+23:59",
        "0001-01-01T11:58:60+12:00",
        "2027-02-29T00:00:00Z",
        "2027-12-31T23:59:61Z",
        "2027-12-31T23:59:59",
        "2027-12-31T23:59:59.Z",
        f"2027-12-31T23:59:59.{'9' * 44}Z",
        f"2027-12-31T23:59:59.{'9' * 39}+00:00",
        "9999-12-31T23:59:59-00:01",
        "9999-12-31T23:59:60Z",
        "9999-12-31T12:00:00-12:00",
    ],
)
def test_the_pattern_does_not_match_text_that_is_not_a_time_of_the_contract(text: str) -> None:
    assert not is_taken_time(text)
    assert not matches(patterns.TIME, text)


_ENDS = ("0001-01-01", "9999-12-31")
_DAYS = st.dates().map(str) | st.sampled_from([*_ENDS, "0001-01-02", "9999-12-30", "2000-02-29", "2100-02-29"])
_ZONES = st.sampled_from(["Z", "z", "+00:00", "-00:00"]) | st.from_regex("[+-][0-2][0-9]:[0-6][0-9]", fullmatch=True)


@given(
    _DAYS,
    st.from_regex(r"[Tt][0-2][0-9]:[0-6][0-9]:[0-6][0-9]", fullmatch=True),
    st.just("") | st.from_regex(r"\.[0-9]{0,45}", fullmatch=True),
    _ZONES,
)
@settings(max_examples=1_000)
def test_the_time_pattern_matches_exactly_the_times(day: str, clock: str, fraction: str, zone: str) -> None:
    """On the first and the last possible day the pattern lacks some valid offsets, and the last leap second."""
    text = day + clock + fraction + zone
    if matches(patterns.TIME, text):
        assert is_taken_time(text), text
    elif is_taken_time(text):
        assert day in _ENDS, text


@given(st.from_regex(r"[01]\.[0-9]{0,7}|[0-9]{0,2}|0\.0{0,6}[0-9]?", fullmatch=True))
def test_the_rate_pattern_matches_exactly_the_rates(text: str) -> None:
    assert matches(patterns.RATE, text) == (is_taken(parse_rate, text) and text.isascii())


@given(st.integers(0, 99_999), st.integers(0, 10**18 - 1))
def test_the_id_of_a_record_fits_the_database(shard: int, sequence: int) -> None:
    assert matches(RECORD_ID, f"{shard}-{sequence}") == (shard < 2**15)
