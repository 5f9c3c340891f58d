"""The context of every request, which `service.py` wires once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import asyncpg
from aiokafka import AIOKafkaProducer
from fastapi import Depends, Request

from services.api.door.access import Access
from services.api.watching.outcomes import Watcher
from services.api.watching.writers import Writers
from shared.contracts.signatures import CommandSigner
from shared.runtime.clock import Clock
from shared.runtime.health import Health

ACQUIRE_TIMEOUT_SECONDS = 5.0
READ_TIMEOUT_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Context:
    """The connections, the clock and the access rules of this process, and the signer of its commands."""

    access: Access
    pool: asyncpg.Pool
    producer: AIOKafkaProducer
    watcher: Watcher
    health: Health
    writers: Writers
    clock: Clock
    shards: int
    signer: CommandSigner | None = None

    def readiness(self) -> dict[str, Any]:
        """Return the answer of `/readyz`: whether the process can serve, and how the ledger is written."""
        return self.writers.readiness(*self.health.readiness())

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[asyncpg.Connection]:
        """Yield a connection that sees one moment of the database, so that an answer and its `as_of` agree.

        Raises TimeoutError if the database does not answer in time.
        """
        async with (
            asyncio.timeout(READ_TIMEOUT_SECONDS),
            self.pool.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS) as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            yield connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.Connection]:
        """Yield a connection in a transaction. Raises what `snapshot` raises."""
        async with (
            asyncio.timeout(READ_TIMEOUT_SECONDS),
            self.pool.acquire(timeout=ACQUIRE_TIMEOUT_SECONDS) as connection,
            connection.transaction(),
        ):
            yield connection


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Api = Annotated[Context, Depends(_context)]
