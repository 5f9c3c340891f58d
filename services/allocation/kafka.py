"""Reading a shard's partitions from where the ledger says, and from nowhere else."""

from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer import fetcher

from services.allocation.worker import OffsetsDoNotFitError
from shared.ledger.lease import Lease
from shared.runtime.kafka import FINANCE_COMMANDS, SPEND_EVENTS
from shared.runtime.settings import Settings


class _ParsedRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    """Gives the parser's own records (offset, key, value, headers) instead of a dataclass made from each.

    Making that dataclass was a third of the writer's time (`make bench`). The version of aiokafka is pinned, and a
    test of the consumer fails should the name move.
    """

    def _consumer_record(self, _partition: TopicPartition, record: Any) -> Any:
        return record


fetcher.PartitionRecords = _ParsedRecords


async def open_consumer(settings: Settings, lease: Lease, incarnation: str) -> AIOKafkaConsumer:
    """A consumer of the shard's two partitions, at the offsets that the ledger says come next.

    There is no consumer group: who reads what follows from the leases, and PostgreSQL keeps the offsets.
    Raises OffsetsDoNotFitError where the topics are others than those whose offsets the ledger holds.
    """
    if lease.incarnation is None:
        lease.incarnation = incarnation
    if lease.incarnation != incarnation:
        raise OffsetsDoNotFitError(
            f"shard {lease.shard} has consumed Kafka cluster {lease.incarnation!r}, this is {incarnation!r}:"
            " if the old one is gone for good, 'drawdown offsets adopt' starts with the new one from its beginning"
        )
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka_bootstrap_servers,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        fetch_max_wait_ms=settings.kafka_fetch_wait_ms,
        max_partition_fetch_bytes=2 * 1024 * 1024,
        fetch_max_bytes=4 * 1024 * 1024,
        client_id=f"drawdown-allocation-{lease.shard}",
    )
    await consumer.start()
    try:
        await _seek(consumer, lease)
    except BaseException:
        await consumer.stop()
        raise
    return consumer


async def _seek(consumer: AIOKafkaConsumer, lease: Lease) -> None:
    offsets = {
        TopicPartition(SPEND_EVENTS, lease.shard): lease.spend_offset,
        TopicPartition(FINANCE_COMMANDS, lease.shard): lease.command_offset,
    }
    consumer.assign(list(offsets))
    first = await consumer.beginning_offsets(list(offsets))
    for partition, offset in offsets.items():
        if offset < first[partition]:
            raise OffsetsDoNotFitError(
                f"{partition.topic}-{partition.partition} begins at offset {first[partition]}, the ledger needs"
                f" {offset} next: its retention is too short, and what lay between is gone;"
                " 'drawdown offsets adopt' goes on from its beginning"
            )
        # An offset behind the end is refused by the broker at the first fetch. Its end is not asked for: the
        # embedded broker counts only up to the start of its last batch.
        consumer.seek(partition, offset)
