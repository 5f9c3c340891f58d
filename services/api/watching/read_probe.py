"""Checks whether requests can be answered, by reading the tables that they read, once a second.

A database may answer although requests cannot read: another session may hold a lock, or all connections of the pool may
wait for one.
"""

import asyncio
from dataclasses import dataclass, field
from itertools import chain
from time import monotonic
from typing import Final

import asyncpg
from prometheus_client import Gauge

from shared.runtime.postgres import is_unavailable
from shared.runtime.read_models import READ_MODELS

LOOK_SECONDS: Final = 1.0
ANSWER_SECONDS: Final = 5.0
STALE_SECONDS: Final = 15.0  # without a check that ended, whether it succeeded or failed

NOTIFICATIONS = Gauge(
    "drawdown_notification_queue_usage",
    "How full the database's queue of notifications is (at 1 notifications fail)",
)
TRANSACTION_IDS = Gauge(
    "drawdown_oldest_transaction_age",
    "Transaction ids that the database has used since the oldest that it still tells apart (at 2^31 writes fail)",
)

_BOUNDED: Final = "SELECT pg_notification_queue_usage(), (SELECT max(age(datfrozenxid)) FROM pg_database)"
# All tables that requests may read; none of them belongs to signals. They are listed here, because a search of the
# catalog would not notice that a table was renamed.
TABLES: Final = (
    "ledger.ad_accounts",
    "ledger.allocators",
    "ledger.batches",
    "ledger.checkpoints",
    "ledger.checkpoints_outcomes",
    "ledger.entries",
    "ledger.operators_log",
    "ledger.outcomes",
    "ledger.policies",
    "ledger.quarantine",
    "ledger.quarantine_replays",
    "ledger.shard_states",
    "ledger.shards",
    "ledger.time_zones",
    "incentives.deals",
    *(f"ledger.checkpoints_{model.name}" for model in READ_MODELS),
    *chain.from_iterable(model.qualified_tables for model in READ_MODELS if model.name != "signals"),
)
_ONE_ROW_OF_EACH: Final = f"SELECT {', '.join(f'EXISTS (SELECT FROM {table})' for table in TABLES)}"  # noqa: S608 (ours)


@dataclass(eq=False, slots=True)
class TableReader:
    """Reads what requests read, and keeps the result."""

    pool: asyncpg.Pool
    problem: str | None = "nothing has been read yet"
    _looked_at: float = field(default_factory=monotonic)

    async def run(self) -> None:
        """Read once a second until cancelled.

        Raises errors that are not the database's.
        """
        while True:
            self.problem = await self._problem()
            self._looked_at = monotonic()
            await asyncio.sleep(LOOK_SECONDS)

    def readiness(self) -> tuple[bool, str]:
        """Return whether requests can be answered, as seen last, and a sentence about it."""
        silence = monotonic() - self._looked_at
        if silence > STALE_SECONDS:
            return False, f"the tables that requests read have not been checked for {silence:.0f} s"
        return self.problem is None, self.problem or "requests can read"

    async def _problem(self) -> str | None:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._read()
        except asyncpg.LockNotAvailableError:
            return "requests cannot read: another session of the database holds a lock on what they read"
        except Exception as error:
            if not (is_unavailable(error) or isinstance(error, asyncpg.PostgresError)):
                raise
            return f"requests cannot read: {type(error).__name__}: {error}"
        return None

    async def _read(self) -> None:
        async with self.pool.acquire(timeout=ANSWER_SECONDS) as connection:
            await connection.fetch(_ONE_ROW_OF_EACH)
            notifications, age = await connection.fetchrow(_BOUNDED)
            NOTIFICATIONS.set(notifications)
            TRANSACTION_IDS.set(age)
