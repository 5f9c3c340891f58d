"""What grows by what others send: quarantine, and the records that wait between shards. Told to Prometheus."""

import asyncio
from typing import Final

import asyncpg
import structlog
from prometheus_client import Gauge

from services.api.commands.waiting import ROLE
from shared.runtime.postgres import connect, is_unavailable
from shared.runtime.settings import Settings

LOOK_SECONDS: Final = 15.0
_ANSWER_SECONDS: Final = 10.0

QUARANTINE_BYTES = Gauge("drawdown_quarantine_bytes", "What quarantine takes on the database's disk, all months")
QUARANTINE_MONTHS = Gauge("drawdown_quarantine_months", "The months that quarantine has parts of")
FORWARDED_RECORDS = Gauge("drawdown_forwarded_records", "Records that wait for another shard or a replay", ["shard"])
FORWARDED_BYTES = Gauge("drawdown_forwarded_replay_bytes", "Of those that are replays, their bytes", ["shard"])


async def watch_growth(settings: Settings) -> None:
    """Look every 15 seconds until cancelled; a database that is away is asked on."""
    while True:
        try:
            connection = await connect(settings, ROLE, "drawdown api growth")
            try:
                while True:
                    async with asyncio.timeout(_ANSWER_SECONDS):
                        await look(connection)
                    await asyncio.sleep(LOOK_SECONDS)
            finally:
                connection.terminate()
        except Exception as error:
            if not is_unavailable(error):
                raise
            structlog.get_logger().warning("nobody measures quarantine", error=f"{type(error).__name__}: {error}")
        await asyncio.sleep(LOOK_SECONDS)


async def look(connection: asyncpg.Connection) -> None:
    """Look once."""
    months, size = await connection.fetchrow(
        "SELECT count(*), coalesce(sum(pg_total_relation_size(inhrelid)), 0) FROM pg_inherits"
        " WHERE inhparent = 'ledger.quarantine'::regclass"
    )
    QUARANTINE_MONTHS.set(months)
    QUARANTINE_BYTES.set(float(size))
    for shard, records, replay_bytes in await connection.fetch(
        "SELECT shard, coalesce(records, 0), coalesce(replay_bytes, 0) FROM ledger.shards"
        " LEFT JOIN ledger.forwarded_waiting USING (shard)"
    ):
        FORWARDED_RECORDS.labels(shard).set(records)
        FORWARDED_BYTES.labels(shard).set(float(replay_bytes))
