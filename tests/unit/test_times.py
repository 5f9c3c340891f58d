"""Times of the contract: RFC 3339 with an offset, and no other form."""

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.contracts.fields import TIME_PATTERN, format_time, is_time, parse_time
from shared.rules.instants import to_datetime

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST, LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00.000000Z"),
        ("2016-12-31T23:59:60.999999Z", "2017-01-01T00:00:00.000000Z"),
        ("2016-12-31T23:59:60.123456789123Z", "2017-01-01T00:00:00.000000Z"),
        ("2017-01-01T00:59:60+01:00", "2017-01-01T00:00:00.000000Z"),
        ("2017-01-01t05:29:60.5+05:30", "2017-01-01T00:00:00.000000Z"),
        ("2016-12-31t23:59:60z", "2017-01-01T00:00:00.000000Z"),
        ("2026-11-21T12:00:60Z", "2026-11-21T12:01:00.000000Z"),
        ("9999-12-31T23:59:60+00:01", "9999-12-31T23:59:00.000000Z"),
        ("2026-11-21T12:00:00-00:00", "2026-11-21T12:00:00.000000Z"),
        ("2026-11-21T12:00:00.1234569Z", "2026-11-21T12:00:00.123456Z"),
        ("2026-11-21T12:00:00+23:59", "2026-11-20T12:01:00.000000Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00+00:00"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
    ],
)
def test_valid_times_are_accepted_and_others_are_refused(text: str, instant: str) -> None:
    assert is_time(text)
    assert format_time(parse_time(text)) == instant


@given(
    st.datetimes(),
    st.integers(-23 * 60 - 59, 23 * 60 + 59),
    st.sampled_from("Tt"),
    st.text("0123456789", max_size=30),
)
def test_every_time_of_the_calendar_is_read(moment: datetime, offset: int, separator: str, beyond: str) -> None:
    zone = timezone(timedelta(minutes=offset))
    text = moment.replace(tzinfo=zone).isoformat(separator, "microseconds")
    text = text[:26] + beyond + text[26:]
    assert is_time(text)
    since = moment.replace(tzinfo=zone) - EPOCH
    if FIRST - EPOCH <= since <= LAST - EPOCH:
        assert parse_time(text) == since // timedelta(microseconds=1)
        assert to_datetime(parse_time(text)) == moment.replace(tzinfo=zone)
    else:
        with pytest.raises(ValueError, match="years 1 to 9999"):
            parse_time(text)


@given(st.from_regex(re.compile(TIME_PATTERN, re.ASCII), fullmatch=True).map(str.strip))
def test_text_that_matches_the_pattern_is_an_instant_or_not_a_calendar_day(text: str) -> None:
    try:
        assert FIRST <= to_datetime(parse_time(text)) <= LAST
    except ValueError:
        day = int(text[8:10])
        assert day > 28 or text[:4] in ("0001", "9999"), text


@given(st.text() | st.from_regex(TIME_PATTERN).map(lambda text: text[1:]))
def test_any_text_is_an_instant_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        assert FIRST <= to_datetime(parse_time(text)) <= LAST


@pytest.mark.parametrize("value", ["", "z", "Z", [], {}, {"a": 1}, 0, None, True, b"2026-11-21T12:00:00Z"])
def test_text_without_the_form_of_a_time_is_refused(value: object) -> None:
    assert not is_time(value)
