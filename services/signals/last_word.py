"""Ensures that the newest signal of every account and campaign is the last one in the topic, even if others are late.

The lock of the checkpoint prevents two processes from publishing at the same time. But it cannot call back signals that
were sent. If the database ends a session while acknowledgements are awaited, the lock is free and the signals are still
on their way: in a producer that retries, in a socket of a process that hangs or has died, or in the network. They may
arrive behind newer ones that the next process has published, and a compacted topic would keep the old ones. Nothing
bounds how late they are, and not every broker supports producer epochs.

So we read the topic back. If the table of last signals has a newer signal for a record's entity, that one must follow
the record. If it does not, we publish it again under the lock of the checkpoint. Signals published here may be late as
well, so they are also read back. We store the offset up to which every record was followed by its newest signal. The
next process continues from there, so that it does not miss records that arrived while no process was running.

The table is read under the lock too. Then a signal in the topic is also in the table, unless its range was rolled back
and is published again. `docs/decisions/signals-are-read-back.md` describes the alternatives.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Annotated, Any, NamedTuple

import asyncpg
import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import TopicAuthorizationFailedError
from prometheus_client import Counter
from pydantic import BaseModel, Field, ValidationError

from services.signals.publishing import LOCK, NAME, send
from shared.contracts.fields import Identifier
from shared.ledger.follow import follower_connection
from shared.runtime import fetched
from shared.runtime.errors import CannotGoOnError
from shared.runtime.kafka import DELIVERY_SIGNALS, start_client, stop_client
from shared.runtime.postgres import is_lost
from shared.runtime.settings import Settings
from shared.runtime.stopping import close_within

MOST_RECORDS = 1_000  # Compared under one lock.
SETTLE_SECONDS = 0.5  # An embedded broker may return the newest batch a moment late.
_REST_SECONDS = 0.2  # Between two looks. Reading back is not urgent, and many signals cost hardly more than one.
_FETCH_BYTES = 65_536

_CHECKED = "SELECT shard, checked_offset FROM signals.incarnations"
_CHECK = "UPDATE signals.incarnations SET checked_offset = $2 WHERE shard = $1"
_NEWEST = """
    SELECT ad_account_id, campaign_id, position
    FROM unnest($2::text[], $3::text[]) AS entity (ad_account_id, campaign_id)
    JOIN signals.latest USING (ad_account_id, campaign_id) WHERE shard = $1
"""
_ENTRIES = """
    SELECT shard, position, kind, business_center_id, ad_account_id, campaign_id, cause, details, source_event_id,
        occurred_at, recorded_at
    FROM ledger.entries WHERE shard = $1 AND position = ANY($2) AND kind IN ('pause', 'resume') ORDER BY position
"""

_overtaken = Counter(
    "drawdown_signals_overtaken", "Old signals that arrived behind newer ones, which were published again", ["shard"]
)


class Signalled(NamedTuple):
    """An ad account or a campaign of a shard. An account's `campaign_id` is empty."""

    shard: int
    ad_account_id: str
    campaign_id: str


class SignalRead(BaseModel):
    """The fields of a signal that are read back."""

    shard: Annotated[int, Field(ge=0, lt=2**15)]  # The range of shard numbers in the database.
    ad_account_id: Identifier
    campaign_id: Identifier | None
    position: int


class Awaited(NamedTuple):
    """A newest signal that must still come: the partition's end and the monotonic time (seconds) when it was noted."""

    end_offset: int
    since_seconds: float


class Partition:
    """A partition of the topic, and the entities whose newest signals must still come. It has signals of all shards."""

    def __init__(self, number: int) -> None:
        self.topic = TopicPartition(DELIVERY_SIGNALS, number)
        self.checked_offset = 0  # As stored.
        self.awaited: dict[Signalled, Awaited] = {}

    def see(self, read: Mapping[Signalled, int], newest: Mapping[Signalled, int]) -> list[Signalled]:
        """Compare the positions read with the newest; return entities whose newest must come and is not awaited yet."""
        old = {entity for entity, position in read.items() if position < newest.get(entity, 0)}
        for entity in read.keys() - old:
            self.awaited.pop(entity, None)
        return [entity for entity in old if entity not in self.awaited]

    def overtaken(self, offset: int, now_seconds: float) -> list[Signalled]:
        """Return the entities whose newest signal will not come, because it would be below this offset.

        `now_seconds` is a monotonic time.
        """
        return [
            entity
            for entity, awaited in self.awaited.items()
            if offset >= awaited.end_offset and now_seconds - awaited.since_seconds >= SETTLE_SECONDS
        ]


async def read_signals_back(settings: Settings, producer: AIOKafkaProducer) -> None:
    """Read the topic back until cancelled. Publish a newest signal again if an older one arrived after it.

    Waits for a lost database.

    Raises:
        CannotGoOnError: our Kafka user may not read the topic.
        aiokafka.errors.KafkaError: a signal was not acknowledged in time.

    """
    while True:
        try:
            async with follower_connection(settings, NAME) as connection:
                await _read_back(settings, connection, producer)
        except Exception as error:
            if not is_lost(error):
                raise
            structlog.get_logger().warning("connection lost", reading="signals", error=repr(error))
            await asyncio.sleep(_REST_SECONDS)


async def _read_back(settings: Settings, connection: asyncpg.Connection, producer: AIOKafkaProducer) -> None:
    # Only our Kafka user may write to this topic, but a bad record from it must not end this service.
    fetched.install()
    consumer = await start_client(
        settings,
        AIOKafkaConsumer,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=int(_REST_SECONDS * 1000),
        fetch_min_bytes=_FETCH_BYTES,
        client_id="drawdown-signals",
    )
    try:
        partitions = await _begin(connection, consumer, settings)
        while True:
            counts = [await _look(connection, consumer, partition) for partition in partitions]
            for partition in partitions:
                await _follow_up(connection, consumer, producer, partition)
            if max(counts) < MOST_RECORDS:
                await asyncio.sleep(_REST_SECONDS)
    except TopicAuthorizationFailedError as error:
        raise CannotGoOnError(f"topic {DELIVERY_SIGNALS}: the service signals needs the right to read it") from error
    finally:
        await close_within(stop_client(consumer))


async def _begin(connection: asyncpg.Connection, consumer: AIOKafkaConsumer, settings: Settings) -> list[Partition]:
    """Seek to the stored offsets. If the broker does not have one, its partition is read from the beginning."""
    partitions = [Partition(number) for number in range(settings.shards)]
    consumer.assign([partition.topic for partition in partitions])
    checked = dict(await connection.fetch(_CHECKED))
    ends = await consumer.end_offsets([partition.topic for partition in partitions])
    for partition in partitions:
        offset = checked.get(partition.topic.partition, 0)
        # Not every broker refuses an offset beyond the end, and what arrived before it would not be read.
        partition.checked_offset = offset if offset <= ends[partition.topic] else 0
        consumer.seek(partition.topic, partition.checked_offset)
    return partitions


async def _look(connection: asyncpg.Connection, consumer: AIOKafkaConsumer, partition: Partition) -> int:
    """Compare the records that have arrived in a partition with the newest signals; return how many there were."""
    found = await consumer.getmany(partition.topic, timeout_ms=0, max_records=MOST_RECORDS)
    records: Sequence[Any] = found.get(partition.topic, ())
    try:
        expected = await _compare(connection, partition, _positions_read(records))
    except asyncpg.LockNotAvailableError:  # A publisher waits for the broker under this lock; look again later.
        consumer.seek(partition.topic, records[0].offset)
        return 0
    if expected:
        end = (await consumer.end_offsets([partition.topic]))[partition.topic]
        partition.awaited.update(dict.fromkeys(expected, Awaited(end, monotonic())))
    elif not partition.awaited:
        await _store_offset(connection, consumer, partition)
    return len(records)


async def _store_offset(connection: asyncpg.Connection, consumer: AIOKafkaConsumer, partition: Partition) -> None:
    """Store how far the partition was read. That is also behind a batch that was skipped because nobody can read it."""
    offset = await consumer.position(partition.topic)
    if offset != partition.checked_offset:
        await connection.execute(_CHECK, partition.topic.partition, offset)
        partition.checked_offset = offset


def _positions_read(records: Sequence[Any]) -> dict[Signalled, int]:
    """Return for each entity the position in its last record. Skips records that are not signals."""
    read: dict[Signalled, int] = {}
    for record in records:
        with suppress(ValidationError):
            signal = SignalRead.model_validate_json(record.value or b"")
            read[Signalled(signal.shard, signal.ad_account_id, signal.campaign_id or "")] = signal.position
    return read


async def _compare(
    connection: asyncpg.Connection, partition: Partition, read: Mapping[Signalled, int]
) -> list[Signalled]:
    """Compare the positions read with the newest signals; return the entities whose newest must come from now on."""
    expected: list[Signalled] = []
    for shard, entities in _by_shard(read).items():
        async with connection.transaction():
            await _lock(connection, shard)
            newest = await _newest(connection, shard, entities)
        expected += partition.see({entity: read[entity] for entity in entities}, newest)
    return expected


def _by_shard(entities: Iterable[Signalled]) -> dict[int, list[Signalled]]:
    shards: dict[int, list[Signalled]] = {}
    for entity in entities:
        shards.setdefault(entity.shard, []).append(entity)
    return shards


async def _lock(connection: asyncpg.Connection, shard: int) -> None:
    await connection.execute("SET LOCAL lock_timeout = '1s'")
    await connection.execute(LOCK, NAME, shard)


async def _newest(connection: asyncpg.Connection, shard: int, entities: Sequence[Signalled]) -> dict[Signalled, int]:
    """Return the positions of the newest signals of these entities. Leaves out entities without signals."""
    accounts = [entity.ad_account_id for entity in entities]
    campaigns = [entity.campaign_id for entity in entities]
    rows = await connection.fetch(_NEWEST, shard, accounts, campaigns)
    return {Signalled(shard, account, campaign): position for account, campaign, position in rows}


async def _follow_up(
    connection: asyncpg.Connection, consumer: AIOKafkaConsumer, producer: AIOKafkaProducer, partition: Partition
) -> None:
    """Publish the newest signal again for each entity that an old one has overtaken."""
    overtaken = partition.overtaken(await consumer.position(partition.topic), monotonic())
    for shard, entities in _by_shard(overtaken).items():
        with suppress(asyncpg.LockNotAvailableError):  # If the lock is taken, the next round tries again.
            await _publish_again(connection, producer, shard, entities)
            for entity in entities:
                del partition.awaited[entity]


async def _publish_again(
    connection: asyncpg.Connection, producer: AIOKafkaProducer, shard: int, entities: Sequence[Signalled]
) -> None:
    async with connection.transaction():
        await _lock(connection, shard)
        newest = await _newest(connection, shard, entities)
        entries = await connection.fetch(_ENTRIES, shard, list(newest.values()))
        await (await send(producer, entries))
    _overtaken.labels(shard).inc(len(entities))
    structlog.get_logger().warning(
        "old signals arrived behind newer ones: published the newest again", shard=shard, entities=len(entities)
    )
