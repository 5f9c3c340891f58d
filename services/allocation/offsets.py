"""Saying on purpose that Kafka's offsets begin anew, and what operators did by hand."""

import structlog

from shared.runtime.incarnation import incarnation
from shared.runtime.kafka import CONSUMED
from shared.runtime.postgres import connect
from shared.runtime.settings import Settings

log = structlog.get_logger()

ROLE = "drawdown_allocation"


async def print_log(settings: Settings) -> None:
    """Print the operators' log, oldest first."""
    connection = await connect(settings, ROLE, "drawdown offsets log")
    try:
        rows = await connection.fetch(
            "SELECT row_to_json(entry)::text FROM ledger.operators_log AS entry ORDER BY sequence"
        )
    finally:
        await connection.close()
    for row in rows:
        print(row[0])


async def adopt(settings: Settings) -> None:
    """Start with the present cluster's topics from their beginning. Nothing is charged twice: event ids are compared.

    A running owner is fenced: its next batch finds another epoch and is refused.
    """
    present = await incarnation(settings, *CONSUMED)
    connection = await connect(settings, ROLE, "drawdown offsets adopt")
    try:
        await connection.execute(
            "UPDATE ledger.shards SET incarnation = $1, spend_offset = 0, command_offset = 0, epoch = epoch + 1,"
            " owner = NULL, owner_pid = NULL",
            present,
        )
    finally:
        await connection.close()
    log.info("offsets begin anew", incarnation=present)
