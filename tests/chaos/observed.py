"""The state that is visible from outside, read by the checker itself with SQL, HTTP and a Kafka consumer."""

import io
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from uuid import UUID

import asyncpg
import httpx
from aiokafka import AIOKafkaConsumer, TopicPartition

from tests.chaos.journal import Journal, Record

# The fields of an entry in the order of its canonical bytes (docs/ledger.md).
_FIELDS = (
    "shard, position, amount, occurred_at, recorded_at, source_event_id, part, day, period, kind, holder, pocket,"
    " grant_id, business_center_id, ad_account_id, campaign_id, cause, reverses, details"
)
_COPY_HEADER_BYTES = 19
_INTEGERS = {2: struct.Struct(">h"), 4: struct.Struct(">i"), 8: struct.Struct(">q")}
_COUNT = struct.Struct(">h")
_TEXTS = range(9, 17)
_READS_AT_ONCE = 200


@dataclass(slots=True)
class Entry:
    """An entry. Its times are in µs since 2000."""

    shard: int
    position: int
    amount: int | None
    recorded_at: int
    source: str | None
    part: int
    day: int | None
    kind: str
    holder: str | None
    pocket: str | None
    center: str
    account: str | None
    campaign: str | None
    reverses: str | None
    details: str | None
    leaf: bytes


@dataclass(slots=True)
class Batch:
    """A row of `ledger.batches`."""

    shard: int
    first: int
    last: int
    root: bytes
    epoch: int


@dataclass(slots=True)
class Signal:
    """A message of `delivery.signals`. They are in the order of their partition."""

    key: str
    message: Record


@dataclass(slots=True)
class Observed:
    """The whole state at a moment when nothing is in progress."""

    entries: list[Entry] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    outcomes: list[Record] = field(default_factory=list)
    told_outcomes: list[Record] = field(default_factory=list)
    quarantine: list[tuple[str, bytes]] = field(default_factory=list)
    signals: list[Signal] = field(default_factory=list)
    centers: dict[str, Record] = field(default_factory=dict)
    accounts: dict[str, Record] = field(default_factory=dict)
    campaigns: dict[tuple[str, str], Record] = field(default_factory=dict)


async def observe(
    database: asyncpg.Connection, bootstrap_servers: str, api: httpx.AsyncClient, journal: Journal
) -> Observed:
    """Read the whole state. Nothing may be in progress."""
    seen = Observed(entries=await _entries(database))
    seen.batches = [
        Batch(*row)
        for row in await database.fetch(
            "SELECT shard, first_position, last_position, root, epoch FROM ledger.batches ORDER BY shard, last_position"
        )
    ]
    seen.outcomes = [
        dict(row) for row in await database.fetch("SELECT * FROM ledger.outcomes ORDER BY shard, sequence")
    ]
    seen.quarantine = [
        (row["reason"], row["raw"]) for row in await database.fetch("SELECT reason, raw FROM ledger.quarantine")
    ]
    seen.signals = [
        Signal(key, json.loads(value)) for key, value in await _topic(bootstrap_servers, "delivery.signals")
    ]
    seen.told_outcomes = [json.loads(value) for _, value in await _topic(bootstrap_servers, "finance.outcomes")]
    await _read_models(seen, api, journal)
    return seen


async def _entries(database: asyncpg.Connection) -> list[Entry]:
    """Read the entries with a binary COPY. Its rows are the canonical bytes, so one read gives fields and hashes."""
    rows = io.BytesIO()
    query = f"SELECT {_FIELDS} FROM ledger.entries ORDER BY shard, position"
    await database.copy_from_query(query, output=rows, format="binary")
    return list(_parse(rows.getvalue()))


def _parse(data: bytes) -> Iterator[Entry]:
    at = _COPY_HEADER_BYTES
    while (count := _COUNT.unpack_from(data, at)[0]) != -1:
        start, values = at, []
        at += 2
        for _ in range(count):
            (length,) = _INTEGERS[4].unpack_from(data, at)
            at += 4
            values.append(None if length < 0 else data[at : at + length])
            at += max(0, length)
        yield _entry(values, sha256(b"\x00" + data[start:at]).digest())


def _entry(values: list[bytes | None], leaf: bytes) -> Entry:
    kind, holder, pocket, _, center, account, campaign, _ = (_text(values[each]) for each in _TEXTS)
    shard, position, recorded_at, part = (_integer(values[each]) for each in (0, 1, 4, 6))
    assert shard is not None
    assert position is not None
    assert recorded_at is not None
    assert part is not None
    assert kind is not None
    assert center is not None
    return Entry(
        shard=shard,
        position=position,
        amount=_integer(values[2]),
        recorded_at=recorded_at,
        source=_uuid(values[5]),
        part=part,
        day=_integer(values[7]),
        kind=kind,
        holder=holder,
        pocket=pocket,
        center=center,
        account=account,
        campaign=campaign,
        reverses=_uuid(values[17]),
        details=_text(values[18]),
        leaf=leaf,
    )


def _integer(value: bytes | None) -> int | None:
    return None if value is None else int(_INTEGERS[len(value)].unpack(value)[0])


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _uuid(value: bytes | None) -> str | None:
    return None if value is None else str(UUID(bytes=value))


async def _topic(bootstrap_servers: str, topic: str) -> list[tuple[str, bytes]]:
    """Return the key and value of every record, partition by partition."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap_servers, enable_auto_commit=False)
    await consumer.start()
    found: list[tuple[str, bytes]] = []
    try:
        numbers = (await consumer._client.fetch_all_metadata()).partitions_for_topic(topic) or set()
        partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        while any([await consumer.position(each) < ends[each] for each in partitions]):
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                found += [(record.key.decode(), record.value) for record in records if record.value is not None]
    finally:
        await consumer.stop()
    return found


async def _read_models(seen: Observed, api: httpx.AsyncClient, journal: Journal) -> None:
    for center in sorted(set(journal.accounts.values())):
        seen.centers[center] = await _get(api, f"/v1/business-centers/{center}")
    for account in journal.accounts:
        seen.accounts[account] = await _get(api, f"/v1/ad-accounts/{account}")
    campaigns = {(entry.account, entry.campaign) for entry in seen.entries if entry.account and entry.campaign}
    for account, campaign in sorted(campaigns):
        seen.campaigns[account, campaign] = await _get(api, f"/v1/ad-accounts/{account}/campaigns/{campaign}")


async def _get(api: httpx.AsyncClient, path: str) -> Record:
    answer = await api.get(path)
    assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
    content: Record = answer.json()
    return content


async def backlog(database: asyncpg.Connection, ends: dict[int, int]) -> list[str]:
    """Return what is still in progress. `ends` has each partition's offset after its last acknowledged spend."""
    shards = await database.fetch("SELECT * FROM ledger.shards ORDER BY shard")
    waiting = [
        f"shard {row['shard']} is at offset {row['spend_offset']} of {ends.get(row['shard'], 0)}"
        for row in shards
        if row["spend_offset"] < ends.get(row["shard"], 0)
    ]
    if forwarded := await database.fetchval("SELECT count(*) FROM ledger.forwarded"):
        waiting.append(f"{forwarded} records wait to be taken by their shard")
    heads = {row["shard"]: row for row in shards}
    for row in await database.fetch("SELECT follower, shard, position FROM ledger.checkpoints"):
        head = heads[row["shard"]]["outcome_sequence" if row["follower"] == "outcomes" else "position"]
        if row["position"] < head:
            waiting.append(f"{row['follower']} is at {row['position']} of {head} in shard {row['shard']}")
    return waiting


def causes_of(entry: Entry) -> list[str]:
    """Return an entity's pause causes after a pause or resume."""
    details: dict[str, Any] = json.loads(entry.details or "{}")
    causes: list[str] = details["causes"]
    return causes
