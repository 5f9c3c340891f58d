"""Reads topics in bounded memory, and skips what cannot be read, for consumers that want our own records only.

aiokafka decompresses a batch at once: 46 KB become 1 GB. Anybody with the right to write to a topic can send such a
batch, and each reader of the topic would run out of memory at every start. So two kinds of batches are skipped: those
that unpack to more than our producers ever send, and those that cannot be read. Another producer wrote them. They hold
no record of ours, because each batch has one producer. Allocation, which must not skip any record, reads by rules of
its own (`services.allocation.records.kafka_batches`).
"""

from collections.abc import Iterator
from struct import Struct
from typing import Any, Final

import structlog
from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.memory_records import MemoryRecords

from shared.runtime.unpacking import NONE, unpack

# Our producers send batches of at most 1 MiB, before compression.
MOST_BYTES: Final = 2**20
RECORDS_AT: Final = 61  # the first byte after the head of a batch
MAGIC_AT: Final = 16
SMALLEST_BYTES: Final = 26  # the size of the smallest batch of the oldest format
# The compiled parser may read a few bytes past a record that lies about its fields.
PADDING: Final = bytes(64)
_HEAD: Final = Struct(">qi")  # the base offset, and the length of what follows
_ATTRIBUTES: Final = Struct(">h")
_ATTRIBUTES_AT: Final = 21
_CODEC: Final = 0x07


def end_of_batch(data: bytes, start: int, end: int) -> int | None:
    """Return where the batch ends that begins at a place; None if it is incomplete."""
    if end - start < _HEAD.size:
        return None
    its_end = start + _HEAD.size + int(_HEAD.unpack_from(data, start)[1])
    return its_end if its_end <= end else None


def repacked(packed: memoryview, records: memoryview) -> bytes:
    """Return a compressed batch with its records in decompressed form, and padding."""
    head = bytearray(packed[:RECORDS_AT])
    attributes = _ATTRIBUTES.unpack_from(head, _ATTRIBUTES_AT)[0]
    _ATTRIBUTES.pack_into(head, _ATTRIBUTES_AT, attributes & ~_CODEC)
    return b"".join((head, records, PADDING))


class FetchedBatches:
    """The batches that a fetch gave for a partition, with the methods that aiokafka expects."""

    def __init__(self, partition: TopicPartition, data: bytes) -> None:
        self._partition = partition
        self._data = data + PADDING
        self._bytes = len(data)
        self._start = 0

    def has_next(self) -> bool:
        """Return whether there is another whole batch."""
        return end_of_batch(self._data, self._start, self._bytes) is not None

    def next_batch(self) -> Any:
        """Return the next batch. Call this only after `has_next` has returned True.

        Raises CorruptRecordException if the batch is too short to have a head: no broker stores one.
        """
        start, end = self._start, end_of_batch(self._data, self._start, self._bytes)
        assert end is not None
        if end - start < SMALLEST_BYTES:
            raise CorruptRecordException(f"{self._partition}: a batch of {end - start} bytes")
        self._start = end
        return self._batch(start, end)

    def _batch(self, start: int, end: int) -> Any:
        return FetchedBatch(self._partition, memoryview(self._data)[start:end])


class FetchedBatch:
    """One batch. Iterating yields its records, or the first of them if the rest cannot be read."""

    def __init__(self, partition: TopicPartition, packed: memoryview) -> None:
        self._partition = partition
        self._packed = packed
        # Our producers write only version 2. An older batch begins with the offset of its last record.
        self._head = DefaultRecordBatch(packed) if len(packed) >= RECORDS_AT and packed[MAGIC_AT] == 2 else None
        base = int(_HEAD.unpack_from(packed)[0])
        self.base_offset: int = base
        self.next_offset: int = max(self._head.next_offset if self._head else 0, base + 1)
        self.is_control_batch: bool = self._head is not None and self._head.is_control_batch
        self.is_transactional: bool = self._head is not None and self._head.is_transactional
        self.producer_id: int | None = self._head.producer_id if self._head else None

    def validate_crc(self) -> bool:
        """Return whether the CRC fits."""
        return self._head is None or bool(self._head.validate_crc())

    def __next__(self) -> Any:
        """Return the first record, which says what kind of control batch this is."""
        return next(iter(self))

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._records()
        except Exception as error:  # The parser may raise anything.
            structlog.get_logger().warning(
                "skipped records that cannot be read, which another producer wrote",
                topic=self._partition.topic,
                partition=self._partition.partition,
                batch_offset=self.base_offset,
                next_offset=self.next_offset,
                error=f"{type(error).__name__}: {error}",
            )

    def _records(self) -> Iterator[Any]:
        if self._head is None:
            raise ValueError("its format is not that of our producers")
        codec = self._head.compression_type
        if codec == NONE:
            return iter(self._head)
        unpacked = unpack(codec, self._packed[RECORDS_AT:], MOST_BYTES)
        return iter(DefaultRecordBatch(repacked(self._packed, unpacked)))


class Fetched:
    """The bytes of a fetch. Replaces aiokafka's `MemoryRecords`."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def has_next(self) -> bool:
        """Return whether there is a whole batch."""
        return end_of_batch(self.data, 0, len(self.data)) is not None

    def size_in_bytes(self) -> int:
        """Return the size of all that was fetched."""
        return len(self.data)


class _Records(fetcher.PartitionRecords):  # type: ignore[misc]
    """The records of a fetch, as `FetchedBatches` reads them."""

    def __init__(self, partition: TopicPartition, fetched: Fetched, *rest: Any) -> None:
        super().__init__(partition, FetchedBatches(partition, fetched.data), *rest)


def install() -> None:
    """Replace two classes of aiokafka by our own, for all consumers of this process, unless allocation's are in place.

    aiokafka offers no other way. Its version is pinned, and tests fail if the names move.
    """
    if fetcher.MemoryRecords is MemoryRecords:
        fetcher.MemoryRecords, fetcher.PartitionRecords = Fetched, _Records
