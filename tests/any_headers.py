"""Batches whose headers contain arbitrary bytes, which aiokafka's producer does not write."""

from collections.abc import Iterable
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

from tests.raw_batches import publish_batch

Headers = list[tuple[bytes, bytes | None]]


class _Name(str):
    """A header name of arbitrary bytes, for aiokafka's builder in Python."""

    raw: bytes
    __slots__ = ("raw",)

    def encode(self, *_: Any) -> bytes:
        return self.raw


def _name(raw: bytes) -> _Name:
    name = _Name()
    name.raw = raw
    return name


class _Builder(_DefaultRecordBatchBuilderPy):  # type: ignore[misc]
    is_control = False

    def _get_attributes(self, include_compression_type: bool = True) -> int:
        attributes: int = super()._get_attributes(include_compression_type)
        return attributes | self.CONTROL_MASK if self.is_control else attributes


def batch_of(
    headers: Iterable[Headers],
    codec: int = 0,
    *,
    key: bytes | None = b"key",
    value: bytes | None = b"value",
    offset: int = 0,
    is_transactional: int = 0,
    is_control: bool = False,
) -> bytes:
    """Return a batch of records that differ only in their headers."""
    builder = _Builder(2, codec, is_transactional, 7 if is_transactional else -1, -1, -1, 1 << 20)
    builder.is_control = is_control
    for number, each in enumerate(headers):
        named = [(_name(name), held) for name, held in each]
        assert builder.append(number, 1_700_000_000_000, key, value, named) is not None
    return offset.to_bytes(8, "big") + bytes(builder.build())[8:]


async def publish(
    producer: AIOKafkaProducer, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers
) -> int:
    """Publish one record with any headers; return its offset."""
    return await publish_batch(producer, batch_of([headers], key=key, value=value), topic, partition)
