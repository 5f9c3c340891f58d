"""Reading Kafka like the writer: every record once and in order, even while several producers write at once."""

import asyncio
import random
from collections.abc import Awaitable
from dataclasses import dataclass

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition

from services.allocation.lease import Lease
from services.allocation.records import consuming
from services.allocation.records.consuming import OffsetsDoNotFitError, WithoutGaps, open_consumer
from shared.ledger.merkle import CompactRange
from shared.runtime.incarnation import incarnation
from shared.runtime.kafka import FINANCE_COMMANDS, SPEND_EVENTS
from shared.runtime.settings import Settings
from shared.runtime.topics import ensure_topics

RECORDS = 40_000
PRODUCERS = 4


@dataclass
class Batch:
    base_offset: int
    next_offset: int


class Fetched:
    """Batches in the form of a fetch."""

    def __init__(self, *batches: tuple[int, int]) -> None:
        self.batches = [Batch(*each) for each in batches]

    def has_next(self) -> bool:
        return bool(self.batches)

    def next_batch(self) -> Batch:
        return self.batches.pop(0)


def read(fetched: Fetched, offset: int) -> list[int]:
    records = WithoutGaps(TopicPartition("t", 0), fetched, offset)
    found = []
    while records.has_next():
        found.append(records.next_batch().base_offset)
    return found


@pytest.mark.parametrize(
    ("batches", "offset", "found"),
    [
        ([(0, 3), (3, 4), (4, 9)], 0, [0, 3, 4]),
        ([(0, 3), (3, 4)], 2, [0, 3]),
        ([(0, 3), (4, 9), (3, 4)], 0, [0]),
        ([(4, 9)], 3, []),
        ([], 3, []),
    ],
)
def test_a_fetch_ends_before_a_gap(batches: list[tuple[int, int]], offset: int, found: list[int]) -> None:
    assert read(Fetched(*batches), offset) == found


def test_a_permanent_gap_stops_the_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consuming, "GAP_SECONDS", -1.0)
    monkeypatch.setattr(consuming, "_gaps", {})
    assert read(Fetched((4, 9)), 3) == []
    with pytest.raises(OffsetsDoNotFitError, match="3 comes next"):
        read(Fetched((4, 9)), 3)
    assert read(Fetched((3, 4), (4, 9)), 3) == [3, 4]
    assert read(Fetched((4, 9)), 3) == []


def lease(shard: int, **fields: int) -> Lease:
    offsets = {"spend_offset": 0, "command_offset": 0, **fields}
    return Lease(shard, 1, 0, 0, CompactRange(), None, offsets["spend_offset"], offsets["command_offset"], 0, 0)


async def publish(settings: Settings, topic: str, records: int) -> None:
    """Let several producers write to the same partition, in batches of any size."""
    producers = [
        AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap_servers, linger_ms=n) for n in range(PRODUCERS)
    ]
    pace = random.Random(7)
    for producer in producers:
        await producer.start()
    sent: list[Awaitable[object]] = []
    while len(sent) < records:
        for _ in range(min(pace.choice((1, 1, 2, 5, 40)), records - len(sent))):
            value = str(len(sent)).encode()
            sent.append(await pace.choice(producers).send(topic, value, key=b"k", partition=1))
        await asyncio.sleep(0)
    await asyncio.gather(*sent)
    for producer in producers:
        await producer.stop()


async def test_no_record_is_skipped_when_producers_race(settings: Settings) -> None:
    await ensure_topics(settings)
    consumer = await open_consumer(settings, lease(1), await incarnation(settings, SPEND_EVENTS, FINANCE_COMMANDS))
    publishing = asyncio.create_task(publish(settings, SPEND_EVENTS, RECORDS))
    offsets: list[int] = []
    values: set[bytes] = set()
    async with asyncio.timeout(60):
        while len(values) < RECORDS or not publishing.done():
            for records in (await consumer.getmany(timeout_ms=200)).values():
                offsets += [record.offset for record in records]
                values |= {record.value for record in records}
    await publishing
    await consumer.stop()
    assert offsets == list(range(len(offsets)))
    assert len(values) == RECORDS


async def test_the_consumer_continues_from_the_offsets_of_the_lease(settings: Settings) -> None:
    await ensure_topics(settings)
    await publish(settings, SPEND_EVENTS, 20)
    await publish(settings, FINANCE_COMMANDS, 5)
    owned = lease(1, spend_offset=12, command_offset=4)
    consumer = await open_consumer(settings, owned, await incarnation(settings, SPEND_EVENTS, FINANCE_COMMANDS))
    found: dict[str, int] = {}
    async with asyncio.timeout(20):
        while len(found) < 2:
            for partition, records in (await consumer.getmany(timeout_ms=200)).items():
                found.setdefault(partition.topic, records[0].offset)
                assert records[0].headers == []
                assert records[0].key == b"k"
    await consumer.stop()
    assert found == {SPEND_EVENTS: 12, FINANCE_COMMANDS: 4}
