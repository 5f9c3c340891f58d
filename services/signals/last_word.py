"""The newest signal of every account and campaign has the last word in the topic, whatever arrives late.

The checkpoint's lock keeps two processes from publishing at the same time. It cannot call back what has been sent: when
the database ends a session while acknowledgements are awaited, the lock is free and the signals are still on their way,
in a producer that sends them again, in a socket of a process that stands still or is dead, in whatever lies between us
and the broker. They may arrive behind newer ones that the next process has published, and a compacted topic would keep
the old ones. Nothing bounds how late they are, and not every broker knows producers' epochs.

So we read the topic back. A record whose entity has a newer signal, according to the table of the last signals, must be
followed by that one. Where it is not, the newest is published again under the checkpoint's lock. What we publish here
may itself be late one day: it is read back as well. The offset up to which every record was followed by its newest is
kept, so that whoever starts next goes on from there, and what arrives while no process lives is not missed.

The table is asked under the lock too: a signal that is in the topic is in the table then, or its range was undone and
is published again. `docs/decisions/signals-are-read-back.md` says what else was thought of.
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
from shared.runtime.errors import CannotGoOnError
from shared.runtime.kafka import DELIVERY_SIGNALS, start_client, stop_client, take_readable
from shared.runtime.postgres import is_lost
from shared.runtime.settings import Settings
from shared.runtime.stopping import close_within

MOST_RECORDS = 1_000  # looked at under one lock
SETTLE_SECONDS = 0.5  # An embedded broker may give away the newest batch a moment late.
_REST_SECONDS = 0.2  # between two looks: reading back is in no hurry, and many signals are looked at like one
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
    "drawdown_signals_overtaken", "Old signals that came behind newer ones, which were published again", ["shard"]
)


class Entity(NamedTuple):
    """An ad account of a shard, or a campaign of it; of an account the last is empty."""

    shard: int
    ad_account_id: str
    campaign_id: str


class Told(BaseModel):
    """What is read of a signal."""

    shard: Annotated[int, Field(ge=0, lt=2**15)]  # as far as the database's numbers of shards go
    ad_account_id: Identifier
    campaign_id: Identifier | None
    position: int


class Awaited(NamedTuple):
    """What is known of a newest signal that must still come: the end of the partition, and the time, when we knew."""

    end: int
    since: float


class Partition:
    """One of the topic, which holds signals of every shard, and the entities whose newest signals must still come."""

    def __init__(self, number: int) -> None:
        self.topic = TopicPartition(DELIVERY_SIGNALS, number)
        self.awaited: dict[Entity, Awaited] = {}

    def see(self, told: Mapping[Entity, int], newest: Mapping[Entity, int]) -> list[Entity]:
        """Take note of the positions that were read; return the entities whose newest must come and was not awaited."""
        old = {entity for entity, position in told.items() if position < newest.get(entity, 0)}
        for entity in told.keys() - old:
            self.awaited.pop(entity, None)
        return [entity for entity in old if entity not in self.awaited]

    def overtaken(self, offset: int, now: float) -> list[Entity]:
        """The entities whose newest signal does not come any more: read up to this offset, it would have come."""
        return [
            entity
            for entity, awaited in self.awaited.items()
            if offset >= awaited.end and now - awaited.since >= SETTLE_SECONDS
        ]


async def keep_the_last_word(settings: Settings, producer: AIOKafkaProducer) -> None:
    """Read the topic back until cancelled, and publish again what an old signal came behind.

    A lost database is waited for.

    Raises:
        CannotGoOnError: this user may not read the topic.
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
            heaps = [await _look(connection, consumer, partition) for partition in partitions]
            for partition in partitions:
                await _follow_up(connection, consumer, producer, partition)
            if max(heaps) < MOST_RECORDS:
                await asyncio.sleep(_REST_SECONDS)
    except TopicAuthorizationFailedError as error:
        raise CannotGoOnError(f"topic {DELIVERY_SIGNALS}: the service signals needs the right to read it") from error
    finally:
        await close_within(stop_client(consumer))


async def _begin(connection: asyncpg.Connection, consumer: AIOKafkaConsumer, settings: Settings) -> list[Partition]:
    """Go on from the offsets that are kept; a broker that no longer has them is read from its beginning."""
    partitions = [Partition(number) for number in range(settings.shards)]
    consumer.assign([partition.topic for partition in partitions])
    checked = dict(await connection.fetch(_CHECKED))
    for partition in partitions:
        consumer.seek(partition.topic, checked.get(partition.topic.partition, 0))
    return partitions


async def _look(connection: asyncpg.Connection, consumer: AIOKafkaConsumer, partition: Partition) -> int:
    """Look at the records of a partition that have come; return how many there were."""
    records = await take_readable(consumer, partition.topic, MOST_RECORDS)
    if not records:
        return 0
    try:
        expected = await _compare(connection, partition, _told(records))
    except asyncpg.LockNotAvailableError:  # Signals of a shard wait for the broker: look again when they do not.
        consumer.seek(partition.topic, records[0].offset)
        return 0
    if expected:
        end = (await consumer.end_offsets([partition.topic]))[partition.topic]
        partition.awaited.update(dict.fromkeys(expected, Awaited(end, monotonic())))
    elif not partition.awaited:
        await connection.execute(_CHECK, partition.topic.partition, records[-1].offset + 1)
    return len(records)


def _told(records: Sequence[Any]) -> dict[Entity, int]:
    """Of each entity the position in the last of these records; a record that is no signal tells nothing."""
    told: dict[Entity, int] = {}
    for record in records:
        with suppress(ValidationError):
            signal = Told.model_validate_json(record.value or b"")
            told[Entity(signal.shard, signal.ad_account_id, signal.campaign_id or "")] = signal.position
    return told


async def _compare(connection: asyncpg.Connection, partition: Partition, told: Mapping[Entity, int]) -> list[Entity]:
    """Compare what was read with the newest signals; return the entities whose newest must come from now on."""
    expected: list[Entity] = []
    for shard, entities in _by_shard(told).items():
        async with connection.transaction():
            await _lock(connection, shard)
            newest = await _newest(connection, shard, entities)
        expected += partition.see({entity: told[entity] for entity in entities}, newest)
    return expected


def _by_shard(entities: Iterable[Entity]) -> dict[int, list[Entity]]:
    shards: dict[int, list[Entity]] = {}
    for entity in entities:
        shards.setdefault(entity.shard, []).append(entity)
    return shards


async def _lock(connection: asyncpg.Connection, shard: int) -> None:
    await connection.execute("SET LOCAL lock_timeout = '1s'")
    await connection.execute(LOCK, NAME, shard)


async def _newest(connection: asyncpg.Connection, shard: int, entities: Sequence[Entity]) -> dict[Entity, int]:
    """The positions of the newest signals of those of a shard's entities that have any."""
    accounts = [entity.ad_account_id for entity in entities]
    campaigns = [entity.campaign_id for entity in entities]
    rows = await connection.fetch(_NEWEST, shard, accounts, campaigns)
    return {Entity(shard, account, campaign): position for account, campaign, position in rows}


async def _follow_up(
    connection: asyncpg.Connection, consumer: AIOKafkaConsumer, producer: AIOKafkaProducer, partition: Partition
) -> None:
    """Publish the newest signals again of the entities that an old one has overtaken."""
    overtaken = partition.overtaken(await consumer.position(partition.topic), monotonic())
    for shard, entities in _by_shard(overtaken).items():
        with suppress(asyncpg.LockNotAvailableError):  # Then in the next round.
            await _publish_again(connection, producer, shard, entities)
            for entity in entities:
                del partition.awaited[entity]


async def _publish_again(
    connection: asyncpg.Connection, producer: AIOKafkaProducer, shard: int, entities: Sequence[Entity]
) -> None:
    async with connection.transaction():
        await _lock(connection, shard)
        newest = await _newest(connection, shard, entities)
        entries = await connection.fetch(_ENTRIES, shard, list(newest.values()))
        await (await send(producer, entries))
    _overtaken.labels(shard).inc(len(entities))
    structlog.get_logger().warning(
        "old signals came behind newer ones: published the newest again", shard=shard, entities=len(entities)
    )
