"""Waits for the outcome of a command, and until the read model shows its effect.

One watcher serves all requests. A notification only wakes it up; it then reads the tables. It also reads them from time
to time without a notification, so a lost one costs only time.
"""

import asyncio
import contextlib
from collections import defaultdict
from dataclasses import dataclass, field
from time import monotonic
from typing import Any
from uuid import UUID

import asyncpg
import structlog

from services.api.watching.read_probe import TableReader
from shared.contracts.commands import kept_meaning_hash
from shared.runtime.postgres import connect, is_unavailable
from shared.runtime.reachability import Reachability, watch_reachability
from shared.runtime.roles import API_ROLE
from shared.runtime.settings import Settings

CHANNELS = ("outcomes", "balance")
POLL_SECONDS = 0.5
RECONNECT_SECONDS = 1.0
ANSWER_SECONDS = 5.0  # for the database to answer the watcher
STALE_SECONDS = 15.0  # requests wait and no look has succeeded for this long: the process is not ready


@dataclass(eq=False, slots=True)
class _OutcomeWait:
    shard: int
    command_id: UUID
    meaning: str
    after: int
    found: asyncio.Future[asyncpg.Record]


@dataclass(eq=False, slots=True)
class _PositionWait:
    shard: int
    position: int
    found: asyncio.Future[None]


@dataclass(eq=False, slots=True)
class Watcher:
    """Reads outcomes and the balance follower's checkpoints for all waiting requests together."""

    settings: Settings
    pool: asyncpg.Pool
    database: Reachability
    reader: TableReader
    _outcomes: set[_OutcomeWait] = field(default_factory=set)
    _positions: set[_PositionWait] = field(default_factory=set)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _looked_at: float = field(default_factory=monotonic)
    _end: Exception | None = None

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            tasks.create_task(self._watch())
            tasks.create_task(self.reader.run())

    @property
    def silence(self) -> float:
        """Return for how many seconds requests have waited since the last successful read; 0 if none waits."""
        return monotonic() - self._looked_at if self._outcomes or self._positions else 0.0

    def refuse(self, error: Exception) -> None:
        """Fail all present and future waits with this error, because the process is shutting down."""
        self._end = error
        waiting: list[asyncio.Future[Any]] = [wait.found for wait in self._outcomes]
        waiting += [wait.found for wait in self._positions]
        for found in waiting:
            if not found.done():
                found.set_exception(error)

    async def outcome(self, shard: int, command_id: UUID, meaning: str, after: int) -> asyncpg.Record:
        """Wait for the first row of `ledger.outcomes` after the sequence `after` that answers this very command.

        Args:
            shard: the shard of the Business Center.
            command_id: the id of the command.
            meaning: `meaning_hash` of the content, because another command with this id has another outcome.
            after: the shard's `outcome_sequence` before the command was published.

        Raises:
            ApiError: the error that `refuse` was given.

        """
        wait = _OutcomeWait(shard, command_id, meaning, after, asyncio.get_running_loop().create_future())
        self._begin_to_wait()
        self._outcomes.add(wait)
        try:
            return await wait.found
        finally:
            self._outcomes.discard(wait)

    async def visible(self, shard: int, position: int) -> None:
        """Return once the balance read model has got to this position of the shard. Raises what `outcome` raises."""
        wait = _PositionWait(shard, position, asyncio.get_running_loop().create_future())
        self._begin_to_wait()
        self._positions.add(wait)
        try:
            await wait.found
        finally:
            self._positions.discard(wait)

    def _begin_to_wait(self) -> None:
        """Prepare for a wait. Raises the error that `refuse` was given."""
        if self._end is not None:
            raise self._end
        if not (self._outcomes or self._positions):
            self._looked_at = monotonic()
        self._wake.set()

    async def _listen(self) -> None:
        while True:
            try:
                await self._listen_until_closed()
            except Exception as error:
                if not is_unavailable(error):
                    raise
                structlog.get_logger().warning(
                    "listening for notifications failed: trying again", error=f"{type(error).__name__}: {error}"
                )
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _listen_until_closed(self) -> None:
        """Listen, and ping the database over the same connection. One that no longer answers is closed."""
        connection = await connect(self.settings, API_ROLE, "drawdown api watcher")
        try:
            for channel in CHANNELS:
                await connection.add_listener(channel, self._notified)
            self._wake.set()
            await watch_reachability(self.database, lambda: connection.execute("SELECT 1"))
        finally:
            connection.terminate()

    def _notified(self, *_: Any) -> None:
        self._wake.set()

    async def _watch(self) -> None:
        while True:
            await self._wakeup()
            try:
                await self._look()
            except Exception as error:
                if not is_unavailable(error):
                    raise
                structlog.get_logger().warning(
                    "reading outcomes and checkpoints failed: trying again", error=f"{type(error).__name__}: {error}"
                )
                await asyncio.sleep(RECONNECT_SECONDS)

    async def _wakeup(self) -> None:
        requests_wait = bool(self._outcomes or self._positions)
        with contextlib.suppress(TimeoutError):  # Look without a notification.
            await asyncio.wait_for(self._wake.wait(), POLL_SECONDS if requests_wait else None)
        self._wake.clear()

    async def _look(self) -> None:
        if self._outcomes:
            await self._look_for_outcomes(list(self._outcomes))
        if self._positions:
            await self._look_at_positions(list(self._positions))
        self._looked_at = monotonic()

    async def _fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        async with self.pool.acquire(timeout=ANSWER_SECONDS) as connection:
            rows: list[asyncpg.Record] = await connection.fetch(query, *arguments, timeout=ANSWER_SECONDS)
            return rows

    async def _look_for_outcomes(self, waits: list[_OutcomeWait]) -> None:
        rows = await self._fetch(
            "SELECT * FROM ledger.outcomes WHERE command_id = ANY($1) ORDER BY shard, sequence",
            [wait.command_id for wait in waits],
        )
        waiting: defaultdict[UUID, list[_OutcomeWait]] = defaultdict(list)
        for wait in waits:
            waiting[wait.command_id].append(wait)
        for row in rows:
            meaning = kept_meaning_hash(row["content"])
            for wait in waiting[row["command_id"]]:
                if _answers(row, meaning, wait):
                    wait.found.set_result(row)

    async def _look_at_positions(self, waits: list[_PositionWait]) -> None:
        rows = await self._fetch("SELECT shard, position FROM ledger.checkpoints_balance")
        reached = {row["shard"]: row["position"] for row in rows}
        for wait in waits:
            if reached.get(wait.shard, 0) >= wait.position and not wait.found.done():
                wait.found.set_result(None)


def _answers(row: asyncpg.Record, meaning: str | None, wait: _OutcomeWait) -> bool:
    return (
        row["shard"] == wait.shard
        and row["sequence"] > wait.after
        and meaning == wait.meaning
        and not wait.found.done()
    )
