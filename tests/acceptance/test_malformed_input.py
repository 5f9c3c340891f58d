"""Malformed records on `spend.events`: each is quarantined with its reason and bytes, and the others are charged."""

import json
import zlib
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from shared.runtime.kafka import FINANCE_COMMANDS
from tests.acceptance.front_door import SPENDS, FrontDoor, Place, until
from tests.acceptance.platform import Record
from tests.any_headers import Headers
from tests.model.forms import rfc3339
from tests.model.shards import shard_of
from tests.servers import RunningSystem

CENTER, ACCOUNT = "sane", "sane-account"
KIB = 1024


@dataclass
class Desk:
    """A Business Center with an account, on a running system that other tests use too."""

    door: FrontDoor

    def spend(self, **changes: Any) -> Record:
        """Return a valid spend of 1 with these changes. A field that is `...` is left out."""
        spend = {
            "type": "spend",
            "event_id": str(uuid4()),
            "business_center_id": CENTER,
            "ad_account_id": ACCOUNT,
            "campaign_id": "spring",
            "amount": "1",
            "currency": "USD",
            "occurred_at": rfc3339(self.door.now_us()),
            **changes,
        }
        return {name: value for name, value in spend.items() if value is not ...}

    async def send(self, value: bytes | None, key: bytes | None = CENTER.encode()) -> Place:
        """Publish bytes to the shard of the Business Center."""
        return await self.door.publish_raw(value, key, shard_of(CENTER, self.door.shards))

    async def send_with(self, headers: Headers, value: bytes | None, partition: int | None = None) -> Place:
        """Publish a record with headers of any bytes to the shard of the Business Center, or to another."""
        own = shard_of(CENTER, self.door.shards)
        return await self.door.publish_any(SPENDS, own if partition is None else partition, headers, value)

    async def quarantined(self, place: Place) -> Record:
        """Return the quarantined record of this place, which must be there once the next spend is charged."""
        await self.door.fence(place.partition)
        found = await self.door.quarantine()
        assert place in found, "not quarantined"
        return found[place]

    async def cash_debits(self, event_id: str) -> int:
        """Return how often a spend was charged."""
        return len([each for each in await self.door.entries(event_id) if each["kind"] == "cash_debit"])


@pytest.fixture(scope="module")
async def desk(system: RunningSystem) -> AsyncIterator[Desk]:
    async with FrontDoor(system) as door:
        await door.accepted(CENTER, "open_business_center", currency="USD", time_zone="UTC")
        account = {"ad_account_id": ACCOUNT, "time_zone": "UTC", "buying_type": "auction", "billing": "prepay"}
        await door.accepted(CENTER, "open_ad_account", **account)
        await door.accepted(CENTER, "deposit_cash", ad_account_id=ACCOUNT, amount="100000")
        yield Desk(door)


MALFORMED: dict[str, bytes | None] = {
    "no value": None,
    "nothing": b"",
    "broken JSON": b'{"type": "spend"',
    "two documents": b"{} {}",
    "invalid UTF-8": b'{"type": "spend", "campaign_id": "\xff\xfe"}',
    "NUL characters": b"\x00\x00\x00\x00",
    "a NUL within": b'{"type": "spend", "campaign_id": "a\x00b"}',
    "gzip": b"\x1f\x8b\x08\x00",
    "deep nesting": b"[" * 30_000,
    "a lone surrogate in a known field": b'{"type": "spend", "campaign_id": "\\ud800"}',
    "NaN in an unread field": b'{"type": "spend", "x": [{"y": NaN}]}',
    "Infinity in a CloudEvent": b'{"specversion": "1.0", "data": {"x": -Infinity}}',
    "Base64 of invalid JSON": b'{"specversion": "1.0", "data_base64": "AAEC"}',
    "129 levels": b'{"x": ' + b"[" * 128 + b"]" * 128 + b"}",
    "4,301 digits": b'{"x": 0.' + b"1" * 4300 + b"}",
}


@pytest.mark.parametrize("value", MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_record_that_is_not_json_is_malformed(desk: Desk, value: bytes | None) -> None:
    place = await desk.send(value)
    record = await desk.quarantined(place)
    assert (record["reason"], record["raw"]) == ("malformed", value)


async def test_a_record_without_a_key_is_routed_by_its_content(desk: Desk) -> None:
    spend = desk.spend()
    place = await desk.send(json.dumps(spend).encode(), key=None)
    await desk.door.fence(place.partition)
    assert await desk.cash_debits(spend["event_id"]) == 1


INVALID: dict[str, Record] = {
    "an unknown type": {"type": "refund"},
    "no type": {"type": ...},
    "no amount": {"amount": ...},
    "an exponent": {"amount": "1e3"},
    "NaN": {"amount": "NaN"},
    "infinity": {"amount": "Infinity"},
    "Arabic digits": {"amount": "٣"},
    "full-width digits": {"amount": "３.５"},
    "a JSON number": {"amount": 1},
    "a JSON fraction": {"amount": 1.5},
    "true": {"amount": True},
    "thirteen digits": {"amount": "1234567890123"},
    "seven decimals": {"amount": "0.0000001"},
    "zero": {"amount": "0"},
    "zero with decimals": {"amount": "0.000000"},
    "a minus": {"amount": "-1"},
    "a plus": {"amount": "+1"},
    "a leading zero": {"amount": "01"},
    "a bare point": {"amount": "1."},
    "a space": {"amount": " 1"},
    "a newline at the end": {"amount": "1\n"},
    "a naive time": {"occurred_at": "2027-03-10T12:00:00"},
    "no such day": {"occurred_at": "2027-02-30T12:00:00Z"},
    "no such hour": {"occurred_at": "2027-03-10T25:00:00Z"},
    "the year 0": {"occurred_at": "0000-01-01T00:00:00Z"},
    "a date": {"occurred_at": "2027-03-10"},
    "an offset of 60 minutes": {"occurred_at": "2027-03-10T12:00:00+14:60"},
    "an offset of a day": {"occurred_at": "2027-03-10T12:00:00+24:00"},
    "seconds since 1970": {"occurred_at": 1_800_000_000},
    "words": {"occurred_at": "yesterday"},
    "not a UUID": {"event_id": "42"},
    "a UUID and a newline": {"event_id": "0193d0a0-0000-7000-8000-000000000001\n"},
    "an id with a space": {"campaign_id": "spring sale"},
    "an id of 65": {"campaign_id": "c" * 65},
    "an empty id": {"campaign_id": ""},
    "a NUL in an id": {"ad_account_id": "a\u0000b"},
    "null": {"ad_account_id": None},
    "a small currency": {"currency": "usd"},
}


@pytest.mark.parametrize("changes", INVALID.values(), ids=INVALID.keys())
async def test_an_event_that_fails_a_check_is_invalid(desk: Desk, changes: Record) -> None:
    value = json.dumps(desk.spend(**changes)).encode()
    record = await desk.quarantined(await desk.send(value))
    assert (record["reason"], record["raw"]) == ("invalid", value)


@pytest.mark.parametrize("document", ["[]", "null", "17", '"spend"', "{}", '[{"type": "spend"}]'])
async def test_json_that_is_not_an_event_is_quarantined(desk: Desk, document: str) -> None:
    record = await desk.quarantined(await desk.send(document.encode()))
    assert record["reason"] in ("invalid", "malformed")
    assert record["raw"] == document.encode()


async def test_unknown_fields_with_any_value_are_ignored(desk: Desk) -> None:
    spend = desk.spend(note="\U0001f600 \u0000", nested={"deep": [1, 2, {"er": None}]})
    place = await desk.send(json.dumps(spend).encode())
    await desk.door.fence(place.partition)
    assert await desk.cash_debits(spend["event_id"]) == 1


ELSEWHERE: dict[str, tuple[Record, str]] = {
    "an unknown Business Center": ({"business_center_id": "sane-not"}, "unknown_business_center"),
    "an unknown account": ({"ad_account_id": "nobody"}, "unknown_ad_account"),
    "another currency": ({"currency": "EUR"}, "currency_mismatch"),
    "the year 1": ({"occurred_at": "0001-01-01T00:00:00Z"}, "too_old"),
    "the year 9999": ({"occurred_at": "9999-12-31T23:59:59Z"}, "too_far_ahead"),
}


@pytest.mark.parametrize(("changes", "reason"), ELSEWHERE.values(), ids=ELSEWHERE.keys())
async def test_a_well_formed_but_wrong_event_is_quarantined_with_its_reason(
    desk: Desk, changes: Record, reason: str
) -> None:
    value = json.dumps(desk.spend(**changes)).encode()
    place = await desk.door.publish_raw(value, partition=shard_of(CENTER, desk.door.shards))
    record = await until("it is quarantined", lambda: _find(desk, place))
    assert (record["reason"], record["raw"]) == (reason, value)


async def _find(desk: Desk, place: Place) -> Record | None:
    return (await desk.door.quarantine()).get(place)


@pytest.mark.parametrize("size", [64 * KIB + 1, 300 * KIB, 1000 * KIB])
async def test_the_beginning_size_and_hash_of_a_large_record_are_kept(desk: Desk, size: int) -> None:
    spend = json.dumps(desk.spend(note="")).encode()
    value = spend[:-2] + b"x" * (size - len(spend)) + b'"}'
    assert len(value) == size
    record = await desk.quarantined(await desk.send(value))
    assert (record["reason"], record["raw"]) == ("too_large", value[:4096])
    assert sha256(value).hexdigest() in record["detail"]
    assert f" {size}:" in record["detail"]


async def test_a_record_of_64_kib_is_charged(desk: Desk) -> None:
    spend = desk.spend(note="")
    spend["note"] = "x" * (64 * KIB - len(json.dumps(spend).encode()))
    place = await desk.send(json.dumps(spend).encode())
    await desk.door.fence(place.partition)
    assert await desk.cash_debits(spend["event_id"]) == 1


@pytest.mark.parametrize("hash_name", ["crc32", "fixed", "every partition"])
async def test_a_record_on_a_wrong_partition_is_charged_once_in_its_own_shard(desk: Desk, hash_name: str) -> None:
    door, spend = desk.door, desk.spend()
    own = shard_of(CENTER, door.shards)
    partitions = {
        "crc32": [zlib.crc32(CENTER.encode()) % door.shards],
        "fixed": [(own + 1) % door.shards],
        "every partition": list(range(door.shards)),
    }[hash_name]
    for partition in partitions:
        await door.publish(spend, partition)
    await door.fence(*partitions)

    async def charged() -> list[Record] | None:
        return await door.entries(spend["event_id"]) or None

    entries = await until("it is charged", charged)
    await door.fence(own)
    assert await door.entries(spend["event_id"]) == entries
    assert {(entry["kind"], entry["shard"]) for entry in entries} == {("cash_debit", own)}


async def test_a_valid_spend_between_invalid_ones_is_charged(desk: Desk) -> None:
    good = [desk.spend() for _ in range(5)]
    for spend in good:
        await desk.send(b"{")
        await desk.send(json.dumps(spend).encode())
    await desk.door.fence(shard_of(CENTER, desk.door.shards))
    assert [await desk.cash_debits(spend["event_id"]) for spend in good] == [1] * 5


def envelope(spend: Record, **attributes: Any) -> Record:
    """Return a CloudEvent in structured mode. A field that is `...` is left out."""
    event = {"specversion": "1.0", "id": spend["event_id"], "source": "/ads", "type": "ad.spend", "data": spend}
    return {name: value for name, value in {**event, **attributes}.items() if value is not ...}


POISON_TIMES = ["", [], {}, {"a": 1}, 0, True, "2027-02-30T00:00:00Z", "z"]


@pytest.mark.parametrize("time", POISON_TIMES, ids=repr)
async def test_an_invalid_time_is_refused_in_any_place(desk: Desk, time: Any) -> None:
    good, bad = desk.spend(), desk.spend(occurred_at=time)
    values = [envelope(good, time=time), envelope(bad, time=good["occurred_at"]), envelope(bad, time=time), bad]
    places = [await desk.send(json.dumps(value).encode()) for value in values]
    head = [(b"ce_specversion", b"1.0"), (b"ce_time", good["occurred_at"].encode())]
    places.append(await desk.send_with(head, json.dumps(bad).encode()))
    assert [(await desk.quarantined(place))["reason"] for place in places] == ["invalid"] * 5
    assert await desk.cash_debits(good["event_id"]) == 0


async def test_a_quarantined_cloud_event_belongs_to_the_business_center_in_its_data(desk: Desk) -> None:
    broken = json.dumps(desk.spend(amount="x")).encode()
    head = b'{"specversion": "1.0", "business_center_id": "another", '
    forms = [b'"data": ' + broken, b'"data_base64": "' + b64encode(broken) + b'"']
    headers: Headers = [(b"gr\xfcn\x00", None), (b"x", b"\xff")]
    places = [await desk.send_with(headers, head + form + b"}") for form in forms]
    connection = await asyncpg.connect(desk.door.system.database_url)
    for place in places:
        assert (await desk.quarantined(place))["reason"] == "invalid"
        row = await connection.fetchrow(
            'SELECT business_center_id, headers FROM ledger.quarantine WHERE partition = $1 AND "offset" = $2', *place
        )
        assert row["business_center_id"] == CENTER
        assert json.loads(row["headers"]) == [["gr\\xfcn\\x00", None], ["x", "/w=="]]
    await connection.close()


async def test_a_cloud_event_is_charged_in_every_form(desk: Desk) -> None:
    structured: Headers = [(b"Content-Type", b"Application/CloudEvents+JSON; charset=utf-8")]
    spends = [desk.spend(note="\u00fc" * 15_000) for _ in range(4)]
    data = [json.dumps(spend, ensure_ascii=False).encode() for spend in spends]
    head = b'{"specversion": "1.0", "source": "/ads", "type": "t", "x": {}, '
    places = [
        await desk.send(head + b'"data": ' + data[0] + b"}"),
        await desk.send(head + b'"data_base64": "' + b64encode(data[1]) + b'"}'),
        await desk.send_with(structured, head + b'"data": ' + data[2] + b"}"),
        await desk.send_with([(b"ce_specversion", b"1.0"), (b"content-type", b"text/json")], data[3]),
    ]
    await desk.door.fence(places[0].partition)
    assert [await desk.cash_debits(spend["event_id"]) for spend in spends] == [1] * 4


async def test_a_leap_second_is_charged_as_the_next_minute(desk: Desk) -> None:
    now = rfc3339(desk.door.now_us())
    spend = desk.spend(occurred_at=f"{now[:16]}:60.25Z")
    place = await desk.send(json.dumps(spend).encode())
    await desk.door.fence(place.partition)
    (entry,) = await desk.door.entries(spend["event_id"])
    next_minute = datetime.fromisoformat(f"{now[:16]}:00+00:00") + timedelta(minutes=1)
    assert datetime.fromisoformat(entry["occurred_at"]) == next_minute


BAD_HEADERS: dict[str, Headers] = {
    "an empty time": [(b"ce_specversion", b"1.0"), (b"ce_time", b"")],
    "a version without a value": [(b"ce_specversion", None)],
    "another version": [(b"ce_specversion", b"0.3")],
    "a version of any bytes": [(b"ce_specversion", b"\xff")],
    "a time of any bytes": [(b"ce_specversion", b"1.0"), (b"ce_time", b"\xff\xfe")],
    "an id of any bytes": [(b"ce_specversion", b"1.0"), (b"ce_id", b"\x00")],
    "a batch": [(b"content-type", b"application/cloudevents-batch+json")],
    "Avro": [(b"Content-Type", b"application/cloudevents+avro")],
}


@pytest.mark.parametrize("headers", BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
async def test_contradictory_headers_are_invalid(desk: Desk, headers: Headers) -> None:
    value = json.dumps(desk.spend()).encode()
    record = await desk.quarantined(await desk.send_with(headers, value))
    assert (record["reason"], record["raw"]) == ("invalid", value)


GOOD_HEADERS: dict[str, Headers] = {
    "a name that is not UTF-8": [(b"kampagne-gr\xfcn", b"1")],
    "half a surrogate as a name": [(b"\xed\xa0\x80", None)],
    "no name": [(b"", b"")],
    "a name of NUL": [(b"\x00", b"\x00")],
    "an unread attribute": [(b"ce_specversion", b"1.0"), (b"ce_subject", b"\xff"), (b"ce_gr\xfcn", b"")],
    "attributes without a value": [(b"ce_specversion", b"1.0"), (b"ce_time", None), (b"ce_id", None), (b"ce_x", None)],
}


@pytest.mark.parametrize("headers", GOOD_HEADERS.values(), ids=GOOD_HEADERS.keys())
async def test_an_unread_header_is_ignored(desk: Desk, headers: Headers) -> None:
    here, elsewhere = desk.spend(), desk.spend()
    own = shard_of(CENTER, desk.door.shards)
    other = (own + 1) % desk.door.shards
    place = await desk.send_with(headers, json.dumps(here).encode())
    await desk.send_with(headers, json.dumps(elsewhere).encode(), other)
    await desk.door.fence(place.partition, other)
    assert await desk.cash_debits(here["event_id"]) == 1
    await until("it is charged", lambda: _charged(desk, elsewhere["event_id"]))
    bad = await desk.quarantined(await desk.send_with(headers, b"{"))
    assert (bad["reason"], bad["raw"]) == ("malformed", b"{")


async def _charged(desk: Desk, event_id: str) -> bool | None:
    return await desk.cash_debits(event_id) == 1 or None


@pytest.mark.parametrize("headers", [*GOOD_HEADERS.values(), *BAD_HEADERS.values()])
async def test_headers_of_a_command_are_ignored(desk: Desk, headers: Headers) -> None:
    command: Record = {
        "command_id": str(uuid4()),
        "type": "deposit_cash",
        "business_center_id": CENTER,
        "ad_account_id": ACCOUNT,
        "amount": "1",
        "issued_at": rfc3339(desk.door.now_us()),
        "actor": {"id": "ann", "role": "admin"},
    }
    own = shard_of(CENTER, desk.door.shards)
    await desk.door.publish_any(FINANCE_COMMANDS, own, headers, json.dumps(command).encode())

    async def entries() -> list[Record] | None:
        return await desk.door.entries(command["command_id"]) or None

    (deposit,) = await until("it is in the ledger", entries)
    assert deposit["kind"] == "deposit"
