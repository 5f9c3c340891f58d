"""Messages of Kafka's formats before version 2, which old topics may still hold.

Source: https://kafka.apache.org/documentation/#messageset. A message is a record. Compressed records are in the value
of one message, which has the offset of the last of them.
"""

import struct
from collections.abc import Iterator
from struct import Struct
from typing import Any, Final

from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordPy

from services.allocation.records.frames import require_few

ATTRIBUTES_AT: Final = 17
_CODEC: Final = 0x07
_HEAD: Final = Struct(">qiIbb")  # offset, length of what follows, CRC, magic, attributes
_LENGTH_AT, _LENGTH_COUNTS_FROM = 8, 12
_OFFSET, _LENGTH, _TIMESTAMP = Struct(">q"), Struct(">i"), Struct(">q")


def message(data: memoryview) -> Any:
    """Return the record that a message is. Raises CorruptRecordException if it is malformed."""
    try:
        offset, _length, _crc, magic, _attributes = _HEAD.unpack_from(data)
        at, timestamp = _HEAD.size, None
        if magic:
            (timestamp,) = _TIMESTAMP.unpack_from(data, at)
            at += _TIMESTAMP.size
        key, at = _field(data, at)
        value, at = _field(data, at)
    except struct.error as error:
        raise CorruptRecordException("a message in it is too short") from error
    if at != len(data):
        raise CorruptRecordException(f"a message of {len(data)} bytes in it, of which its fields fill {at}")
    return _DefaultRecordPy(offset, timestamp, 0, key, value, [])


def packed_messages(data: bytes, last_offset: int) -> Iterator[Any]:
    """Yield compressed records, of which the last has the given offset. Their own offsets may be relative."""
    shift = last_offset - _last_offset(data)
    at, view = 0, memoryview(data)
    while at < len(data):
        end = _end_of(data, at)
        if data[at + ATTRIBUTES_AT] & _CODEC:
            raise CorruptRecordException("a message in it is packed twice")
        one = message(view[at:end])
        yield _DefaultRecordPy(one.offset + shift, one.timestamp, 0, one.key, one.value, [])
        at = end


def _last_offset(data: bytes) -> int:
    at = last = count = 0
    while at < len(data):
        last, at, count = at, _end_of(data, at), count + 1
    if not data:
        raise CorruptRecordException("it holds no messages")
    require_few(count)
    return int(_OFFSET.unpack_from(data, last)[0])


def _end_of(data: bytes, at: int) -> int:
    """Return where the message ends that begins at a place. Raises CorruptRecordException if it has no end."""
    if at + _HEAD.size > len(data):
        raise CorruptRecordException("its last message is too short")
    length = _LENGTH.unpack_from(data, at + _LENGTH_AT)[0]
    end = at + _LENGTH_COUNTS_FROM + length
    if end < at + _HEAD.size or end > len(data):
        raise CorruptRecordException("a message in it has an impossible length")
    return int(end)


def _field(data: memoryview, at: int) -> tuple[bytes | None, int]:
    """Return the bytes after a length, None if the length is negative, and the place after them."""
    length = _LENGTH.unpack_from(data, at)[0]
    at += _LENGTH.size
    if length < 0:
        return None, at
    return bytes(data[at : at + length]), at + length
