"""The records inside a batch, byte by byte: where each begins and ends, and how to read any of them safely.

Source: https://kafka.apache.org/documentation/#record. The length of a record precedes it, so a record can be skipped
without being read. Nothing that a record declares is trusted: its fields must fill its length exactly.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordPy
from aiokafka.record.util import decode_varint_py as decode_varint

from services.allocation.records.batch_bounds import RECORDS_OF_A_KAFKA_BATCH
from services.allocation.records.cloudevents import Headers
from services.allocation.records.quarantine_rows import short_frame
from shared.runtime.unpacking import TooLargeError

# Twice the size of the smallest record: its attributes, two deltas, two lengths and the number of headers.
_SMALLEST_DOUBLED: Final = 12
# Bits in the first byte of a length: the length continues in a second byte, or it is negative.
_NO_SHORT_LENGTH: Final = 0x81


def require_few(count: int) -> None:
    """Raise TooLargeError if a batch, whose count is known to be true, holds more records than the bound."""
    if count > RECORDS_OF_A_KAFKA_BATCH:
        raise TooLargeError(f"it holds {count} records, more than {RECORDS_OF_A_KAFKA_BATCH}")


def longest(buffer: bytes, at: int, end: int, count: int) -> int:
    """Return the length in bytes of the longest record between two places.

    Raises CorruptRecordException if the bytes are not exactly this many records.
    """
    reached, most = _walk(buffer, at, count)
    if reached != end:
        raise CorruptRecordException(f"its head says that it holds {count} records, but they do not fill it")
    return most


def behind(buffer: bytes, at: int, count: int) -> int:
    """Return the place after this many records."""
    return _walk(buffer, at, count)[0]


def _walk(buffer: bytes, at: int, count: int) -> tuple[int, int]:
    """Return where this many records end, or where the first too short one begins, and the length of the longest."""
    most = 0
    try:
        for _ in range(count):
            size = buffer[at]
            if size > 0x7F:  # Numbers of two bytes are decoded inline, because nearly all records have one.
                second = buffer[at + 1]
                if second > 0x7F:
                    size, at = _long_size(buffer, at)
                else:
                    size += (second << 7) - 0x80
                    at += 2
            else:
                at += 1
            if size < _SMALLEST_DOUBLED:
                break
            at += size >> 1
            if size > most:
                most = size
    except (IndexError, ValueError) as error:
        raise CorruptRecordException("its last record has no end") from error
    return at, most >> 1


def _long_size(buffer: bytes, at: int) -> tuple[int, int]:
    """Return a long length in the form of the short ones: the number doubled, or 1 if it is negative."""
    size, at = decode_varint(buffer, at)
    return (2 * size if size >= 0 else 1), at


class RecordReader:
    """Reads the records of one batch. Their offsets and times are relative to the head of the batch."""

    def __init__(self, place: tuple[str, int], head: Any, huge_bytes: int) -> None:
        self._place = place
        self._head = head
        self._huge_bytes = huge_bytes

    def read(self, buffer: bytes, at: int, end: int) -> Iterator[Any]:
        """Yield the records between two places. Raises CorruptRecordException at the first that cannot be read."""
        while at < end:
            length, start = decode_varint(buffer, at)
            at = start + length
            if length < 0 or at > end:
                raise CorruptRecordException(f"a record in it has the length {length}")
            yield self._record(memoryview(buffer)[start:at])

    def _record(self, record: memoryview) -> Any:
        try:
            _attributes, at = decode_varint(record, 0)
            timestamp_delta, at = decode_varint(record, at)
            offset_delta, at = decode_varint(record, at)
            offset = self._head.base_offset + offset_delta
            key, at = _bytes(record, at)
            value, at = _bytes(record, at)
            if len(record) > self._huge_bytes:
                return short_frame(self._place, offset, key, value, _first_headers(record, at), len(record))
            return self._whole(offset, timestamp_delta, key, value, _headers(record, at))
        except (IndexError, ValueError) as error:
            raise CorruptRecordException(f"a record in it cannot be read: {error}") from error

    def _whole(
        self, offset: int, timestamp_delta: int, key: memoryview | None, value: memoryview | None, headers: Headers
    ) -> Any:
        kind = self._head.timestamp_type
        timestamp = self._head.max_timestamp if kind else self._head.first_timestamp + timestamp_delta
        return _DefaultRecordPy(offset, timestamp, kind, _copied(key), _copied(value), headers)


def _headers(record: memoryview, at: int) -> list[tuple[str, bytes | None]]:
    """Return all headers of a record. Raises ValueError if they do not fill its rest."""
    count, at = decode_varint(record, at)
    read = bytes(record)
    headers: list[tuple[str, bytes | None]] = []
    for _ in range(count):
        # Names and values below 64 bytes are decoded inline: a batch of 9 KB may unpack to millions of them.
        size = read[at]
        behind_name = at + 1 + (size >> 1)
        if not size & _NO_SHORT_LENGTH and not (size := read[behind_name]) & _NO_SHORT_LENGTH:
            name, value_at = _short_name(read[at + 1 : behind_name]), behind_name + 1
            at = value_at + (size >> 1)
            headers.append((name, read[value_at:at]))
        else:
            header, at = _header(record, at)
            headers.append(header)
    if at != len(record):
        raise ValueError(f"{len(record)} bytes, of which its fields fill {at}")
    return headers


def _first_headers(record: memoryview, at: int) -> Iterator[tuple[str, bytes | None]]:
    """Yield the headers one by one, so that only as many as the caller wants are read."""
    count, at = decode_varint(record, at)
    for _ in range(count):
        header, at = _header(record, at)
        yield header


def _header(record: memoryview, at: int) -> tuple[tuple[str, bytes | None], int]:
    name, at = _bytes(record, at)
    value, at = _bytes(record, at)
    return (_shown(bytes(name or b"")), _copied(value)), at


def _shown(name: bytes) -> str:
    """Return the name of a header, with bytes that are not UTF-8 as escapes."""
    return name.decode(errors="backslashreplace")


_short_name: Final = lru_cache(maxsize=1_024)(_shown)  # decoding is expensive, and a producer has few names


def _bytes(record: memoryview, at: int) -> tuple[memoryview | None, int]:
    """Return the bytes after a length, None if the length is negative, and the place after them."""
    length, at = decode_varint(record, at)
    if length < 0:
        return None, at
    if length > len(record) - at:
        raise ValueError(f"a field of {length} bytes, {len(record) - at} are left")
    return record[at : at + length], at + length


def _copied(field: memoryview | None) -> bytes | None:
    return None if field is None else bytes(field)
