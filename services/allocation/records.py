"""Kafka's batches as the consumer reads them, with header names of any bytes.

Kafka stores whatever bytes a producer gives as a header's name; Java's client writes UTF-8 and reads anything. aiokafka
takes UTF-8 alone: one other name fails the fetch, again and again, and the partition stands still. So a batch that
fails is read again by aiokafka's parser in Python, with names whose foreign bytes are shown as `\\xfc`.
"""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from struct import Struct
from typing import Any, Final

from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordBatchPy, _DefaultRecordPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint_py as decode_varint  # the compiled one reads past the end

_SLICE_RECORDS: Final = 500
_LENGTH: Final = Struct(">i")
_LENGTH_AT: Final = 8  # behind the batch's base offset
_HEAD_BYTES: Final = 12  # base offset and length
_MAGIC_AT: Final = 16


class FetchedRecords:
    """In the place of aiokafka's `MemoryRecords`: the batches that a fetch gave for a partition."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._batches = MemoryRecords(data)
        self._start = 0
        self.has_next = self._batches.has_next
        self.size_in_bytes = self._batches.size_in_bytes

    def next_batch(self) -> "Batch":
        """The next batch; `has_next` was true."""
        batch, start = self._batches.next_batch(), self._start
        self._start += _HEAD_BYTES + _LENGTH.unpack_from(self._data, start + _LENGTH_AT)[0]
        return Batch(batch, memoryview(self._data)[start : self._start])


class Batch:
    """One batch: aiokafka's, but for its records, of which none fails for the name of a header."""

    def __init__(self, batch: Any, data: memoryview) -> None:
        self._batch = batch
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self._slices())

    def _slices(self) -> Iterator[Iterable[Any]]:
        """The records in slices, so that a record costs nothing more than before."""
        records, done = chain(self._batch), 0  # a batch may be asked for its iterator once only
        try:
            while slice_ := list(islice(records, _SLICE_RECORDS)):
                yield slice_
                done += len(slice_)
        except (UnicodeDecodeError, CorruptRecordException):
            if self._data[_MAGIC_AT] < 2:  # a format without headers
                raise
            yield islice(_WithAnyNames(self._data), done, None)


class _WithAnyNames(_DefaultRecordBatchPy):  # type: ignore[misc]
    """aiokafka's parser in Python, but for the names of headers. What is really corrupt raises what it raises."""

    _pos: int

    def _read_msg(self, decode_varint: Any = decode_varint) -> Any:
        """One record: https://kafka.apache.org/documentation/#record."""
        buffer = self._buffer
        length, start = decode_varint(buffer, self._pos)
        _attributes, at = decode_varint(buffer, start)
        timestamp_delta, at = decode_varint(buffer, at)
        offset_delta, at = decode_varint(buffer, at)
        key, at = _bytes(buffer, at)
        value, at = _bytes(buffer, at)
        headers, end = _headers(buffer, at)
        if end - start != length:
            raise CorruptRecordException(f"a record of {length} bytes ends after {end - start}")
        self._pos = end
        is_appended = self.timestamp_type == self.LOG_APPEND_TIME
        timestamp = self.max_timestamp if is_appended else self.first_timestamp + timestamp_delta
        return _DefaultRecordPy(self.base_offset + offset_delta, timestamp, self.timestamp_type, key, value, headers)


def _headers(buffer: bytearray, at: int) -> tuple[list[tuple[str, bytes | None]], int]:
    count, at = decode_varint(buffer, at)
    headers = []
    for _ in range(count):
        name, at = _bytes(buffer, at)
        value, at = _bytes(buffer, at)
        headers.append(((name or b"").decode(errors="backslashreplace"), value))
    return headers, at


def _bytes(buffer: bytearray, at: int) -> tuple[bytes | None, int]:
    length, at = decode_varint(buffer, at)
    return (None, at) if length < 0 else (bytes(buffer[at : at + length]), at + length)
