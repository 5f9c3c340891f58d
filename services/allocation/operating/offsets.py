"""The commands `offsets adopt`, which begins again at offset 0 of new topics, and `offsets log`."""

import structlog

from shared.runtime.incarnation import incarnation
from shared.runtime.kafka import CONSUMED
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

    Nothing is charged twice, because the ledger compares event ids. Running owners are fenced: their next batch finds
    another epoch and is refused.
    """
    present = await incarnation(settings, *CONSUMED)
    connection = await connect(settings, ALLOCATION_ROLE, "drawdown offsets adopt")
    try:
        await connection.execute(
            "UPDATE ledger.shards SET incarnation = $1, spend_offset = 0, command_offset = 0, epoch = epoch + 1,"
            " owner = NULL, owner_pid = NULL",
            present,
        )
    finally:
        await connection.close()
    log.info("all shards read the topics from offset 0", incarnation=present)
