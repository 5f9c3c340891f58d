"""Unpacking what a producer has packed, up to a bound and no further, whatever the codec.

aiokafka unpacks all of a batch at once: 0.9 MB of gzip become 0.9 GB. Here the unpacked bytes go into one buffer of
the size of the bound; a codec that has filled it stops. Sizes that the packed bytes declare are not believed: nothing
is allocated because of one, except zstd's window, which the library bounds at 128 MiB and touches no more of than it
has unpacked. Sequences of frames are read as one, as the codecs' own tools do.
"""

from collections.abc import Callable
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from struct import Struct
from typing import Final

import cramjam
from aiokafka.errors import CorruptRecordException

from services.allocation.bounds import RECORDS_OF_A_BATCH, UNPACKED_BYTES

NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
NAMES: Final = {GZIP: "gzip", SNAPPY: "snappy", LZ4: "lz4", ZSTD: "zstd"}

_IS_FULL: Final = "failed to write whole buffer"  # how Rust's `std::io::Write::write_all` says it
# xerial's framing, as Java writes it: a magic word, two numbers of versions, then blocks behind their lengths.
_XERIAL: Final = b"\x82SNAPPY\x00"
_XERIAL_HEAD_BYTES: Final = 16
_LENGTH: Final = Struct(">i")
_UNPACKS_TO_MORE: Final = f"it unpacks to more than {UNPACKED_BYTES}"


class TooLargeError(Exception):
    """Packed bytes unpack to more than a bound allows. The message says which."""


# Memory of it is taken as far as it was ever filled. There is one: a fetch is unpacked by one thread, without a pause.
_room: Final = memoryview(mmap(-1, UNPACKED_BYTES, flags=MAP_PRIVATE | MAP_ANONYMOUS))


def unpack(codec: int, packed: memoryview) -> memoryview:
    """What the bytes unpack to, valid until the next call.

    Raises TooLargeError where that is more than the bound, CorruptRecordException where they do not unpack.
    """
    into_room = _CODECS.get(codec)
    if into_room is None:
        raise CorruptRecordException(f"the codec {codec} is unknown")
    try:
        size = into_room(packed, _room)
    except cramjam.DecompressionError as error:
        if _IS_FULL in str(error):
            raise TooLargeError(_UNPACKS_TO_MORE) from error
        raise CorruptRecordException(f"its {NAMES[codec]} cannot be unpacked: {error}") from error
    return _room[:size]


def require_few(count: int) -> None:
    """Raise TooLargeError where a batch really holds more records than the bound."""
    if count > RECORDS_OF_A_BATCH:
        raise TooLargeError(f"it holds {count} records, more than {RECORDS_OF_A_BATCH}")


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
        at = end
    return done


def _unpack_snappy_block(block: memoryview, room: memoryview) -> int:
    if cramjam.snappy.decompress_raw_len(block) > len(room):
        raise TooLargeError(_UNPACKS_TO_MORE)
    return cramjam.snappy.decompress_raw_into(block, room)


_CODECS: Final[dict[int, Callable[[memoryview, memoryview], int]]] = {
    GZIP: cramjam.gzip.decompress_into,
    SNAPPY: _unpack_snappy,
    LZ4: cramjam.lz4.decompress_into,
    ZSTD: cramjam.zstd.decompress_into,
}
