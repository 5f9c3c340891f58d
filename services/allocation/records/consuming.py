"""The consumer of a shard's partitions, which begins at the offsets that the ledger holds and nowhere else."""

import struct
from time import monotonic
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.errors import KafkaError

from services.allocation import metrics
from services.allocation.lease import Lease
from services.allocation.records import batch_bounds
from services.allocation.records.kafka_batches import FetchedRecords
from shared.runtime.errors import CannotGoOnError
from shared.runtime.incarnation import is_same_incarnation
from shared.runtime.kafka import FINANCE_COMMANDS, SPEND_EVENTS, start_client, stop_client
from shared.runtime.settings import Settings

GAP_SECONDS: Final = 30.0


class OffsetsDoNotFitError(CannotGoOnError):
    """The topic no longer holds the next records, so some would be skipped. The message says what to do."""


class OtherTopicsError(OffsetsDoNotFitError):
    """The topics are not those whose offsets the ledger holds, which concerns every shard."""


class WithoutGaps:
    """The batches of a fetch up to the first gap. The batches after the gap are fetched again, with the missing ones.

    The batches of a partition follow each other, so a fetch that leaves one out would lose its spends. The embedded
    broker does that if several producers write at once: it may show a batch before the one with the lower offsets.
    """

    def __init__(self, partition: TopicPartition, records: Any, offset: int) -> None:
        self._partition = partition
        self._records = records
        self._next_offset = offset
        self._batch: Any = None
        self._ended = False

    def has_next(self) -> bool:
        """Return whether another batch follows without a gap. Raises OffsetsDoNotFitError if a gap stays."""
        if self._batch is None and not self._ended and self._records.has_next():
            batch = self._records.next_batch()
            if batch.base_offset > self._next_offset:
                self._ended = True
                self._wait_for_gap(batch.base_offset)
            else:
                self._batch = batch
        return self._batch is not None

    def next_batch(self) -> Any:
        """Return the next batch. Call this only after `has_next` has returned True."""
        batch, self._batch = self._batch, None
        self._next_offset = batch.next_offset
        _gaps.pop(self._partition, None)
        return batch

    def _wait_for_gap(self, found: int) -> None:
        metrics.GAPS.labels(self._partition.partition, self._partition.topic).inc()
        offset, since = _gaps.get(self._partition, (None, 0.0))
        if offset != self._next_offset:
            _gaps[self._partition] = self._next_offset, monotonic()
        elif monotonic() - since > GAP_SECONDS:
            raise OffsetsDoNotFitError(
                f"{self._partition.topic}-{self._partition.partition} continues at offset {found}, but {offset} comes"
                f" next and is missing for {GAP_SECONDS:.0f} s: the records between are lost, or the topic is"
                " compacted; if they are gone for good, skip each of them with 'drawdown offsets skip'"
            )


_gaps: dict[TopicPartition, tuple[int, float]] = {}


def parsed(key: bytes | None) -> bytes | None:
    """Return the key. As `key_deserializer` this marks a consumer that wants the parser's own records without gaps."""
    return key


class _ParsedRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    """Gives marked consumers the records of `KafkaBatch`, a slice at a time and without gaps."""

    def __init__(
        self, tp: TopicPartition, records: Any, aborted: Any, fetch_offset: int, key_deserializer: Any, *rest: Any
    ) -> None:
        self.is_parsed = key_deserializer is parsed
        batches = WithoutGaps(tp, records.batches(tp), fetch_offset) if self.is_parsed else records.plain(tp)
        super().__init__(tp, batches, aborted, fetch_offset, key_deserializer, *rest)
        self._waiting: list[Any] = []
        self._has_ended = False

    @property
    def is_used_up(self) -> bool:
        """Return whether all records were taken."""
        return self._has_ended and not self._waiting

    def take(self, most: int) -> list[Any]:
        """Return at most `most` records, and no more bytes than a batch may hold plus those of the last slice."""
        taken, room = self._waiting, batch_bounds.BOUNDS.bytes
        while len(taken) < most and room > 0 and not self._has_ended:
            part = next(self._records_iterator, None)
            if part is None:
                self._has_ended = True
            else:
                taken += part
                room -= part.weight
        taken, self._waiting = taken[:most], taken[most:]
        if taken and not self.is_used_up:
            self.next_fetch_offset = taken[-1].offset + 1
        return taken

    def _consumer_record(self, partition: TopicPartition, record: Any) -> Any:
        """Return a record for the consumer; for a marked consumer, a slice of records."""
        if self.is_parsed:
            return record.beginning_at(self.next_fetch_offset)
        return super()._consumer_record(partition, record)

    def _contains_abort_marker(self, batch: Any) -> bool:
        """Return whether a batch ends an aborted transaction. A batch that cannot be read does not."""
        try:
            return bool(super()._contains_abort_marker(batch))
        except (TypeError, struct.error, KafkaError):
            return False


class _Taken(fetcher.FetchResult):  # type: ignore[misc]
    """The result of a fetch for one partition, from which many records are taken at a time."""

    _partition_records: _ParsedRecords | None

    def getall(self, max_records: int | None = None) -> list[Any]:
        """Return as many records as a consumer may take at once."""
        records = self._partition_records
        if not (records and records.is_parsed):
            return super().getall(max_records)  # type: ignore[no-any-return]
        if not self.check_assignment(self._topic_partition):
            return []
        taken = records.take(max_records or batch_bounds.UNBOUNDED.records)
        self._update_position()
        if records.is_used_up:
            self._partition_records = None
        return taken


def install() -> None:
    """Replace three classes of aiokafka by our own, for all consumers of this process.

    `fetcher.MemoryRecords` becomes `FetchedRecords`, which reads any batch in bounded time and memory.
    `fetcher.PartitionRecords` becomes `_ParsedRecords` and `fetcher.FetchResult` `_Taken`: making a dataclass of
    each record was a third of the writer's time (`make bench`), a gap must not lose spends, and fetches are bounded by
    bytes as well. aiokafka offers no other way. Its version is pinned, and tests fail if the names move.
    """
    fetcher.MemoryRecords = FetchedRecords
    fetcher.PartitionRecords = _ParsedRecords
    fetcher.FetchResult = _Taken


async def start_consumer(settings: Settings, **options: Any) -> AIOKafkaConsumer:
    """Return a consumer of committed records, without a group and without a position, that reads as `install` says."""
    install()
    consumer: AIOKafkaConsumer = await start_client(
        settings,
        AIOKafkaConsumer,
        enable_auto_commit=False,
        auto_offset_reset="none",
        key_deserializer=parsed,
        isolation_level="read_committed",
        **options,
    )
    return consumer


async def open_consumer(settings: Settings, lease: Lease, incarnation: str) -> AIOKafkaConsumer:
    """Return a consumer of the shard's two partitions, at the next offsets of the ledger.

    There is no consumer group, because leases assign the shards and PostgreSQL keeps the offsets.

    Raises:
        OtherTopicsError: the topics are not those whose offsets the ledger holds.
        OffsetsDoNotFitError: a topic no longer holds the next record.

    """
    if lease.incarnation is not None and not is_same_incarnation(lease.incarnation, incarnation):
        raise OtherTopicsError(
            f"shard {lease.shard} holds offsets of Kafka {lease.incarnation!r}, but this broker is {incarnation!r}:"
            " if the old topics are gone for good, 'drawdown offsets adopt' reads the new ones from their beginning"
        )
    lease.incarnation = incarnation
    consumer = await start_consumer(
        settings,
        fetch_max_wait_ms=settings.kafka_fetch_wait_ms,
        max_partition_fetch_bytes=2 * 1024 * 1024,
        fetch_max_bytes=4 * 1024 * 1024,
        client_id=f"drawdown-allocation-{lease.shard}",
    )
    try:
        await _seek(consumer, lease)
    except BaseException:
        await stop_client(consumer)
        raise
    return consumer


async def _seek(consumer: AIOKafkaConsumer, lease: Lease) -> None:
    offsets = {
        TopicPartition(SPEND_EVENTS, lease.shard): lease.spend_offset,
        TopicPartition(FINANCE_COMMANDS, lease.shard): lease.command_offset,
    }
    consumer.assign(list(offsets))
    first = await consumer.beginning_offsets(list(offsets))
    for partition, offset in offsets.items():
        if offset < first[partition]:
            raise OffsetsDoNotFitError(
                f"{partition.topic}-{partition.partition} begins at offset {first[partition]}, the ledger needs"
                f" {offset} next: its retention is too short, and the records between are gone;"
                " 'drawdown offsets adopt' starts from its beginning"
            )
        # The broker refuses an offset after the end at the first fetch. The end is not compared here, because the
        # embedded broker counts only up to the start of its last batch.
        consumer.seek(partition, offset)
