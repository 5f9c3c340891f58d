"""A stand-in for the processes that write the shards: it owns shards, reports their states, and dies when told to."""

import contextlib
import secrets
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from typing import Any

import asyncpg

from services.allocation.lease import announce


class Writer:
    """Owns shards by the rules of the lease: its database session stands for it."""

    def __init__(self, connection: asyncpg.Connection, owner: str) -> None:
        self.owner = owner
        self._connection = connection

    async def own(self, shards: Iterable[int]) -> None:
        """Take these shards."""
        await self._connection.execute(
            "UPDATE ledger.shards SET owner = $1, owner_pid = pg_backend_pid(), released_at = NULL"
            " WHERE shard = ANY($2::smallint[])",
            self.owner,
            list(shards),
        )
        await announce(self._connection, self.owner)

    async def release(self, shard: int) -> None:
        """Release a shard."""
        await self._connection.execute(
            "UPDATE ledger.shards SET owner = NULL, released_at = clock_timestamp() WHERE shard = $1", shard
        )

    async def report(
        self,
        shard: int,
        state: str,
        detail: str = "",
        *,
        waiting: int = 0,
        for_seconds: float = 0,
        seconds_ago: float = 0,
    ) -> None:
        """Report the state of a shard. The oldest record has waited for `for_seconds`, and the report is `seconds_ago`
        old.
        """
        await self._connection.execute(
            "INSERT INTO ledger.shard_states SELECT $1, $2, $3, $4, $5::bigint,"
            " CASE WHEN $5::bigint > 0 THEN clock_timestamp() - $6::interval END,"
            " clock_timestamp() - interval '1 hour', clock_timestamp() - $7::interval"
            " ON CONFLICT (shard) DO UPDATE SET owner = excluded.owner,"
            " state = excluded.state, detail = excluded.detail, waiting_records = excluded.waiting_records,"
            " waiting_since = excluded.waiting_since, since = excluded.since, reported_at = excluded.reported_at",
            *(shard, self.owner, state, detail, waiting),
            *(timedelta(seconds=for_seconds), timedelta(seconds=seconds_ago)),
        )

    async def die(self) -> None:
        """End the session without releasing anything."""
        await self._connection.close()


@contextlib.asynccontextmanager
async def shard_writer(database_url: str, **options: Any) -> AsyncIterator[Writer]:
    """Yield a writer that owns every shard of a database."""
    owner = f"stand-in:1:{secrets.token_hex(4)}"
    name = {"application_name": f"drawdown allocation lease {owner[-8:]}"}
    connection = await asyncpg.connect(database_url, server_settings=name, **options)
    try:
        writer = Writer(connection, owner)
        await writer.own(range(64))
        yield writer
    finally:
        await connection.close()
