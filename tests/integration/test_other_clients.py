"""The records of other clients: every codec, and transactions (librdkafka, which most languages wrap)."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from confluent_kafka import KafkaException, Producer

from services.allocation.operating.skipping import skip
from shared.runtime.errors import CannotGoOnError
from shared.runtime.kafka import SPEND_EVENTS
from shared.runtime.settings import Settings
from tests.acceptance.front_door import FrontDoor, until
from tests.integration.librdkafka import CODECS, compress_in_the_topic, make_producer, produce
from tests.servers import LIMITS, RunningSystem, running_system

pytestmark = pytest.mark.containers

CENTER = "librdkafka"
COMMITTED, ABORTED = 200, 100
_SECONDS = 60.0


@pytest.fixture(scope="module")
async def production() -> AsyncIterator[RunningSystem]:
    async with running_system() as system:
        yield system


@pytest.fixture(scope="module")
async def door(production: RunningSystem) -> AsyncIterator[FrontDoor]:
    async with FrontDoor(production) as door:
        await door.accepted(CENTER, "open_business_center", currency="USD", time_zone="UTC")
        await door.accepted(
            CENTER,
            "open_ad_account",
            ad_account_id=CENTER,
            billing="prepay",
            buying_type="auction",
            time_zone="UTC",
        )
        await door.accepted(CENTER, "deposit_cash", ad_account_id=CENTER, amount="1000")
        yield door


def spends(count: int) -> list[dict[str, str]]:
    return [
        {
            "type": "spend",
            "event_id": str(uuid4()),
            "business_center_id": CENTER,
            "ad_account_id": CENTER,
            "campaign_id": "brand",
            "amount": "0.01",
            "currency": "USD",
            "occurred_at": datetime.now(UTC).isoformat(),
        }
        for _ in range(count)
    ]


def records(events: Iterable[dict[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(CENTER.encode(), json.dumps(event).encode()) for event in events]


async def charged(door: FrontDoor, events: Iterable[dict[str, str]]) -> int:
    """Return how many of these spends have entries, once everything before them is decided."""
    for partition in range(door.shards):
        await door.fence(partition)
    found = [await door.entries(event["event_id"]) for event in events]
    return sum(1 for entries in found if entries)


@pytest.mark.parametrize("codec", CODECS)
async def test_spends_of_every_codec_are_charged(door: FrontDoor, codec: str) -> None:
    events = spends(20)
    producer = make_producer(door.system.settings, compression_type=codec)
    await asyncio.to_thread(produce, producer, SPEND_EVENTS, records(events))
    assert await charged(door, events) == len(events)


async def test_spends_that_the_topic_compresses_are_charged(door: FrontDoor) -> None:
    settings = door.system.settings
    await compress_in_the_topic(settings, SPEND_EVENTS, "zstd")
    try:
        events = spends(20)
        await asyncio.to_thread(
            produce, make_producer(settings, compression_type="gzip"), SPEND_EVENTS, records(events)
        )
        assert await charged(door, events) == len(events)
    finally:
        await compress_in_the_topic(settings, SPEND_EVENTS, "producer")


def begin(settings: Settings, name: str, **options: Any) -> Producer:
    producer = make_producer(settings, transactional_id=name, **options)
    producer.init_transactions(_SECONDS)
    producer.begin_transaction()
    return producer


def send(producer: Producer, events: Iterable[dict[str, str]]) -> None:
    for key, value in records(events):
        producer.produce(SPEND_EVENTS, value, key)
    assert producer.flush(_SECONDS) == 0


async def no_skip(door: FrontDoor, shard: int) -> str:
    """Return why the spend that a shard needs next cannot be skipped."""

    async def ask() -> str | None:
        offset = await database.fetchval("SELECT spend_offset FROM ledger.shards WHERE shard = $1", shard)
        with pytest.raises(CannotGoOnError) as refused:
            await skip(door.system.settings, shard, SPEND_EVENTS, offset, "it stands")
        # None: the shard has continued meanwhile.
        return None if "needs offset" in str(refused.value) else str(refused.value)

    database = await asyncpg.connect(door.system.settings.database_url)
    try:
        return await until(f"shard {shard} stands", ask)
    finally:
        await database.close()


async def test_committed_spends_are_charged_and_aborted_ones_never(door: FrontDoor) -> None:
    kept, dropped = spends(COMMITTED), spends(ABORTED)

    def work() -> None:
        producer = make_producer(door.system.settings, transactional_id="ad-delivery-1")
        producer.init_transactions(_SECONDS)
        for number in range(10):
            for events, end in (
                (dropped[number::10], producer.abort_transaction),
                (kept[number::10], producer.commit_transaction),
            ):
                producer.begin_transaction()
                send(producer, events)
                end(_SECONDS)

    await asyncio.to_thread(work)
    assert await charged(door, kept) == COMMITTED
    assert await charged(door, dropped) == 0


async def test_the_end_of_a_transaction_does_not_count_as_a_waiting_record(door: FrontDoor) -> None:
    """It takes an offset of the topic, but no consumer ever gets it."""

    def work() -> None:
        for end in (Producer.commit_transaction, Producer.abort_transaction):
            producer = begin(door.system.settings, "ad-delivery-3")
            send(producer, spends(1))
            end(producer, _SECONDS)

    await asyncio.to_thread(work)
    async with httpx.AsyncClient(trust_env=False, limits=LIMITS) as client:
        allocation = door.system.services["allocation"].url

        async def nothing_waits() -> bool | None:
            detail = (await client.get(f"{allocation}/readyz")).json()["detail"]
            return True if ", 0 records wait" in detail else None

        await until("nothing waits", nothing_waits)


async def test_an_open_transaction_delays_later_records_until_the_broker_aborts_it(door: FrontDoor) -> None:
    behind, dropped = spends(1), spends(3)
    producer = await asyncio.to_thread(begin, door.system.settings, "ad-delivery-2", transaction_timeout_ms=2_000)
    await asyncio.to_thread(send, producer, dropped)
    await asyncio.to_thread(produce, make_producer(door.system.settings), SPEND_EVENTS, records(behind))
    assert await charged(door, behind) == 1  # The fence lies behind the transaction, too.
    assert await charged(door, dropped) == 0
    with contextlib.suppress(KafkaException):
        await asyncio.to_thread(producer.abort_transaction, _SECONDS)


async def test_no_record_behind_an_open_transaction_can_be_skipped_by_hand(door: FrontDoor) -> None:
    """The records behind it can be read once it has ended. Skipping would lose them."""
    open_for = 600_000  # The broker does not end it before we do, however slow the machine is.
    producer = await asyncio.to_thread(begin, door.system.settings, "ad-delivery-4", transaction_timeout_ms=open_for)
    try:
        await asyncio.to_thread(send, producer, spends(1))
        refused = [await no_skip(door, shard) for shard in range(door.shards)]
    finally:
        await asyncio.to_thread(producer.abort_transaction, _SECONDS)
    assert sum("is behind a transaction that has not ended" in each for each in refused) == 1, refused
