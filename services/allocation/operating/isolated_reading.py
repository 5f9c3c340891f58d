"""Reads one record in a child process, because the record may crash or hang any process that reads it.

A record that makes the writer hang or take all memory does the same to this process. So its time and memory are
bounded.
"""

import asyncio
import multiprocessing
import resource
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

from services.allocation.failures import describe
from services.allocation.records import batch_bounds
from services.allocation.records.batch_decoding import as_raw
from services.allocation.records.consuming import start_consumer
from services.allocation.records.record_decoding import Raw
from shared.runtime.kafka import start_client, stop_client
from shared.runtime.settings import Settings

READ_SECONDS: Final = 20.0
_FETCH_SECONDS: Final = 5.0
_ADDRESS_SPACE_BYTES: Final = 1024 * batch_bounds.MIB


class NotYet(NamedTuple):
    """There is no record to read at an offset yet, and nothing is wrong with it."""

    why: str


Found = Raw | str | NotYet


async def read_one(settings: Settings, topic: str, partition: int, offset: int) -> Found:
    """Return the committed record at an offset, the reason why it cannot be read, or why there is none yet."""
    return await asyncio.to_thread(_read_apart, settings, topic, partition, offset)


def _read_apart(settings: Settings, topic: str, partition: int, offset: int) -> Found:
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_read_into, args=(sending, settings, topic, partition, offset))
    process.start()
    sending.close()
    try:
        if not receiving.poll(READ_SECONDS):
            return f"it could not be read within {READ_SECONDS:.0f} s"
        found: Found = receiving.recv()
    except EOFError:
        return "the process that read it died"
    else:
        return found
    finally:
        process.kill()
        process.join()


def _read_into(sending: Connection, settings: Settings, topic: str, partition: int, offset: int) -> None:
    """Run in the process: find the record and send it, or why it could not be read."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE_BYTES, _ADDRESS_SPACE_BYTES))
    found: Found
    try:
        found = asyncio.run(_read(settings, topic, partition, offset))
    except Exception as error:
        found = f"it could not be read: {describe(error)}"
    sending.send(found)


async def _read(settings: Settings, topic: str, partition: int, offset: int) -> Found:
    consumer = await start_consumer(settings, client_id="drawdown-offsets-skip")
    try:
        place = TopicPartition(topic, partition)
        consumer.assign([place])
        consumer.seek(place, offset)
        records = await consumer.getmany(timeout_ms=int(_FETCH_SECONDS * 1000), max_records=1)
        if records.get(place):
            return _the_one(records[place][0], topic, partition, offset)
        end = (await consumer.end_offsets([place]))[place]
        written = await _written(settings, place)
        # A fetch may have seen a later end than the embedded broker reports.
        if offset >= max(end, written, consumer.highwater(place) or 0):
            return NotYet("has no record yet, and no record blocks the shard")
        if end < written:
            return NotYet("is behind a transaction that has not ended (docs/runbook.md, A shard stops, 8)")
        return "there is no committed record at that offset"
    finally:
        await stop_client(consumer)


async def _written(settings: Settings, place: TopicPartition) -> int:
    """Return the end offset of the partition, including records that are not committed."""
    consumer = await start_client(settings, AIOKafkaConsumer, enable_auto_commit=False)
    try:
        end: int = (await consumer.end_offsets([place]))[place]
    finally:
        await stop_client(consumer)
    return end


def _the_one(record: Any, topic: str, partition: int, offset: int) -> Raw | str:
    """Return the record if it covers the offset: it may be a batch that stands for all of its records."""
    raw = as_raw(record, topic, partition)
    first = raw.cut.first_offset if raw.cut else raw.offset
    return raw if first <= offset else f"there is no record at that offset, the next one is at {first}"
