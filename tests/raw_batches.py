"""Kafka's batches, byte by byte, including those that no client writes and compressed ones that expand hugely."""

import gzip
import struct
from collections.abc import Callable, Iterable
from typing import Final

import cramjam
from aiokafka import AIOKafkaProducer
from aiokafka.record.util import calc_crc32c, encode_varint

MIB: Final = 1024 * 1024
NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
XERIAL: Final = b"\x82SNAPPY\x00" + struct.pack(">ii", 1, 1)
Header = tuple[bytes, bytes | None]


def varint(number: int) -> bytes:
    """Return a number as a varint of Kafka's records, up to 64 bits."""
    found = bytearray()
    encode_varint(number, found.append)
    return bytes(found)


def field(held: bytes | None) -> bytes:
    """Return bytes with their length in front."""
    return varint(-1) if held is None else varint(len(held)) + held


def record(
    value: bytes | None, *, key: bytes | None = None, headers: Iterable[Header] = (), offset: int = 0, time: int = 0
) -> bytes:
    """Return one record with its length in front. `offset` is relative to the batch's."""
    held = list(headers)
    inside = b"\0" + varint(time) + varint(offset) + field(key) + field(value) + varint(len(held))
    return field(inside + b"".join(field(name) + field(each) for name, each in held))


def record_of_many_headers(count: int, value: bytes = b"v", offset: int = 0) -> bytes:
    """Return a record with many small headers. This is much faster than `record`."""
    header = field(b"hh") + field(b"w")
    return field(b"\0\0" + varint(offset) + field(None) + field(value) + varint(count) + header * count)


def records(values: Iterable[bytes | None], key: bytes | None = None) -> bytes:
    """Return records with these values, one after the other."""
    return b"".join(record(value, key=key, offset=number) for number, value in enumerate(values))


def batch(
    inside: bytes,
    count: int,
    *,
    codec: int = NONE,
    offset: int = 0,
    last: int | None = None,
    attributes: int = 0,
    producer: int = -1,
) -> bytes:
    """Return a batch around the bytes of its records, already compressed if there is a codec. Its head may be false."""
    last = count - 1 if last is None else last
    body = struct.pack(">hiqqqhii", codec | attributes, last, 0, 0, producer, -1, -1, count) + inside
    return struct.pack(">qiibI", offset, len(body) + 9, 0, 2, calc_crc32c(body)) + body


def message(
    value: bytes | None, *, magic: int = 1, key: bytes | None = None, codec: int = NONE, offset: int = 0
) -> bytes:
    """Return a message in a format before version 2. With a codec, its value is compressed messages."""
    time = struct.pack(">q", 5) if magic else b""
    held = b"".join(struct.pack(">i", -1 if each is None else len(each)) + (each or b"") for each in (key, value))
    body = struct.pack(">bb", magic, codec) + time + held
    return struct.pack(">qiI", offset, len(body) + 4, gzip.zlib.crc32(body)) + body  # type: ignore[attr-defined]


def in_blocks(block: bytes, times: int = 1) -> bytes:
    """Return the same snappy block `times` times, in Java's frames."""
    return XERIAL + (struct.pack(">i", len(block)) + block) * times


def in_java_snappy(held: bytes) -> bytes:
    """Compress with snappy like Java."""
    return in_blocks(bytes(cramjam.snappy.compress_raw(held)))


PACK: Final[dict[str, tuple[int, Callable[[bytes], bytes]]]] = {
    "gzip": (GZIP, lambda held: gzip.compress(held, 1, mtime=0)),
    "snappy": (SNAPPY, lambda held: bytes(cramjam.snappy.compress_raw(held))),
    "snappy in blocks": (SNAPPY, in_java_snappy),
    "lz4": (LZ4, lambda held: bytes(cramjam.lz4.compress(held))),
    "zstd": (ZSTD, lambda held: bytes(cramjam.zstd.compress(held))),
}


def zstd_frame(blocks: bytes, window_log: int = 20) -> bytes:
    """Return a frame that does not contain its decompressed size."""
    return b"\x28\xb5\x2f\xfd\x00" + bytes([(window_log - 10) << 3]) + blocks


def zstd_run(length: int, *, is_last: bool = False) -> bytes:
    """Return a block of four bytes that decompresses to `length` bytes."""
    return (length << 3 | 2 | is_last).to_bytes(3, "little") + b"\0"


async def publish_batch(producer: AIOKafkaProducer, data: bytes, topic: str, partition: int) -> int:
    """Publish one batch, byte by byte; return the offset of its first record.

    The producer must not number its records, or it would go on after the one record that it has counted.
    """
    made = producer.create_batch()
    made.append(timestamp=None, key=None, value=b"")  # So that the producer counts one record.
    made.close()
    made._buffer = bytearray(data)
    offset: int = (await (await producer.send_batch(made, topic, partition=partition))).offset
    return offset


def bombs(mib: int) -> dict[str, tuple[int, bytes]]:
    """Return by name a codec, and bytes that decompress to `mib` MiB of zeros, or claim that."""
    zeros = bytes(MIB)
    once = {name: (codec, pack(zeros)) for name, (codec, pack) in PACK.items()}
    runs = zstd_run(2**17) * (8 * mib - 1) + zstd_run(2**17, is_last=True)
    return {
        "gzip": (GZIP, gzip.compress(bytes(mib * MIB), 1, mtime=0)),
        "gzip of many members": (GZIP, once["gzip"][1] * mib),
        "snappy that says it": (SNAPPY, b"\xff\xff\xff\xff\x0f" + b"\0" * 1000),
        "snappy in blocks": (SNAPPY, in_blocks(once["snappy"][1], mib)),
        "snappy in a block": (SNAPPY, in_blocks(b"\xff\xff\xff\xff\x0f" + b"\0" * 1000)),
        "lz4": (LZ4, bytes(cramjam.lz4.compress(bytes(mib * MIB)))),
        "lz4 of many frames": (LZ4, once["lz4"][1] * mib),
        "zstd": (ZSTD, bytes(cramjam.zstd.compress(bytes(mib * MIB)))),
        "zstd of many frames": (ZSTD, once["zstd"][1] * mib),
        "zstd that does not say it": (ZSTD, zstd_frame(runs)),
        "zstd with the largest window": (ZSTD, zstd_frame(runs, 27)),
    }


def mines() -> dict[str, tuple[int, bytes]]:
    """Return by name a codec, and bytes that decompress to almost nothing, but consist of very many pieces."""
    skipped = b"\x50\x2a\x4d\x18" + bytes(4)
    return {
        "gzip members": (GZIP, gzip.compress(b"", mtime=0) * 50_000),
        "empty snappy blocks": (SNAPPY, in_blocks(b"\0", 200_000)),
        "lz4 frames": (LZ4, bytes(cramjam.lz4.compress(b"")) * 60_000),
        "lz4 frames to skip": (LZ4, skipped * 125_000),
        "zstd frames": (ZSTD, bytes(cramjam.zstd.compress(b"")) * 100_000),
        "zstd frames of the largest window": (ZSTD, zstd_frame(zstd_run(1, is_last=True), 27) * 100_000),
        "zstd frames to skip": (ZSTD, skipped * 125_000),
        "empty zstd blocks": (ZSTD, zstd_frame(b"\0\0\0" * 330_000 + b"\1\0\0")),
    }
