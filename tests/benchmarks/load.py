"""The records that the benchmarks publish: commands that open and fund Business Centers, and spends on them."""

import asyncio
import json
import os
import random
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition

from shared.runtime.kafka import FINANCE_COMMANDS, SPEND_EVENTS, create_producer, murmur2_partition
from shared.runtime.settings import Settings

BATCH_BYTES = 128 * 1024
AMPLE = "1000000.00"
MOST_AMOUNT_MICROS = 50_000
_CHUNK = 20_000

Record = tuple[int, bytes, bytes]  # partition, key, value


@dataclass(frozen=True, slots=True)
class Center:
    """A Business Center of the load, with the one ad account that spends."""

    id: str
    account: str
    automatic: bool
    campaigns: tuple[str, ...]
    partition: int
    time_zone: str = "UTC"

    @property
    def key(self) -> bytes:
        """The key of its records."""
        return self.id.encode()


_ZONES = ("UTC", "America/New_York", "Asia/Tokyo", "Europe/Berlin")


def center(name: str, shards: int, *, automatic: bool, campaigns: int, time_zone: str = "UTC") -> Center:
    """Return a Business Center with that name, in the name's shard."""
    names = tuple(f"{name}-cmp-{number}" for number in range(campaigns))
    return Center(name, f"{name}-acct", automatic, names, murmur2_partition(name.encode(), shards), time_zone)


def many_centers(count: int, campaigns: int, shards: int) -> list[Center]:
    """Return Business Centers in several time zones. Every second one has automatic allocation."""
    return [
        center(
            f"many-{n:05}", shards, automatic=n % 2 == 0, campaigns=campaigns, time_zone=_ZONES[n // 2 % len(_ZONES)]
        )
        for n in range(count)
    ]


def center_in_shard(prefix: str, shard: int, shards: int) -> Center:
    """Return a Business Center whose name belongs to that shard."""
    number = 0
    while murmur2_partition(f"{prefix}-{number}".encode(), shards) != shard:
        number += 1
    return center(f"{prefix}-{number}", shards, automatic=False, campaigns=1)


# ---- Commands ---------------------------------------------------------------------------------------------------


def command(where: Center, kind: str, **fields: Any) -> Record:
    """Return the record of a finance command, keyed by its Business Center."""
    content = {
        "command_id": str(uuid.uuid4()),
        "type": kind,
        "business_center_id": where.id,
        "issued_at": datetime.now(UTC).isoformat(),
        "actor": {"id": "bench", "role": "admin"},
        **fields,
    }
    return where.partition, where.key, json.dumps(content).encode()


def opened_center(where: Center) -> Record:
    """Return the command that opens the Business Center."""
    return command(where, "open_business_center", currency="USD", time_zone=where.time_zone)


def opened_account(where: Center, account: str) -> Record:
    """Return the command that opens an ad account of a kind that automatic allocation accepts."""
    kind = {"billing": "monthly_invoicing", "buying_type": "auction", "time_zone": where.time_zone}
    return command(where, "open_ad_account", ad_account_id=account, **kind)


def funded(where: Center) -> Iterator[Record]:
    """Return the commands that open a Business Center with its account, and deposit ample cash where it is drawn from.

    The account opens last, because an account that exists when automatic allocation is enabled gets a budget.
    """
    yield opened_center(where)
    if where.automatic:
        yield command(where, "deposit_cash", amount=AMPLE)
        yield command(where, "enable_automatic_allocation")
    yield opened_account(where, where.account)
    if not where.automatic:
        yield command(where, "deposit_cash", amount=AMPLE, ad_account_id=where.account)


# ---- Spends -----------------------------------------------------------------------------------------------------


def event_id() -> str:
    """Return a UUIDv7, which is random and ordered by time."""
    head, tail = f"{time.time_ns() // 1_000_000:012x}", os.urandom(10).hex()
    return f"{head[:8]}-{head[8:]}-7{tail[:3]}-a{tail[3:6]}-{tail[6:18]}"


def spend(where: Center, account: str, campaign: str, amount: str, now: str, id_: str) -> Record:
    """Return the record of a spend, as ad delivery publishes it."""
    return (
        where.partition,
        where.key,
        f'{{"type": "spend", "event_id": "{id_}", "business_center_id": "{where.id}", "ad_account_id": "{account}", '
        f'"campaign_id": "{campaign}", "amount": "{amount}", "currency": "USD", "occurred_at": "{now}"}}'.encode(),
    )


def now_text() -> str:
    """Return the present time in the form of a spend's."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def random_spends(centers: Sequence[Center], count: int) -> list[Record]:
    """Yield spends of up to 0.05 on random campaigns of random Business Centers, at the present time."""
    now, records = now_text(), []
    for _ in range(count):
        where = centers[int(random.random() * len(centers))]
        campaign = where.campaigns[int(random.random() * len(where.campaigns))]
        amount = f"0.{1 + int(random.random() * MOST_AMOUNT_MICROS):06}"
        records.append(spend(where, where.account, campaign, amount, now, event_id()))
    return records


def one_spend_each(centers: Sequence[Center]) -> list[Record]:
    """Yield one spend on every campaign, so that all of them are known."""
    now = now_text()
    return [spend(each, each.account, name, "0.010000", now, event_id()) for each in centers for name in each.campaigns]


# ---- Publishing -------------------------------------------------------------------------------------------------


class Publisher:
    """Publishes records in batches made here, which is far cheaper than a call to the client for each."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self._producer = producer

    async def publish(self, topic: str, records: Iterable[Record], *, last_alone: bool = True) -> int:
        """Publish records, and wait until all are acknowledged; return how many there were.

        Make only one call at a time, because the client takes one batch a partition, and others wait in no fixed order.

        Args:
            topic: the topic to publish to.
            records: the records to publish; those of a partition keep their order.
            last_alone: send each partition's last record alone. The embedded broker takes the offset after the
                first record of the last batch for the end of the partition, and allocation asks for that end when
                it starts.

        """
        by_partition: dict[int, list[Record]] = {}
        for record in records:
            by_partition.setdefault(record[0], []).append(record)
        await asyncio.gather(
            *(self._send(topic, partition, own, last_alone) for partition, own in by_partition.items())
        )
        return sum(map(len, by_partition.values()))

    async def _send(self, topic: str, partition: int, records: list[Record], last_alone: bool) -> None:
        parts = (records[:-1], records[-1:]) if last_alone else (records,)
        sent = [
            await self._producer.send_batch(batch, topic, partition=partition)
            for part in parts
            for batch in self._batches(part)
        ]
        await asyncio.gather(*sent)

    def _batches(self, records: Sequence[Record]) -> Iterator[Any]:
        now = time.time_ns() // 1_000_000
        batch = None
        for _, key, value in records:
            if batch is None or batch.append(timestamp=now, key=key, value=value) is None:
                if batch is not None:
                    yield batch
                batch = self._producer.create_batch()
                assert batch.append(timestamp=now, key=key, value=value) is not None
        if batch is not None:
            batch.close()
            yield batch

    async def commands(self, records: Iterable[Record]) -> int:
        """Publish finance commands."""
        return await self.publish(FINANCE_COMMANDS, records)

    async def spends(self, centers: Sequence[Center], count: int) -> int:
        """Publish `count` random spends, some at a time, so that memory stays small."""
        for start in range(0, count, _CHUNK):
            await self.publish(SPEND_EVENTS, random_spends(centers, min(_CHUNK, count - start)))
        return count

    async def send_alone(self, record: Record) -> tuple[int, int]:
        """Publish one spend at once; return its partition and offset."""
        partition, key, value = record
        sent = await self._producer.send_and_wait(SPEND_EVENTS, value, key=key, partition=partition)
        return partition, int(sent.offset)


async def create_publisher(settings: Settings) -> tuple[Publisher, AIOKafkaProducer]:
    """Return a publisher, and its producer, which the caller must stop."""
    producer = await create_producer(settings, max_batch_size=BATCH_BYTES, linger_ms=0)
    for topic in (SPEND_EVENTS, FINANCE_COMMANDS):
        await producer.partitions_for(topic)
    return Publisher(producer), producer


def partitions(topic: str, shards: int) -> list[TopicPartition]:
    """Return all partitions of a topic."""
    return [TopicPartition(topic, number) for number in range(shards)]
