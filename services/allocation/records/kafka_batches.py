"""Kafka's batches as the consumer reads them: any batch is read in bounded time and memory.

aiokafka's compiled parser reads the records. This module does what the parser cannot be trusted with:

- It decompresses a batch, up to a bound.
- It checks where records begin and end, because the parser may read past the end.
- It reads records again in Python if a header name is not UTF-8, which the parser refuses. Kafka stores any bytes and
  Java writes them. Foreign bytes in names become escapes such as `\\xfc`.
- It replaces the rest of a batch that cannot be read by one record for quarantine. Reading continues after the batch.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from itertools import chain, islice, pairwise
from operator import attrgetter
from struct import Struct
from typing import Any, Final

from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatch
from aiokafka.structs import TopicPartition

from services.allocation import metrics
from services.allocation.records import frames, old_message_formats
from services.allocation.records.batch_bounds import HEADER_BYTES, LARGEST_VALUE_BYTES, MIB, UNPACKED_KAFKA_BATCH_BYTES
from services.allocation.records.frames import require_few
from services.allocation.records.quarantine_rows import is_too_large, short_batch, short_record, weight
from services.allocation.records.record_decoding import Raw
from shared.runtime.fetched import MAGIC_AT, RECORDS_AT, Fetched, FetchedBatches, repacked
from shared.runtime.unpacking import NAMES, NONE, TooLargeError, unpack

_CODEC: Final = 0x07
_COUNT: Final = Struct(">i")
_COUNT_AT: Final = 57

# At most this many records, of about this many bytes, are read at a time: headers take 30 times their bytes in memory.
_SLICE_RECORDS: Final = 250
_SLICE_BYTES: Final = MIB // 4
# A batch up to the first size is not searched for its longest record. If a record is above the second size, only its
# first headers are read.
_SMALL_BYTES: Final = MIB // 16
_HUGE_BYTES: Final = MIB // 8
_headers: Final = attrgetter("headers")
_offset: Final = attrgetter("offset")


class FetchedRecords(Fetched):
    """The batches that a fetch gave for a partition. Replaces aiokafka's `MemoryRecords`."""

    def plain(self, partition: TopicPartition) -> FetchedBatches:
        """Return the batches as unmarked consumers read them."""
        return FetchedBatches(partition, self.data)

    def batches(self, partition: TopicPartition) -> "KafkaBatches":
        """Return the batches as this module reads them."""
        return KafkaBatches(partition, self.data)


class KafkaBatches(FetchedBatches):
    """An iterator over the batches of a fetch, each of which is read as `KafkaBatch` says."""

    def _batch(self, start: int, end: int) -> "KafkaBatch":
        if self._data[start + MAGIC_AT] < 2:
            return LegacyBatch(self._partition, self._data, start, end)
        if end - start < RECORDS_AT:
            raise CorruptRecordException(f"{self._partition}: a batch of {end - start} bytes")
        return KafkaBatch(self._partition, self._data, start, end)


class Slice(list[Any]):
    """A few records of a batch in order, with the offset of the last and the weight of all in bytes."""

    __slots__ = ("offset", "weight")

    def __init__(self, records: list[Any], weighs: int) -> None:
        super().__init__(records)
        self.offset: int = records[-1].offset
        self.weight = weighs

    def beginning_at(self, offset: int) -> "Slice":
        """Return the slice without the records before an offset."""
        if _first_offset(self[0]) >= offset:
            return self
        return Slice([_beginning_at(record, offset) for record in self if record.offset >= offset], self.weight)


class KafkaBatch:
    """One batch: its head as aiokafka reads it, and its records, a slice at a time."""

    def __init__(self, partition: TopicPartition, data: bytes, start: int, end: int) -> None:
        self._place = partition.topic, partition.partition
        self._data, self._start, self._end = data, start, end
        self._head: Any
        self._has_bad_crc = False
        self._read_head()

    def validate_crc(self) -> bool:
        """Return whether the CRC fits, or was wrong in the same way before.

        In the second case the broker stores the batch like this, and it goes to quarantine.
        """
        if self._head.validate_crc():
            return True
        self._has_bad_crc = _comes_again(self._place, self._packed())
        return self._has_bad_crc

    def __next__(self) -> Any:
        """Return the first record, which says what kind of control batch this is."""
        return next(iter(self))[0]

    def __iter__(self) -> Iterator[Slice]:
        reached, last = self.base_offset, self.next_offset - 1
        try:
            self._require_crc()
            for part in self._slices():
                _require_order(part, reached, last)
                yield part
                reached = part.offset + 1
        except TooLargeError as error:
            yield self._set_aside(reached, "too_large", str(error))
        except CorruptRecordException as error:
            yield self._set_aside(reached, "malformed", str(error))

    def _read_head(self) -> None:
        head = self._head = DefaultRecordBatch(self._packed())
        self.base_offset: int = head.base_offset
        # Do not trust a head whose last offset is below its first.
        self.next_offset: int = max(head.next_offset, head.base_offset + 1)
        self.is_control_batch: bool = head.is_control_batch
        self.is_transactional: bool = head.is_transactional
        self.producer_id: int | None = head.producer_id
        self.compression_type: int = head.compression_type

    def _slices(self) -> Iterator[Slice]:
        buffer, start, end = self._unpacked()
        count = self._number(_COUNT, _COUNT_AT)
        size = end - start - RECORDS_AT
        longest = size
        if size > _SMALL_BYTES:
            longest = frames.longest(buffer, start + RECORDS_AT, end, count)
            require_few(count)  # The count is now known to be true. A small batch has no room for too many records.
        mean = size // max(count, 1)
        for records in self._records(buffer, start, end, longest):
            headers = HEADER_BYTES * max(map(len, filter(None, map(_headers, records))), default=0)
            if longest + headers > LARGEST_VALUE_BYTES:
                yield self._weighed(records, mean * len(records))
            else:
                yield Slice(records, (mean + headers) * len(records))

    def _unpacked(self) -> tuple[bytes, int, int]:
        """Return the uncompressed batch, with padding after it: the bytes, its start and its end."""
        codec = self.compression_type
        if codec == NONE:
            return self._data, self._start, self._end
        packed = self._packed()
        records = unpack(codec, packed[RECORDS_AT:], UNPACKED_KAFKA_BATCH_BYTES)
        metrics.UNPACKED_BYTES.inc(len(records))
        return repacked(packed, records), 0, RECORDS_AT + len(records)

    def _records(self, buffer: bytes, start: int, end: int, longest: int) -> Iterator[list[Any]]:
        """Yield all records, some at a time, at no more cost a record than aiokafka's parser."""
        done, at_once = 0, max(1, min(_SLICE_RECORDS, _SLICE_BYTES // (longest or 1)))
        if longest <= _HUGE_BYTES:
            records = chain(DefaultRecordBatch(memoryview(buffer)[start:end]))  # only one iterator of it is allowed
            with suppress(Exception):  # The parser may raise anything. The reader below finds what is really corrupt.
                while part := list(islice(records, at_once)):
                    yield part
                    done += len(part)
                return
            frames.longest(buffer, start + RECORDS_AT, end, self._number(_COUNT, _COUNT_AT))
        reader = frames.RecordReader(self._place, self._head, _HUGE_BYTES)
        for record in reader.read(buffer, frames.behind(buffer, start + RECORDS_AT, done), end):
            yield [record]

    def _weighed(self, records: list[Any], size: int) -> Slice:
        """Return the records, and cut short those that are too large. Reading these cost as much as their full size."""
        weighs = max(size, sum(map(weight, records)))
        return Slice([short_record(each, *self._place) if is_too_large(each) else each for each in records], weighs)

    def _require_crc(self) -> None:
        if self._has_bad_crc:
            raise CorruptRecordException("its CRC is wrong")

    def _set_aside(self, first: int, reason: str, why: str) -> Slice:
        codec, packed = NAMES.get(self.compression_type, "no codec"), self._packed()
        record = short_batch(self._place, first, self.next_offset - 1, packed, reason, f"{codec}: {why}")
        return Slice([record], UNPACKED_KAFKA_BATCH_BYTES)  # reading it cost at most as much as the largest batch

    def _packed(self) -> memoryview:
        return memoryview(self._data)[self._start : self._end]

    def _number(self, kind: Struct, at: int) -> int:
        return int(kind.unpack_from(self._data, self._start + at)[0])


class LegacyBatch(KafkaBatch):
    """A message of the formats before version 2: one record, or compressed records in its value."""

    def _read_head(self) -> None:
        head = self._head = LegacyRecordBatch(self._packed(), self._data[self._start + MAGIC_AT])
        self.is_control_batch = self.is_transactional = False
        self.producer_id = None
        self.compression_type = self._data[self._start + old_message_formats.ATTRIBUTES_AT] & _CODEC
        self.next_offset = head.next_offset
        # Of compressed records only the last offset is known. This base never looks like a gap.
        self.base_offset = -1 if self.compression_type else head.next_offset - 1

    def _slices(self) -> Iterator[Slice]:
        message = old_message_formats.message(self._packed())
        if self.compression_type == NONE:
            yield self._weighed([message], 0)
            return
        unpacked = bytes(unpack(self.compression_type, memoryview(message.value or b""), UNPACKED_KAFKA_BATCH_BYTES))
        for record in old_message_formats.packed_messages(unpacked, self.next_offset - 1):
            yield self._weighed([record], len(unpacked))


def _first_offset(record: Any) -> int:
    return int(record.cut.first_offset if isinstance(record, Raw) and record.cut else record.offset)


def _beginning_at(record: Any, offset: int) -> Any:
    """Return the record. One that stands for a batch is shortened if its first records are already decided."""
    if _first_offset(record) >= offset:
        return record
    return replace(record, cut=replace(record.cut, first_offset=offset))


def _require_order(part: Slice, first: int, last: int) -> None:
    """Raise CorruptRecordException if the offsets do not ascend, or leave the range in the head of the batch."""
    offsets = list(map(_offset, part))
    if offsets != list(range(first, first + len(offsets))) or offsets[-1] > last:  # nearly always they are
        within = [first - 1, *offsets, last + 1]
        if any(after <= before for before, after in pairwise(within)):
            raise CorruptRecordException("the offsets of its records do not ascend within those of the batch")


_bad_crcs: dict[tuple[str, int], bytes] = {}


def _comes_again(place: tuple[str, int], packed: memoryview) -> bool:
    """Return whether the last batch of the partition with a wrong CRC was the same one.

    If it was not, the batch may only have been damaged on its way here.
    """
    digest = sha256(packed).digest()
    before, _bad_crcs[place] = _bad_crcs.get(place), digest
    return before == digest
