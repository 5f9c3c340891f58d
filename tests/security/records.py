"""Kafka's record batches as no client writes them: any codec over any bytes, and sizes that no producer sends.

The format is that of version 2: https://kafka.apache.org/documentation/#recordbatch.
"""

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final, Protocol

import cramjam
from aiokafka.record.util import calc_crc32c

Header = tuple[bytes, bytes | None]
Record = tuple[bytes | None, bytes | None, Sequence[Header]]

CODECS: Final = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
_AFTER_THE_CRC: Final = ">hiqqqhii"
_BEFORE_THE_CRC: Final = ">qiib"
_XERIAL_HEAD: Final = b"\x82SNAPPY\x00" + struct.pack(">ii", 1, 1)
TRANSACTIONAL: Final = 0x10
CONTROL: Final = 0x20
_GZIP_HEAD: Final = b"\x1f\x8b\x08" + bytes(7)
_DEFLATE_END: Final = b"\x03\0"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
# A frame of independent blocks of 4 MiB without checksums; the last byte is the head's checksum.
_LZ4_HEAD: Final = bytes.fromhex("04224d18607073")
_LZ4_BLOCK_BYTES: Final = 4 * 1024 * 1024
_XERIAL_BLOCK_BYTES: Final = 32 * 1024


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def varint(value: int) -> bytes:
    """Return a number in zigzag encoding, in groups of seven bits."""
    left = (value << 1) ^ (value >> 63)
    encoded = bytearray()
    while left & ~0x7F:
        encoded.append((left & 0x7F) | 0x80)
        left >>= 7
    encoded.append(left)
    return bytes(encoded)


def _field(value: bytes | None) -> bytes:
    return varint(-1) if value is None else varint(len(value)) + value


def record(delta: int, key: bytes | None, value: bytes | None, headers: Sequence[Header] = ()) -> bytes:
    """Return one record, whose offset is `delta` after its batch's first."""
    parts = [b"\0", varint(0), varint(delta), _field(key), _field(value), varint(len(headers))]
    for name, content in headers:
        parts += [_field(name), _field(content)]
    body = b"".join(parts)
    return varint(len(body)) + body


def batch(records: Sequence[Record], codec: str = "none") -> bytes:
    """Return a batch of these records."""
    return sealed(packed((record(n, *each) for n, each in enumerate(records)), codec), len(records), codec)


def bomb(key: bytes, codec: str, count: int, size: int) -> bytes:
    """Return a batch of records of zeros, which is never decompressed here."""
    return sealed(packed(_records_of_zeros(key, count, size), codec), count, codec)


def _records_of_zeros(key: bytes, count: int, size: int) -> Iterator[bytes]:
    value = bytes(size)
    for number in range(count):
        head = b"\0" + varint(0) + varint(number) + _field(key) + varint(size)
        yield varint(len(head) + size + 1) + head
        yield value
        yield varint(0)


def sealed(body: bytes, count: int, codec: str, flags: int = 0) -> bytes:
    """Return a batch around the bytes of its records, with a valid checksum.

    Args:
        body: the compressed records.
        count: the number of records that it claims.
        codec: the codec that it claims.
        flags: further bits of its attributes.

    """
    tail = struct.pack(_AFTER_THE_CRC, CODECS[codec] | flags, count - 1, 0, 0, -1, -1, -1, count) + body
    crc = calc_crc32c(tail)
    head = struct.pack(_BEFORE_THE_CRC, 0, 9 + len(tail), -1, 2)
    return head + struct.pack(">I", crc) + tail


def packed(pieces: Iterable[bytes], codec: str) -> bytes:
    """Compress the pieces one after the other, so that all of them together need not fit into memory."""
    if codec == "none":
        return b"".join(pieces)
    if codec == "snappy":
        return _XERIAL_HEAD + b"".join(_xerial_blocks(b"".join(pieces)))
    compressor = _COMPRESSORS[codec]()
    return b"".join([*(compressor.compress(piece) for piece in pieces), compressor.flush()])


def zstd_frame(blocks: Iterable[bytes], window_log: int = 17) -> bytes:
    """Return a frame of these blocks (RFC 8878, 3.1.1) with the given window, and without its content size."""
    return _ZSTD_MAGIC + b"\0" + bytes([(window_log - 10) << 3]) + b"".join(blocks)


def zstd_raw(data: bytes, *, is_last: bool = False) -> bytes:
    """Return a block that contains the bytes uncompressed."""
    return (len(data) << 3 | is_last).to_bytes(3, "little") + data


def zstd_zeros(count: int, *, is_last: bool = False) -> bytes:
    """Return a block of four bytes that stands for up to 131,072 zeros."""
    return (count << 3 | 1 << 1 | is_last).to_bytes(3, "little") + b"\0"


def zstd_skipped(size: int) -> bytes:
    """Return a frame that decompressors skip."""
    return b"\x50\x2a\x4d\x18" + struct.pack("<I", size) + bytes(size)


class _Gzip:
    """A member (RFC 1952) whose pieces are compressed separately, so that a repeated piece is compressed only once."""

    def __init__(self) -> None:
        self._head = _GZIP_HEAD
        self._crc = 0
        self._size = 0

    def compress(self, data: bytes) -> bytes:
        self._crc = zlib.crc32(data, self._crc)
        self._size += len(data)
        head, self._head = self._head, b""
        return head + _deflated(data)

    def flush(self) -> bytes:
        return self._head + _DEFLATE_END + struct.pack("<II", self._crc, self._size & 0xFFFFFFFF)


@lru_cache(maxsize=8)
def _deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush(zlib.Z_FULL_FLUSH)


class _Lz4:
    """A frame of independent blocks, because Kafka accepts no others."""

    def __init__(self) -> None:
        self._head = _LZ4_HEAD

    def compress(self, data: bytes) -> bytes:
        head, self._head = self._head, b""
        return head + b"".join(_lz4_blocks(data))

    def flush(self) -> bytes:
        return self._head + bytes(4)


class _Zstd:
    """cramjam's compressor with the interface of zlib's."""

    def __init__(self) -> None:
        self._inner = cramjam.zstd.Compressor(3)

    def compress(self, data: bytes) -> bytes:
        self._inner.compress(data)
        return bytes(self._inner.flush())

    def flush(self) -> bytes:
        return bytes(self._inner.finish())


def _xerial_blocks(data: bytes) -> Iterator[bytes]:
    for begin in range(0, len(data), _XERIAL_BLOCK_BYTES):
        block = bytes(cramjam.snappy.compress_raw(data[begin : begin + _XERIAL_BLOCK_BYTES]))
        yield struct.pack(">i", len(block)) + block


def _lz4_blocks(data: bytes) -> Iterator[bytes]:
    for begin in range(0, len(data), _LZ4_BLOCK_BYTES):
        block = bytes(cramjam.lz4.compress_block(data[begin : begin + _LZ4_BLOCK_BYTES], store_size=False))
        yield struct.pack("<I", len(block)) + block


_COMPRESSORS: Final[dict[str, Callable[[], _Compressor]]] = {"gzip": _Gzip, "lz4": _Lz4, "zstd": _Zstd}
