"""Bytes from Kafka: what is an event, and what is quarantined for which reason."""

import json
from typing import Any

import pytest

from services.allocation.decoding import Command, Fault, business_center_of, decode_command, decode_event
from shared.contracts.commands import same_content

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
        {"unknown": {"field": [1, None]}},
    ],
)
def test_the_same_meaning_however_it_is_written(changes: dict[str, Any]) -> None:
    assert decode_event(encoded(**changes), ()) == (*EVENT, None, None)


def test_a_reversal_names_its_spend_and_reason() -> None:
    value = encoded(type="reversal", reverses="0193abcd-0000-7000-8000-000000000002", reason="invalid_traffic")
    found = decode_event(value, ())
    assert found == (*EVENT, bytes.fromhex("0193abcd000070008000000000000002"), "invalid_traffic")


BAD_AMOUNTS = ["1e3", "NaN", "٣", "-1", "+1", "0", "0.000000", "01", "1.", ".5", "1.0000001", "1234567890123", "", " 1"]
BAD_TIMES = [
    "2026-11-21T12:00:00",
    "2026-11-21 12:00:00Z",
    "2026-13-21T12:00:00Z",
    "0000-01-01T00:00:00Z",
    "2026-11-21T12:00:00+25:00",
    "1795262400",
    "now",
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
def test_bad_json_is_malformed(value: bytes | None) -> None:
    found = decode_event(value, ())
    assert isinstance(found, Fault)
    assert found.reason == "malformed"


def test_above_64_kib_is_too_large() -> None:
    at_most = encoded(padding="")
    at_most = encoded(padding="x" * (65536 - len(at_most)))
    assert isinstance(decode_event(at_most, ()), tuple)
    too_large = decode_event(at_most + b" ", ())
    assert isinstance(too_large, Fault)
    assert too_large.reason == "too_large"


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
    ],
)
def test_cloud_events_carry_the_same(event: dict[str, Any]) -> None:
    assert decode_event(json.dumps(event).encode(), ()) == (*EVENT, None, None)
    headers = [(f"ce_{name}", value.encode()) for name, value in event.items() if name != "data"]
    assert decode_event(json.dumps(event["data"]).encode(), headers) == (*EVENT, None, None)


@pytest.mark.parametrize(
    "event",
    [
        cloud(specversion="0.3"),
        cloud(id="0193abcd-0000-7000-8000-000000000009"),
        cloud(time="2026-11-21T12:00:01Z"),
        cloud(data=without("occurred_at")),
        cloud(data="text"),
        cloud(data={**SPEND, "amount": "1e3"}),
    ],
)
def test_a_cloud_event_that_contradicts_itself_is_invalid(event: dict[str, Any]) -> None:
    found = decode_event(json.dumps(event).encode(), ())
    assert isinstance(found, Fault)
    assert found.reason == "invalid"


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
    ],
)
def test_a_command_is_the_same_if_it_means_the_same(changes: dict[str, Any]) -> None:
    first, second = (
        decode_command(json.dumps(COMMAND).encode()),
        decode_command(json.dumps({**COMMAND, **changes}).encode()),
    )
    assert isinstance(first, Command)
    assert isinstance(second, Command)
    assert first.id == second.id
    assert same_content(first.content) == same_content(second.content)


@pytest.mark.parametrize(
    "changes", [{"amount": "5.6"}, {"actor": {"id": "bob", "role": "admin"}}, {"voucher_id": "v-2"}]
)
def test_another_content_is_another_command(changes: dict[str, Any]) -> None:
    first, second = (
        decode_command(json.dumps(COMMAND).encode()),
        decode_command(json.dumps({**COMMAND, **changes}).encode()),
    )
    assert isinstance(first, Command)
    assert isinstance(second, Command)
    assert same_content(first.content) != same_content(second.content)


@pytest.mark.parametrize(
    "changes", [{"issued_at": "2026-13-01T00:00:00Z"}, {"amount": 5}, {"type": "x"}, {"actor": None}]
)
def test_a_broken_command_is_a_fault(changes: dict[str, Any]) -> None:
    found = decode_command(json.dumps({**COMMAND, **changes}).encode())
    assert isinstance(found, Fault)
    assert found.reason == "invalid"


def test_the_center_of_a_broken_record_is_told_where_it_can_be_read() -> None:
    assert business_center_of(encoded(amount="x"), ()) == "bc-1"
    assert business_center_of(b"{", ()) is None
    assert business_center_of(None, ()) is None
    assert business_center_of(encoded(business_center_id="a\0b"), ()) == "a\\x00b"
