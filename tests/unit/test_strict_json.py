"""JSON by the contract, on every way in."""

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.allocation.records.cloudevents import STRUCTURED, read_loosely
from services.allocation.records.record_decoding import (
    Fault,
    business_center_of,
    business_center_of_command,
    decode_command,
    decode_event,
)
from shared.contracts.strict_json import (
    MOST_DIGITS,
    MOST_LEVELS,
    OTHER_MARK,
    MalformedError,
    read,
    read_around_lone_surrogates,
    refusal,
)
from tests.unit.test_decoding import COMMAND, SPEND, binary, structured
from tests.unit.test_decoding import EVENT as THE_EVENT

DIGITS = b"1" * MOST_DIGITS
NO_JSON: dict[str, bytes] = {
    "NaN": b"NaN",
    "Infinity": b"Infinity",
    "-Infinity": b"-Infinity",
    "NaN in a list": b'[1, {"a": [NaN]}]',
    "129 levels of lists": b"[" * MOST_LEVELS + b"]" * MOST_LEVELS,
    "129 levels of objects": b'{"":' * MOST_LEVELS + b"1" + b"}" * MOST_LEVELS,
    "as many levels as the parser knows": b"[" * 199 + b"]" * 199,
    "more levels than the parser knows": b"[" * 10_000 + b"]" * 10_000,
    "a digit too many": DIGITS + b"1",
    "a digit too many behind a minus": b"-1" + DIGITS,
    "a digit too many in a fraction": b"0." + DIGITS,
    "a digit too many in an exponent": b"1e" + DIGITS,
    "a digit too many of a long number": b"1" * 3000 + b"." + b"1" * 1000 + b"E+" + b"1" * 301,
}
JSON: dict[str, bytes] = {
    "a text": b'"NaN, Infinity"',
    "a text with quotes": b'"\\"NaN\\\\"',
    "a name": b'{"NaN": 1, "Infinity": [true, false, null]}',
    "128 levels of lists": b"[" * (MOST_LEVELS - 1) + b"]" * (MOST_LEVELS - 1),
    "128 levels of objects": b'{"":' * (MOST_LEVELS - 1) + b"1" + b"}" * (MOST_LEVELS - 1),
    "many lists": b"[" + b"[]," * 10_000 + b"[]]",
    "brackets in texts": b'["' + b"[{" * 1000 + b'"]',
    "the most digits": DIGITS,
    "the most digits in total": b"-" + b"1" * 4000 + b"." + b"1" * 200 + b"e-" + b"1" * 100,
    "many numbers": b"[" + b"1.5," * 10_000 + b"1]",
    "digits in a text": b'"' + DIGITS * 2 + b'"',
}


def with_field(message: dict[str, Any], held: bytes, *, first: bool = False) -> bytes:
    """Return the message with one more field. `first` puts it before the known fields, which override it."""
    text = json.dumps(message).encode()
    if first:
        return b'{"business_center_id": ' + held + b", " + text[1:]
    return text[:-1] + b', "x": ' + held + b"}"


@pytest.mark.parametrize("held", NO_JSON.values(), ids=NO_JSON.keys())
@pytest.mark.parametrize("first", [False, True])
def test_a_value_that_is_not_json_is_malformed_in_any_field(held: bytes, first: bool) -> None:
    event, command = with_field(SPEND, held, first=first), with_field(COMMAND, held, first=first)
    reversal = with_field({**SPEND, "type": "reversal", "reverses": SPEND["event_id"]}, held, first=first)
    broken = with_field({**SPEND, "amount": "x"}, held, first=first)
    found: list[Any] = [decode_event(each, ()) for each in (event, reversal, broken)]
    found += [decode_command(command), decode_event(event, binary())]
    found += [decode_event(each, ()) for each in structured(event)]
    found.append(decode_event(with_field({**json.loads(structured()[0])}, held, first=first), ()))
    assert [each.reason if isinstance(each, Fault) else each for each in found] == ["malformed"] * len(found)
    with pytest.raises(MalformedError):
        read(held if held.startswith((b"N", b"I", b"-I")) or held[:1].isdigit() else event)


LONE_SURROGATES = [
    rb'"\ud800"',
    rb'"\uDC00"',
    rb'"\uD800\ud800"',
    rb'"\ud800\n"',
    rb'"\\\ud83d"',
    rb'"\ud83d\ude00\ud83d"',
    rb'{"\ud83dx": [1]}',
]


@pytest.mark.parametrize("held", LONE_SURROGATES)
def test_a_lone_surrogate_in_a_field_that_nobody_reads_stops_nothing(held: bytes) -> None:
    event = with_field(SPEND, held)
    attribute = with_field(json.loads(structured()[0]), held)
    found = [decode_event(event, ()), decode_event(event, binary()), decode_event(attribute, ())]
    found += [decode_event(each, headers) for each in structured(event) for headers in ((), STRUCTURED)]
    assert found == [(*THE_EVENT, None, None)] * len(found)
    assert decode_command(with_field(COMMAND, held)) == decode_command(json.dumps(COMMAND).encode())


@pytest.mark.parametrize("held", [held for held in LONE_SURROGATES if held.startswith(b'"')])
@pytest.mark.parametrize("field", [*SPEND, "reverses", "reason"])
def test_a_lone_surrogate_in_a_known_field_is_malformed_and_the_error_says_so(held: bytes, field: str) -> None:
    message = {**SPEND, "type": "reversal", "reverses": SPEND["event_id"], field: "?"}
    event = json.dumps(message).encode().replace(b'"?"', held)
    found: list[Any] = [decode_event(event, ()), decode_event(event, binary())]
    found += [decode_event(each, ()) for each in structured(event)]
    if field in COMMAND:
        found.append(decode_command(json.dumps({**COMMAND, field: "?"}).encode().replace(b'"?"', held)))
    for fault in found:
        assert fault.reason == "malformed"
        assert fault.detail.startswith("Invalid JSON: a lone surrogate is not a character, at line 1 column ")


@pytest.mark.parametrize("field", ["reason", "reverses"])
def test_a_lone_surrogate_in_a_field_of_reversals_stops_no_spend(field: str) -> None:
    event = json.dumps({**SPEND, field: "?"}).encode().replace(b"?", rb"\ud83d")
    assert [decode_event(each, ()) for each in (event, *structured(event))] == [(*THE_EVENT, None, None)] * 3


@pytest.mark.parametrize("held", LONE_SURROGATES)
@pytest.mark.parametrize(
    "change",
    [
        *({"amount": "0"}, {"currency": "usd"}, {"type": "gift"}, {"type": "reversal"}, {"event_id": None}),
        *({"campaign_id": "c\0"}, {"amount": "\0\1"}, {"type": "\0"}),
        {"type": "reversal", "reverses": SPEND["event_id"], "reason": "\0"},
    ],
)
def test_a_lone_surrogate_that_nobody_reads_hides_no_fault(held: bytes, change: dict[str, Any]) -> None:
    wrong = {**SPEND, **change}
    expected = decode_event(json.dumps(wrong).encode(), ())
    assert isinstance(expected, Fault)
    event = with_field(wrong, held)
    values = [event, *structured(event)]
    assert [decode_event(value, ()) for value in values] == [expected] * len(values)
    for command in ({**COMMAND, "amount": "x"}, {**COMMAND, "ad_account_id": "\0"}, {**COMMAND, "type": "\0\1"}):
        assert decode_command(with_field(command, held)) == decode_command(json.dumps(command).encode())


def test_json_that_is_broken_behind_a_lone_surrogate_is_malformed_for_what_is_broken() -> None:
    found = decode_event(rb'{"x": "\ud83d", "type"', ())
    assert isinstance(found, Fault)
    assert found == decode_event(rb'{"x": "\u0000", "type"', ())


@pytest.mark.parametrize("held", LONE_SURROGATES)
def test_a_center_is_named_beside_a_lone_surrogate(held: bytes) -> None:
    event = with_field({**SPEND, "amount": "x"}, held)
    values = [event, *structured(event)]
    assert [business_center_of(value, ()) for value in values] == [SPEND["business_center_id"]] * len(values)
    assert business_center_of_command(event) == SPEND["business_center_id"]


@pytest.mark.parametrize("held", LONE_SURROGATES)
def test_json_is_read_strictly_where_nothing_is_ignored(held: bytes) -> None:
    with pytest.raises(MalformedError, match="a lone surrogate is not a character"):
        read(held)


@given(st.text(st.characters() | st.sampled_from("\ud83d\ude00\\u")))
@settings(max_examples=300)
def test_only_lone_surrogates_are_read_as_marks(text: str) -> None:
    joined = json.loads(json.dumps(text))
    assert read_around_lone_surrogates(json.dumps(text).encode()) == re.sub("[\ud800-\udfff]", "\0", joined)
    assert read_loosely(json.dumps(text).encode(), OTHER_MARK) == re.sub("[\ud800-\udfff]", "\1", joined)


def test_a_pair_of_surrogates_is_one_character() -> None:
    assert read(rb'"\ud83d\ude00"') == "\U0001f600"


@pytest.mark.parametrize("held", JSON.values(), ids=JSON.keys())
def test_a_json_value_is_read_in_any_field(held: bytes) -> None:
    event = with_field(SPEND, held)
    assert decode_event(event, ()) == (*THE_EVENT, None, None)
    assert decode_event(event, binary()) == (*THE_EVENT, None, None)
    assert not isinstance(decode_command(with_field(COMMAND, held)), Fault)
    assert read(held) == json.loads(held)


def test_the_smallest_event_with_deep_nesting_is_still_checked() -> None:
    smallest = {**SPEND, **dict.fromkeys(("business_center_id", "ad_account_id", "campaign_id"), "a"), "amount": "1"}
    smallest["occurred_at"] = "2026-11-21T12:00:00Z"
    text = json.dumps(smallest, separators=(",", ":")).encode()
    deep = text[:-1] + b',"":' + NO_JSON["129 levels of lists"] + b"}"
    found = decode_event(deep, ())
    assert isinstance(found, Fault)
    assert found.reason == "malformed"


_TEXTS = st.text() | st.sampled_from(["NaN", "Infinity", '"', "\\", "[{", "\\NaN", '\\"NaN'])
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4),
    max_leaves=8,
)


@given(_VALUES)
@settings(max_examples=300)
def test_exactly_the_numbers_that_json_lacks_are_refused(value: Any) -> None:
    text = json.dumps(value).encode()
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        assert refusal(text) is not None
    else:
        assert refusal(text) is None
