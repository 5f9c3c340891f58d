"""Bytes from Kafka: which are an event, and which are quarantined for which reason."""

import json
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis.strategies import integers, lists

from services.allocation.records import record_decoding
from services.allocation.records.record_decoding import (
    Fault,
    Raw,
    business_center_of,
    business_center_of_command,
    decode_command,
    decode_event,
)
from shared.contracts.commands import SentCommand, is_hash, meaning_hash, refused_content

SPEND: dict[str, Any] = {
    "type": "spend",
    "event_id": "0193ABCD-0000-7000-8000-000000000001",
    "business_center_id": "bc-1",
    "ad_account_id": "a-1",
    "campaign_id": "c-1",
    "amount": "0.012345",
    "currency": "USD",
    "occurred_at": "2026-11-21T12:00:00.123Z",
}
EVENT = (bytes.fromhex("0193abcd000070008000000000000001"), "bc-1", "a-1", "c-1", 12345, "USD", 1_795_262_400_123_000)


def encoded(**changes: Any) -> bytes:
    return json.dumps({key: value for key, value in {**SPEND, **changes}.items() if value is not ...}).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"event_id": SPEND["event_id"].lower()},
        {"occurred_at": "2026-11-21T13:00:00.123+01:00"},
        {"occurred_at": "2026-11-21t12:00:00.123000z"},
        {"occurred_at": "2026-11-21T12:00:00.123000999Z"},
        {"occurred_at": "2026-11-21T12:00:00." + "123000".ljust(43, "9") + "Z"},
        {"occurred_at": "2026-11-21T12:00:00.123-00:00"},
        {"occurred_at": "2026-11-22T11:59:00.123+23:59"},
        {"unknown": {"field": [1, None]}},
    ],
)
def test_different_spellings_decode_to_the_same_event(changes: dict[str, Any]) -> None:
    assert decode_event(encoded(**changes), ()) == (*EVENT, None, None)


def test_a_reversal_names_its_spend_and_reason() -> None:
    value = encoded(type="reversal", reverses="0193abcd-0000-7000-8000-000000000002", reason="invalid_traffic")
    found = decode_event(value, ())
    assert found == (*EVENT, bytes.fromhex("0193abcd000070008000000000000002"), "invalid_traffic")


BAD_AMOUNTS = ["1e3", "NaN", "٣", "-1", "+1", "0", "0.000000", "01", "1.", ".5", "1.0000001", "1234567890123", "", " 1"]
BAD_TIMES: list[Any] = [
    "2026-11-21T12:00:00",
    "2026-11-21 12:00:00Z",
    "2026-13-21T12:00:00Z",
    "2026-00-21T12:00:00Z",
    "2026-02-29T12:00:00Z",
    "2026-11-31T12:00:00Z",
    "2026-11-21T24:00:00Z",
    "2026-11-21T12:60:00Z",
    "2026-11-21T12:00:61Z",
    "0000-01-01T00:00:00Z",
    "0001-01-01T00:00:00+00:01",
    "9999-12-31T23:59:59.999999-00:01",
    "9999-12-31T23:59:60Z",
    "2026-11-21T12:00:00+25:00",
    "2026-11-21T12:00:00+24:00",
    "2026-11-21T12:00:00+14:60",
    "2026-11-21T12:00:00+05:99",
    "2026-11-21T12:00:00+05:75",
    "2026-11-21T12:00:00+0500",
    "2026-11-21T12:00:00." + "0" * 44 + "Z",
    "2026-11-21T12:00:00.Z",
    "1795262400",
    "now",
    "",
    [],
    {},
    {"a": 1},
    0,
    1.5,
    True,
    None,
]


@pytest.mark.parametrize(
    "value",
    [
        *[encoded(amount=amount) for amount in BAD_AMOUNTS],
        *[encoded(occurred_at=time) for time in BAD_TIMES],
        encoded(amount=0.5),
        encoded(amount=None),
        encoded(amount=...),
        encoded(type="refund"),
        encoded(type=...),
        encoded(event_id="1"),
        encoded(event_id="0193abcd00007000800000000000000g"),
        encoded(currency="dollars"),
        encoded(business_center_id="a b"),
        encoded(business_center_id=""),
        encoded(business_center_id="x" * 65),
        encoded(campaign_id="c\0"),
        encoded(campaign_id="c-1\n"),
        encoded(type="reversal"),
        encoded(type="reversal", reverses=SPEND["event_id"], reason="a\0b"),
        b"[]",
        b'"text"',
        b"1",
    ],
)
def test_a_failed_check_is_invalid(value: bytes) -> None:
    found = decode_event(value, ())
    assert isinstance(found, Fault), found
    assert found.reason == "invalid"


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"{",
        b"{bad",
        b"\xff\xfe",
        b"\xff" + encoded(),
        encoded() + b"x",
        encoded().replace(b"bc-1", b"\\ud800"),
        encoded().replace(b'"0.012345"', b"NaN"),
        b"[" * 100_00,
    ],
)
def test_a_record_of_broken_json_is_malformed(value: bytes | None) -> None:
    found = decode_event(value, ())
    assert isinstance(found, Fault)
    assert found.reason == "malformed"


def test_a_record_above_64_kib_is_too_large() -> None:
    at_most = encoded(padding="")
    at_most = encoded(padding="x" * (65536 - len(at_most)))
    assert isinstance(decode_event(at_most, ()), tuple)
    too_large = decode_event(at_most + b" ", ())
    assert isinstance(too_large, Fault)
    assert too_large.reason == "too_large"


def binary(**attributes: bytes | None) -> list[tuple[str, bytes | None]]:
    """Return the headers of a CloudEvent in binary mode."""
    return [("ce_specversion", b"1.0"), *((f"ce_{name}", held) for name, held in attributes.items())]


def structured(data: bytes | None = None) -> list[bytes]:
    """Return the CloudEvent of the data in structured mode, as JSON and in Base64."""
    data = encoded() if data is None else data
    head = b'{"specversion": "1.0", "source": "/ads", "type": "anything", '
    return [head + b'"data": ' + data + b"}", head + b'"data_base64": "' + b64encode(data) + b'"}']


def cloud(**changes: Any) -> dict[str, Any]:
    event = {"specversion": "1.0", "id": SPEND["event_id"], "source": "/ads", "type": "anything", "data": SPEND}
    return {**event, **changes}


def without(*names: str) -> dict[str, Any]:
    return {key: value for key, value in SPEND.items() if key not in names}


@pytest.mark.parametrize(
    "event",
    [
        cloud(),
        cloud(id=SPEND["event_id"].lower(), time="2026-11-21T13:00:00.123+01:00"),
        cloud(data=without("event_id")),
        cloud(data=without("occurred_at"), time=SPEND["occurred_at"]),
        cloud(data=without("occurred_at", "event_id"), time="2026-11-21t12:00:00.123z"),
        cloud(data={**SPEND, "event_id": None, "occurred_at": None}, time=SPEND["occurred_at"]),
    ],
)
def test_cloud_events_carry_the_same_event(event: dict[str, Any]) -> None:
    assert decode_event(json.dumps(event).encode(), ()) == (*EVENT, None, None)
    data = json.dumps(event.pop("data")).encode()
    in_base64 = {**event, "data_base64": b64encode(data).decode()}
    assert decode_event(json.dumps(in_base64).encode(), ()) == (*EVENT, None, None)
    headers = [(f"ce_{name}", value.encode()) for name, value in event.items()]
    assert decode_event(data, headers) == (*EVENT, None, None)
    assert decode_event(data, [(name.upper(), value) for name, value in headers]) == (*EVENT, None, None)


@pytest.mark.parametrize(
    "event",
    [
        cloud(specversion="0.3"),
        cloud(specversion=1.0),
        cloud(specversion=None),
        cloud(id="0193abcd-0000-7000-8000-000000000009"),
        cloud(id="no UUID"),
        cloud(id=""),
        cloud(id=7),
        cloud(id=[SPEND["event_id"]]),
        cloud(time="2026-11-21T12:00:01Z"),
        cloud(data=without("occurred_at")),
        cloud(data="text"),
        cloud(data=json.dumps(SPEND)),
        cloud(data=[SPEND]),
        cloud(data=None),
        cloud(data={**SPEND, "amount": "1e3"}),
        cloud(data_base64=b64encode(encoded()).decode()),
        {**cloud(data_base64="%%%"), "data": None},
        {**cloud(data_base64="YQ"), "data": None},
        {**cloud(data_base64=7), "data": None},
        {**cloud(data_base64=b64encode(b"[]").decode()), "data": None},
        *[cloud(time=time) for time in BAD_TIMES[:-1]],
        *[
            cloud(time=SPEND["occurred_at"], data={**SPEND, "occurred_at": time})
            for time in BAD_TIMES
            if time is not None
        ],
        *[cloud(time=time, data={**SPEND, "occurred_at": time}) for time in BAD_TIMES],
    ],
)
def test_a_cloud_event_that_contradicts_itself_is_invalid(event: dict[str, Any]) -> None:
    found = decode_event(json.dumps(event).encode(), ())
    assert isinstance(found, Fault)
    assert found.reason == "invalid"


@pytest.mark.parametrize("data", [b"", b"\x00\xff", b"{", b"\x89PNG", b"NaN", b'{"a": NaN}'])
def test_data_that_is_not_json_is_malformed_in_every_mode(data: bytes) -> None:
    faults = [decode_event(data, binary()), decode_event(structured(data)[1], ())]
    assert [fault.reason for fault in faults if isinstance(fault, Fault)] == ["malformed"] * 2


CONTENT_TYPES = [
    b"application/cloudevents+json",
    b"application/cloudevents+json; charset=UTF-8",
    b'APPLICATION/CloudEvents+JSON ;a=b; c="d;e"',
    b" application/cloudevents+json",
    b"application/cloudevents",
]


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
@pytest.mark.parametrize("name", ["content-type", "Content-Type"])
def test_the_content_type_selects_structured_mode(name: str, content_type: bytes) -> None:
    for value in structured():
        assert decode_event(value, [(name, content_type)]) == (*EVENT, None, None)
        assert decode_event(value, [*binary(id=b"other"), (name, content_type)]) == (*EVENT, None, None)
    for value in (encoded(), b"[]", b'"text"', b"{}"):
        found = decode_event(value, [(name, content_type)])
        assert isinstance(found, Fault)
        assert found.reason == "invalid"


@pytest.mark.parametrize(
    "content_type", [b"application/json", b"application/json; charset=utf-8", b"text/plain", b"\xff", b"", None]
)
def test_any_other_content_type_describes_the_data(content_type: bytes | None) -> None:
    headers = [("content-type", content_type)]
    assert decode_event(encoded(), headers) == (*EVENT, None, None)
    assert decode_event(encoded(), [*binary(), *headers]) == (*EVENT, None, None)
    assert decode_event(structured()[0], headers) == (*EVENT, None, None)


@pytest.mark.parametrize("content_type", [b"application/cloudevents-batch+json", b"application/cloudevents+avro"])
def test_another_format_of_cloud_events_is_invalid_and_the_answer_says_what_to_send(content_type: bytes) -> None:
    for value in (encoded(), b"[" + structured()[0] + b"]", b"\x00"):
        found = decode_event(value, [("content-type", content_type)])
        assert isinstance(found, Fault)
        assert (found.reason, content_type.decode() in found.detail) == ("invalid", True)


@pytest.mark.parametrize("held", [1, None, "NaN \\u0000", {"deep": [[]]}, "\ud83d\ude00", [], True])
def test_an_unread_attribute_is_ignored(held: Any) -> None:
    for name in ("subject", "datacontenttype", "dataschema", "source", "type", "traceparent", "gr\xfcn", ""):
        assert decode_event(json.dumps(cloud(**{name: held})).encode(), ()) == (*EVENT, None, None)


@pytest.mark.parametrize("held", [None, b"", b"\xff\xfe", b"\x00"])
def test_an_unread_header_is_ignored(held: bytes | None) -> None:
    for name in ("ce_subject", "ce_\\xff", "ce_", "", "trace", "ce_ti\u0307me", "\x00"):
        assert decode_event(encoded(), [*binary(), (name, held)]) == (*EVENT, None, None)
        assert decode_event(encoded(), [(name, held)]) == (*EVENT, None, None)


def test_an_attribute_without_a_value_counts_as_absent() -> None:
    assert decode_event(encoded(), binary(id=None, time=None)) == (*EVENT, None, None)
    assert decode_event(json.dumps(cloud(id=None, time=None)).encode(), ()) == (*EVENT, None, None)


@pytest.mark.parametrize("headers", [[("ce_specversion", None)], binary(time=b""), binary(id=b""), binary(id=b"\xff")])
def test_a_used_header_without_a_usable_value_is_invalid(headers: list[tuple[str, bytes | None]]) -> None:
    found = decode_event(encoded(), headers)
    assert isinstance(found, Fault)
    assert found.reason == "invalid"


def test_the_bound_applies_to_the_record_as_received() -> None:
    padding = "\u00fc" * 15_000
    event = json.dumps(cloud(data={**SPEND, "note": padding}), ensure_ascii=False).encode()
    assert decode_event(event, ()) == (*EVENT, None, None)
    data = json.dumps({**SPEND, "note": padding}, ensure_ascii=False).encode()
    assert decode_event(data, binary()) == (*EVENT, None, None)
    longest = event[:-1] + b" " * (65536 - len(event)) + b"}"
    assert decode_event(longest, ()) == (*EVENT, None, None)
    found = decode_event(longest + b" ", ())
    assert isinstance(found, Fault)
    assert found.reason == "too_large"


def test_the_last_of_two_fields_with_the_same_name_counts() -> None:
    assert decode_event(b'{"amount": "7", ' + encoded()[1:], ()) == (*EVENT, None, None)
    assert decode_event(b'{"specversion": "0.3", ' + structured()[0][1:], ()) == (*EVENT, None, None)


COMMAND: dict[str, Any] = {
    "command_id": "0193ABCD-0000-7000-8000-00000000000A",
    "type": "grant_voucher",
    "business_center_id": "bc-1",
    "issued_at": "2026-11-21T12:00:00Z",
    "actor": {"id": "ann", "role": "admin"},
    "voucher_id": "v-1",
    "amount": "5.5",
    "expires_at": "2026-12-01T00:00:00Z",
    "ad_account_id": "a-1",
    "campaign_ids": ["c-2", "c-1"],
}


@pytest.mark.parametrize(
    "changes",
    [
        {"command_id": COMMAND["command_id"].lower()},
        {"issued_at": "2020-01-01T00:00:00Z"},
        {"amount": "5.500000"},
        {"expires_at": "2026-12-01T01:00:00+01:00"},
        {"campaign_ids": ["c-1", "c-2"]},
        {"unknown": 1},
        {"preview": False},
        {"preview": None},
    ],
)
def test_commands_with_the_same_meaning_are_the_same_command(changes: dict[str, Any]) -> None:
    first, second = (
        decode_command(json.dumps(COMMAND).encode()),
        decode_command(json.dumps({**COMMAND, **changes}).encode()),
    )
    assert isinstance(first, SentCommand)
    assert isinstance(second, SentCommand)
    assert first.id == second.id
    assert meaning_hash(first.content) == meaning_hash(second.content)


@pytest.mark.parametrize("preview", [True, "true", 1, 0, "", [], {}])
def test_a_command_that_asks_for_a_preview_is_not_carried_out(preview: Any) -> None:
    """Otherwise the preview would be carried out."""
    found = decode_command(json.dumps({**COMMAND, "preview": preview}).encode())
    assert isinstance(found, Fault)
    assert found.reason == "invalid"
    assert found.detail.endswith(": preview is not available yet: leave it out")


@pytest.mark.parametrize(
    "changes", [{"amount": "5.6"}, {"actor": {"id": "bob", "role": "admin"}}, {"voucher_id": "v-2"}]
)
def test_different_content_makes_a_different_command(changes: dict[str, Any]) -> None:
    first, second = (
        decode_command(json.dumps(COMMAND).encode()),
        decode_command(json.dumps({**COMMAND, **changes}).encode()),
    )
    assert isinstance(first, SentCommand)
    assert isinstance(second, SentCommand)
    assert meaning_hash(first.content) != meaning_hash(second.content)


@given(lists(integers(0, 200), min_size=1, max_size=300), lists(integers(0, 200), min_size=1, max_size=300))
@example([1], [1, 1])
@example([1] * 300, [1])  # One is kept whole and the other is not, but they mean the same.
@example(list(range(200)), list(range(199, -1, -1)))
def test_the_kept_content_of_a_refused_command_is_short_and_unique(one: list[int], two: list[int]) -> None:
    contents = []
    for numbers in (one, two):
        command = decode_command(json.dumps({**COMMAND, "campaign_ids": [f"c-{n}" for n in numbers]}).encode())
        assert isinstance(command, SentCommand)
        contents.append(command.content)
    kept = [refused_content(content) for content in contents]
    assert (meaning_hash(kept[0]) == meaning_hash(contents[1])) == (set(one) == set(two))
    for content, short in zip(contents, kept, strict=True):
        assert meaning_hash(content) == meaning_hash(short)
        assert refused_content(short) == short
        size = len(json.dumps(content, sort_keys=True, separators=(",", ":")))
        assert short == content if size <= 1024 else (is_hash(short) and short["bytes"] == size)
        assert len(json.dumps(short)) < 1500


@pytest.mark.parametrize(
    "changes", [{"issued_at": "2026-13-01T00:00:00Z"}, {"amount": 5}, {"type": "x"}, {"actor": None}]
)
def test_a_broken_command_decodes_to_a_fault(changes: dict[str, Any]) -> None:
    found = decode_command(json.dumps({**COMMAND, **changes}).encode())
    assert isinstance(found, Fault)
    assert found.reason == "invalid"


def test_the_business_center_of_a_broken_record_is_named_where_it_can_be_read() -> None:
    assert business_center_of(encoded(amount="x"), ()) == "bc-1"
    assert business_center_of(encoded(amount="x"), [("trace", None)]) == "bc-1"
    assert business_center_of(b"{", ()) is None
    assert business_center_of(None, ()) is None
    assert business_center_of(encoded(business_center_id="a\0b"), ()) == "a\\x00b"


@pytest.mark.parametrize("value", structured(encoded(amount="x")))
@pytest.mark.parametrize("headers", [(), *[[("content-type", each)] for each in CONTENT_TYPES]])
def test_the_business_center_of_a_broken_cloud_event_comes_from_its_data(value: bytes, headers: Any) -> None:
    assert business_center_of(value, headers) == "bc-1"
    outside = b'{"business_center_id": "another", ' + value[1:]
    assert business_center_of(outside, headers) == "bc-1"
    assert business_center_of(outside.replace(b'"data', b'"nothing'), headers) is None


def test_the_business_center_of_binary_mode_comes_from_the_value() -> None:
    assert business_center_of(encoded(amount="x", specversion="1.0", data={}), binary()) == "bc-1"


def test_the_business_center_of_a_command_comes_from_the_command() -> None:
    assert business_center_of_command(json.dumps({**COMMAND, "amount": 5, "specversion": "1.0"}).encode()) == "bc-1"
    assert business_center_of_command(b"[]") is None
    assert business_center_of_command(None) is None


def test_headers_are_kept_as_received() -> None:
    raw = Raw("spend.events", 0, 0, None, b"", [("a\0\udc80", None), ("b", b""), ("c", b"\xff")])
    assert raw.headers_json() == [["a\\x00\\udc80", None], ["b", ""], ["c", "/w=="]]


@pytest.mark.parametrize(
    "error", [RuntimeError("a"), KeyError("b\0"), RecursionError(), UnicodeEncodeError("u", "a", 0, 1, "c")]
)
def test_an_unforeseen_exception_is_an_internal_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(record_decoding, "parse_time", fail)
    monkeypatch.setattr(record_decoding, "command_content", fail)
    for found in (
        decode_event(encoded(), ()),
        decode_event(encoded(), binary()),
        decode_command(json.dumps(COMMAND).encode()),
    ):
        assert isinstance(found, Fault)
        assert found.reason == "internal_error"
        assert type(error).__name__ in found.detail
        assert found.error is error
        assert "\0" not in found.detail
