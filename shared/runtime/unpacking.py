"""Decompressing Kafka's batches up to a bound, whatever the codec.

aiokafka decompresses a batch at once: 0.9 MB of gzip become 0.9 GB. Here the result goes into one buffer of the size of
the bound, and a codec that has filled it stops. Sizes that the compressed bytes declare are not trusted, and nothing is
allocated because of them. The exception is zstd's window: the library bounds it at 128 MiB, and touches only as much
of it as was decompressed. A sequence of frames is read as one, as the codecs' own tools do.
"""

from collections.abc import Callable
from functools import cache
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from struct import Struct
from typing import Final

import cramjam
from aiokafka.errors import CorruptRecordException

NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
NAMES: Final = {GZIP: "gzip", SNAPPY: "snappy", LZ4: "lz4", ZSTD: "zstd"}

_IS_FULL: Final = "failed to write whole buffer"  # the message of Rust's `std::io::Write::write_all`
# xerial's framing, as Java writes it: a magic word, two version numbers, then blocks, each after its length.
_XERIAL: Final = b"\x82SNAPPY\x00"
_XERIAL_HEAD_BYTES: Final = 16
_LENGTH: Final = Struct(">i")


class TooLargeError(Exception):
    """A batch unpacks to more than a bound allows. The message says to which bound."""


def unpack(codec: int, packed: memoryview, most_bytes: int) -> memoryview:
    """Return the decompressed bytes, which are valid until the next call with this bound.

    Raises TooLargeError if they are more than the bound, CorruptRecordException if they cannot be decompressed.
    """
    into_room = _CODECS.get(codec)
    if into_room is None:
        raise CorruptRecordException(f"the codec {codec} is unknown")
    room = _room(most_bytes)
    try:
        size = into_room(packed, room)
    except cramjam.DecompressionError as error:
        if _IS_FULL in str(error):
            raise TooLargeError(f"it unpacks to more than {most_bytes}") from error
        raise CorruptRecordException(f"its {NAMES[codec]} cannot be unpacked: {error}") from error
    if size > most_bytes:
        raise TooLargeError(f"it unpacks to more than {most_bytes}")
    return room[:size]


@cache
def _room(most_bytes: int) -> memoryview:
    """Return the buffer for a bound. The system provides only the memory that was ever filled.

    One buffer is enough, because the event loop's thread decompresses a batch without a pause.
    """
    return memoryview(mmap(-1, most_bytes, flags=MAP_PRIVATE | MAP_ANONYMOUS))


def _unpack_snappy(packed: memoryview, room: memoryview) -> int:
    if bytes(packed[: len(_XERIAL)]) != _XERIAL:
        return _unpack_snappy_block(packed, room)
    at, done = _XERIAL_HEAD_BYTES, 0
    while at < len(packed):
        end = at + _LENGTH.size
        length = _LENGTH.unpack_from(packed, at)[0] if end <= len(packed) else -1
        at, end = end, end + length
        if length < 0 or end > len(packed):
            raise CorruptRecordException("its snappy cannot be unpacked: a block ends behind the batch")
        done += _unpack_snappy_block(packed[at:end], room[done:])
        if done > len(room):
            return done
        at = end
    return done


def _unpack_snappy_block(block: memoryview, room: memoryview) -> int:
    size = cramjam.snappy.decompress_raw_len(block)
    return size if size > len(room) else cramjam.snappy.decompress_raw_into(block, room)


_CODECS: Final[dict[int, Callable[[memoryview, memoryview], int]]] = {
    GZIP: cramjam.gzip.decompress_into,
    SNAPPY: _unpack_snappy,
    LZ4: cramjam.lz4.decompress_into,
    ZSTD: cramjam.zstd.decompress_into,
}
