"""The commands `offsets adopt`, which reads the present topics from their beginning, and `offsets log`."""

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition

from shared.runtime.incarnation import incarnation
from shared.runtime.kafka import CONSUMED, FINANCE_COMMANDS, SPEND_EVENTS, start_client, stop_client
from shared.runtime.postgres import connect
from shared.runtime.roles import ALLOCATION_ROLE
from shared.runtime.settings import Settings

log = structlog.get_logger()


async def print_log(settings: Settings) -> None:
    """Print the operators' log, oldest entry first."""
    connection = await connect(settings, ALLOCATION_ROLE, "drawdown offsets log")
    try:
        rows = await connection.fetch(
            "SELECT row_to_json(entry)::text FROM ledger.operators_log AS entry ORDER BY sequence"
        )
    finally:
        await connection.close()
    for row in rows:
        print(row[0])


async def adopt(settings: Settings) -> None:
    """Let all shards read the topics of the present cluster from their beginning.

    That is offset 0 in a new topic, and the first record that is left in one whose retention was too short. Nothing is
    charged twice, because the ledger compares event ids. Running owners are fenced: their next batch finds another
    epoch and is refused.
    """
    present = await incarnation(settings, *CONSUMED)
    first = await _first_offsets(settings)
    connection = await connect(settings, ALLOCATION_ROLE, "drawdown offsets adopt")
    try:
        await connection.executemany(
            "UPDATE ledger.shards SET incarnation = $2, spend_offset = $3, command_offset = $4, epoch = epoch + 1,"
            " owner = NULL, owner_pid = NULL WHERE shard = $1",
            [(shard, present, spends, commands) for shard, (spends, commands) in first.items()],
        )
    finally:
        await connection.close()
    log.info("all shards read the topics from their beginning", incarnation=present, first_offsets=first)


async def _first_offsets(settings: Settings) -> dict[int, tuple[int, int]]:
    """Return the first offsets that the broker has of each shard's spends and commands."""
    consumer = await start_client(settings, AIOKafkaConsumer)
    try:
        found = await consumer.beginning_offsets(
            [TopicPartition(topic, shard) for topic in CONSUMED for shard in range(settings.shards)]
        )
    finally:
        await stop_client(consumer)
    return {
        shard: (found[TopicPartition(SPEND_EVENTS, shard)], found[TopicPartition(FINANCE_COMMANDS, shard)])
        for shard in range(settings.shards)
    }
