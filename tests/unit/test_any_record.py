"""Decoding returns an event, a command or a fault, whatever bytes, JSON values and headers a record has.

Hypothesis tries a few hundred records, and shrinks one that fails. A plain generator tries thousands:
`DRAWDOWN_TEST_RECORDS=1000000` sets how many (`-k thousands`).
"""

import json
import os
import random
import re
from base64 import b64encode
from datetime import date
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.allocation.records.record_decoding import (
    Fault,
    Raw,
    business_center_of,
    business_center_of_command,
    decode_command,
    decode_event,
)
from shared.contracts.commands import SentCommand
from shared.contracts.fields import CURRENCY_PATTERN, IDENTIFIER_PATTERN
from shared.ledger.encoding import encode_entries
from shared.rules.entries import Line
from shared.rules.instants import to_datetime
from tests.unit.test_decoding import BAD_TIMES, COMMAND, SPEND
from tests.unit.test_rules_tables import LARGEST_AMOUNT

RECORDS = int(os.environ.get("DRAWDOWN_TEST_RECORDS", "4000"))
many = settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)

REVERSAL = {**SPEND, "type": "reversal", "reverses": SPEND["event_id"], "reason": "x"}
FAULTS = {"malformed", "invalid", "too_large"}
IDENTIFIER = re.compile(IDENTIFIER_PATTERN, re.ASCII)

TOO_LONG = "a number of 4,301 digits"
TEXTS = st.text(max_size=12) | st.sampled_from(
    ["", "NaN", "\0", "9" * 65, "0.000001", "999999999999.999999", SPEND["event_id"], SPEND["occurred_at"]]
    + [time for time in BAD_TIMES if isinstance(time, str)]
    + ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "2016-12-31T23:59:60Z", "0001-01-01T00:00:00+23:59"]
    + ["9999-12-31T23:59:59-23:59", "spend", "reversal", "1.0", "x" * 300]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -(10**4299), 2**63, 1e308, TOO_LONG])
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=5
)
NAMES = st.sampled_from(
    [*SPEND, *COMMAND, "reverses", "reason", "specversion", "id", "time", "data", "data_base64", "datacontenttype"]
)
HEADER_NAMES = st.sampled_from(
    [b"ce_specversion", b"CE_Id", b"ce_time", b"ce_x", b"content-type", b"Content-Type"]
) | st.binary(max_size=8)
HEADER_VALUES = (
    st.none()
    | st.binary(max_size=8)
    | st.sampled_from([b"1.0", b"application/cloudevents+json", b"application/cloudevents-batch+json"])
    | st.sampled_from([SPEND["event_id"].encode(), SPEND["occurred_at"].encode(), b"\xff", b""])
)
HEADERS = st.lists(
    st.tuples(HEADER_NAMES.map(lambda name: name.decode(errors="backslashreplace")), HEADER_VALUES), max_size=4
)
SPLICES = st.lists(st.tuples(st.integers(0, 700), st.integers(0, 40), st.binary(max_size=6)), max_size=2)


def dumps(value: Any) -> bytes:
    """Return the value as JSON, with NaN, lone surrogates and numbers of any length."""
    return json.dumps(value).replace(f'"{TOO_LONG}"', "1" * 4301).encode()


def spliced(text: bytes, splices: list[tuple[int, int, bytes]]) -> bytes:
    for place, cut, new in splices:
        text = text[:place] + new + text[place + cut :]
    return text


CHANGES = st.dictionaries(NAMES | TEXTS, VALUES, max_size=3)
LESS = st.lists(NAMES, max_size=2)


@st.composite
def messages(draw: Any, *kinds: dict[str, Any]) -> dict[str, Any]:
    """Draw a valid message with fields changed or left out."""
    message = {**draw(st.sampled_from(kinds)), **draw(CHANGES)}
    for name in draw(LESS):
        message.pop(name, None)
    return message


@st.composite
def events(draw: Any) -> bytes:
    """Draw an event, plain or in a CloudEvent, in which anything may be wrong."""
    inner = dumps(draw(messages(SPEND, REVERSAL) | VALUES))
    inner = spliced(inner, draw(SPLICES))
    form = draw(st.sampled_from(["plain", "plain", "data", "data_base64", "both"]))
    if form == "plain":
        return inner
    attributes = {"specversion": "1.0", "id": SPEND["event_id"], "source": "/ads", "type": "spend"}
    head = dumps({**attributes, **draw(CHANGES)})[:-1]
    data = b', "data": ' + inner if form != "data_base64" else b""
    base64 = b', "data_base64": "' + b64encode(inner) + b'"' if form != "data" else b""
    return spliced(head + data + base64 + b"}", draw(SPLICES))


def check_event(found: Any) -> None:
    """Assert what the rules and the encoding rely on."""
    event_id, center, account, campaign, amount, currency, occurred_at, reverses, reason = found
    assert [type(each) for each in (event_id, amount, occurred_at)] == [bytes, int, int]
    assert len(event_id) == 16
    assert reverses is None or (type(reverses) is bytes and len(reverses) == 16)
    assert all(IDENTIFIER.fullmatch(each) for each in (center, account, campaign))
    assert re.fullmatch(CURRENCY_PATTERN, currency, re.ASCII)
    assert 1 <= amount <= LARGEST_AMOUNT
    assert to_datetime(occurred_at).date() >= date.min
    assert reason is None or (len(reason) <= 256 and "\0" not in reason and reason.encode() is not None)
    assert reverses is not None or reason is None
    line = Line("reversal", center, account, campaign, pocket="cash", reverses=reverses, details=reason)
    day = to_datetime(occurred_at).toordinal()
    assert encode_entries([(line, -amount, occurred_at, event_id, 0, day, day)], 0, 1, occurred_at)


def check_fault(found: Any) -> None:
    assert isinstance(found, Fault)
    assert found.reason in FAULTS, found
    assert 0 < len(found.detail) <= 500
    assert "\0" not in found.detail
    found.detail.encode()


def check_event_record(value: bytes | None, headers: list[tuple[str, bytes | None]]) -> None:
    found = decode_event(value, headers)
    if isinstance(found, tuple):
        check_event(found)
    else:
        check_fault(found)
    center = business_center_of(value, headers)
    assert center is None or ("\0" not in center and center.encode() and len(center) <= 64) or center == ""
    kept = Raw("spend.events", 0, 0, None, value, headers).headers_json()
    assert all("\0" not in (name or "") for name, _ in kept or ())
    assert decode_event(value, headers) == found


@given(events(), HEADERS | st.just([]))
@many
def test_any_event_decodes_to_an_event_or_a_fault(value: bytes, headers: list[tuple[str, bytes | None]]) -> None:
    check_event_record(value, headers)


@given(st.none() | st.binary(max_size=200), HEADERS)
@many
def test_any_bytes_decode_to_an_event_or_a_fault(value: bytes | None, headers: list[tuple[str, bytes | None]]) -> None:
    check_event_record(value, headers)
    check_command_record(value)


def check_command_record(value: bytes | None) -> None:
    found = decode_command(value)
    if isinstance(found, SentCommand):
        assert len(found.id) == 16
        assert IDENTIFIER.fullmatch(found.content["business_center_id"])
        for name in ("issued_at", "expires_at"):
            assert "\0" not in found.content.get(name, "")
        expires_at = getattr(found.command, "expires_at", None)
        assert expires_at is None or to_datetime(expires_at).toordinal()
        amount = getattr(found.command, "amount", getattr(found.command, "limit", 0))
        assert amount is None or 0 <= amount <= LARGEST_AMOUNT
        kept = json.dumps(found.content)
        assert "\\u0000" not in kept
        line = Line("command", found.content["business_center_id"], details=kept)
        assert encode_entries([(line, None, 0, found.id, 0, None, None)], 0, 1, 0)
    else:
        check_fault(found)
    center = business_center_of_command(value)
    assert center is None or "\0" not in center


OTHER_COMMANDS: list[dict[str, Any]] = [
    {**COMMAND, "type": "open_business_center", "currency": "USD", "time_zone": "UTC"},
    {**COMMAND, "type": "open_ad_account", "billing": "prepay", "buying_type": "auction", "time_zone": "UTC"},
    {**COMMAND, "type": "set_credit_line", "limit": "1"},
    {**COMMAND, "type": "transfer_balance", "direction": "to_ad_account", "pocket": "cash"},
    {**COMMAND, "type": "set_budget", "mode": "daily"},
]


@given(messages(COMMAND, *OTHER_COMMANDS).map(dumps), SPLICES)
@many
def test_any_command_decodes_to_a_command_or_a_fault(value: bytes, splices: list[tuple[int, int, bytes]]) -> None:
    check_command_record(spliced(value, splices))


class Generator:
    """Records from a seed, in which anything may be wrong. Most have one or two errors."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def event(self) -> tuple[bytes | None, list[tuple[str, bytes | None]]]:
        """Return a value and headers."""
        pick = self._random.random()
        if pick < 0.05:
            return self._random.choice([None, self._bytes(200)]), self._headers()
        inner = self._spliced(self._message(SPEND, REVERSAL))
        if pick < 0.5:
            return inner, self._headers() if pick < 0.2 else []
        return self._spliced(self._envelope(inner)), self._headers() if pick < 0.7 else []

    def command(self) -> bytes:
        """Return a value."""
        return self._spliced(self._message(COMMAND, *OTHER_COMMANDS))

    def _message(self, *kinds: dict[str, Any]) -> bytes:
        message = {**self._random.choice(kinds), **self._fields()}
        if self._random.random() < 0.1:
            del message[self._random.choice(list(message))]
        return dumps(message)

    def _envelope(self, inner: bytes) -> bytes:
        attributes = {"specversion": "1.0", "id": SPEND["event_id"], "source": "/ads", "type": "spend"}
        head, form = dumps({**attributes, **self._fields()})[:-1], self._random.random()
        data = b', "data": ' + inner if form < 0.6 else b""
        base64 = b', "data_base64": "' + b64encode(inner) + b'"' if form > 0.5 else b""
        return head + data + base64 + b"}"

    def _fields(self) -> dict[str, Any]:
        return {self._random.choice(FIELDS): self._value(2) for _ in range(self._random.choice((0, 0, 1, 1, 2)))}

    def _value(self, levels: int) -> Any:
        pick = self._random.random()
        if levels and pick < 0.1:
            return [self._value(levels - 1) for _ in range(self._random.randrange(3))]
        if levels and pick < 0.2:
            return {self._random.choice(FIELDS): self._value(levels - 1) for _ in range(self._random.randrange(3))}
        if pick < 0.3:
            return "".join(chr(self._random.randrange(0x300)) for _ in range(self._random.randrange(8)))
        return self._random.choice(HELD)

    def _bytes(self, most: int) -> bytes:
        return self._random.randbytes(self._random.randrange(most))

    def _spliced(self, text: bytes) -> bytes:
        if self._random.random() < 0.7:
            return text
        place = self._random.randrange(len(text))
        return text[:place] + self._random.choice(SPLICED) + text[place + self._random.randrange(4) :]

    def _headers(self) -> list[tuple[str, bytes | None]]:
        return [(self._name(), self._header()) for _ in range(self._random.randrange(5))]

    def _name(self) -> str:
        name = self._random.choice(READ_HEADERS) if self._random.random() < 0.8 else self._bytes(8)
        return name.decode(errors="backslashreplace")

    def _header(self) -> bytes | None:
        return self._random.choice(HEADER_BYTES) if self._random.random() < 0.8 else self._bytes(8)


FIELDS = [
    *SPEND,
    *COMMAND,
    "reverses",
    "reason",
    "specversion",
    "id",
    "time",
    "data",
    "data_base64",
    "x",
    "gr\u00fcn",
    "",
]
HELD: list[Any] = [
    *BAD_TIMES,
    *SPEND.values(),
    *(None, True, False, 0, -1, 1.5, 2**63, 10**400, 1e308, float("nan"), float("-inf"), TOO_LONG, "\0", "\ud800"),
    *("0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "2016-12-31T23:59:60Z", "0.000001", "1" * 13, "x" * 257),
    *("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "reversal", "1.0", "UTC", [[[]]], {"": {}}),
]
SPLICED = [
    b"",
    b'"',
    b"\\",
    b"{",
    b"[" * 200,
    b"]",
    b"\0",
    b"\xff",
    b"NaN",
    b"-Infinity",
    b"1" * 4301,
    b",",
    b"\xed\xa0\x80",
]
READ_HEADERS = [b"ce_specversion", b"CE_Id", b"ce_time", b"ce_x", b"content-type", b"Content-Type"]
HEADER_BYTES = [
    *(None, b"", b"1.0", b"1.0", b"\xff", SPEND["event_id"].encode(), SPEND["occurred_at"].encode()),
    *(b"application/cloudevents+json; a=b", b"application/cloudevents-batch+json", b"application/json"),
]


@pytest.mark.timeout(300 + RECORDS // 500)
def test_each_of_thousands_of_records_decodes_to_an_event_a_command_or_a_fault() -> None:
    generator = Generator(RECORDS)
    kinds = {"event": 0, "fault": 0, "command": 0, "no command": 0}
    for _ in range(RECORDS // 2):
        value, headers = generator.event()
        check_event_record(value, headers)
        kinds["event" if isinstance(decode_event(value, headers), tuple) else "fault"] += 1
        value = generator.command()
        check_command_record(value)
        kinds["command" if isinstance(decode_command(value), SentCommand) else "no command"] += 1
    assert min(kinds.values()) > RECORDS // 20
