"""Measures for Prometheus what other systems can make grow: quarantine, and records that wait between shards."""

from typing import Final

import asyncpg
import structlog
from prometheus_client import Gauge

from services.api.watching.looking import keep_looking
from shared.runtime.settings import Settings

LOOK_SECONDS: Final = 15.0
_ANSWER_SECONDS: Final = 10.0

QUARANTINE_BYTES = Gauge("drawdown_quarantine_bytes", "Bytes that quarantine takes on the database's disk, all months")
QUARANTINE_MONTHS = Gauge("drawdown_quarantine_months", "Months that have a partition of quarantine")
FORWARDED_RECORDS = Gauge("drawdown_forwarded_records", "Records that wait for another shard or a replay", ["shard"])
FORWARDED_BYTES = Gauge("drawdown_forwarded_replay_bytes", "Bytes of the waiting records that are replays", ["shard"])


async def watch_growth(settings: Settings) -> None:
    """Measure every 15 seconds until cancelled; while the database is unavailable, try again."""
    await keep_looking(settings, "drawdown api growth", look, LOOK_SECONDS, _ANSWER_SECONDS, _tell)


def _tell(error: Exception) -> None:
    structlog.get_logger().warning(
        "quarantine could not be measured: trying again", error=f"{type(error).__name__}: {error}"
    )


async def look(connection: asyncpg.Connection) -> None:
    """Measure once."""
    months, size = await connection.fetchrow(
        "SELECT count(*) FILTER (WHERE inhparent = 'ledger.quarantine'::regclass),"
        " coalesce(sum(pg_total_relation_size(inhrelid)), 0) FROM pg_inherits"
        " WHERE inhparent IN ('ledger.quarantine'::regclass, 'ledger.quarantine_replays'::regclass)"
    )
    QUARANTINE_MONTHS.set(months)
    QUARANTINE_BYTES.set(float(size))
    for shard, records, replay_bytes in await connection.fetch(
        "SELECT shard, coalesce(records, 0), coalesce(replay_bytes, 0) FROM ledger.shards"
        " LEFT JOIN ledger.forwarded_waiting USING (shard)"
    ):
        FORWARDED_RECORDS.labels(shard).set(records)
        FORWARDED_BYTES.labels(shard).set(float(replay_bytes))
