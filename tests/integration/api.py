"""An API on its own database and broker, with functions that write the data that it should find in the ledger."""

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from drawdown.deployment.migrate import migrate
from services.api.app import create_app
from services.api.context import Context
from services.api.service import connected
from shared.contracts.commands import kept_meaning_hash, meaning_hash
from shared.contracts.fields import parse_time
from shared.runtime.clock import Clock
from shared.runtime.kafka import FINANCE_COMMANDS, murmur2_partition
from shared.runtime.settings import Settings
from tests import servers
from tests.servers import Broker, fresh_database, settings_with

SHARDS = 4
RECORDED_AT = "2026-03-12T10:00:00Z"
NOON = parse_time("2026-03-12T12:00:00Z")  # 21:00 of the same day in Tokyo


def shard_of(business_center_id: str) -> int:
    """Return the shard of a Business Center."""
    return murmur2_partition(business_center_id.encode(), SHARDS)


@dataclass
class Api:
    """A client of the API, and the superuser's connection to its database."""

    client: httpx.AsyncClient
    context: Context
    database: asyncpg.Connection
    settings: Settings
    broker: Broker

    async def get(self, path: str, status: int = 200, **query: Any) -> dict[str, Any]:
        """Send a GET, assert the expected status, and return the answer."""
        response = await self.client.get(path, params=query)
        assert response.status_code == status, response.text
        return dict(response.json())

    async def insert(self, table: str, **values: Any) -> None:
        """Insert one row. Values that PostgreSQL is to parse are given as text."""
        columns = ", ".join(f'"{name}"' for name in values)
        literals = ", ".join(_literal(value) for value in values.values())
        if table == "ledger.quarantine":
            await self.database.execute(f"SELECT ledger.make_quarantine_part({_literal(values['recorded_at'])})")
        await self.database.execute(f"INSERT INTO {table} ({columns}) VALUES ({literals})")

    async def batch(self, shard: int, first: int, last: int, policy: str, recorded_at: str = RECORDED_AT) -> None:
        """Write the row of a batch."""
        await self.insert(
            "ledger.batches",
            shard=shard,
            first_position=first,
            last_position=last,
            recorded_at=recorded_at,
            root=bytes(32),
            policy_version=policy,
            epoch=1,
            spend_offset=0,
            command_offset=0,
            rules_version=2,
            zones_release="test",
        )

    async def checkpoint(self, follower: str, shard: int, position: int, recorded_at: str = RECORDED_AT) -> None:
        """Move a follower's checkpoint to this position. The ledger reaches at least as far."""
        await self.database.execute(
            "UPDATE ledger.shards SET position = greatest(position, $2) WHERE shard = $1", shard, position
        )
        await self.database.execute(
            "INSERT INTO ledger.checkpoints VALUES ($1, $2, $3, $4::text::timestamptz) "
            "ON CONFLICT (follower, shard) DO UPDATE SET position = $3, recorded_at = $4::text::timestamptz",
            follower,
            shard,
            position,
            recorded_at,
        )
        await self.database.execute("SELECT pg_notify($1, $2)", follower, str(shard))


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, int | bool):
        return str(value)
    if isinstance(value, bytes):
        return f"'\\x{value.hex()}'"
    if isinstance(value, list):
        return f"ARRAY[{', '.join(map(_literal, value))}]::text[]"
    text = json.dumps(value) if isinstance(value, dict) else str(value)
    return "'" + text.replace("'", "''") + "'"


@contextlib.asynccontextmanager
async def running_api(server_url: str, directory: Path, **overrides: Any) -> AsyncIterator[Api]:
    """Run the API's application in this process, without a socket. Its connections are real."""
    async with servers.chosen.broker(directory) as broker, fresh_database(server_url) as url:
        await migrate(Settings(database_url=url, shards=SHARDS))
        settings = settings_with(url, broker, directory, shards=SHARDS, **overrides)
        async with serving(settings, broker) as api:
            yield api


@contextlib.asynccontextmanager
async def api_at_noon(server_url: str, directory: Path, **overrides: Any) -> AsyncIterator[Api]:
    """The API's application, whose clock stands at `NOON`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Clock, "now_us", lambda _: NOON)
        async with running_api(server_url, directory, **overrides) as api:
            yield api


@contextlib.asynccontextmanager
async def serving(settings: Settings, broker: Broker) -> AsyncIterator[Api]:
    database = await asyncpg.connect(settings.database_url)
    try:
        async with connected(settings) as context:
            watching = [asyncio.create_task(context.watcher.run()), asyncio.create_task(context.writers.run())]
            transport = httpx.ASGITransport(create_app(context), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=30) as client:
                yield Api(client, context, database, settings, broker)
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
    finally:
        await database.close()


@dataclass
class Allocation:
    """Decides commands like the ledger's writer. It accepts all: first decisions, repetitions and conflicts."""

    api: Api
    decided: list[dict[str, Any]] = field(default_factory=list)
    visible_at_once: bool = True
    _decided: dict[str, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))

    async def has_decided(self, command_id: str) -> None:
        """Return once this command's outcome is in the ledger."""
        await self._decided[command_id].wait()

    async def run(self) -> None:
        """Consume until cancelled."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.api.settings.kafka_bootstrap_servers, enable_auto_commit=False
        )
        await consumer.start()
        database = await asyncpg.connect(self.api.settings.database_url)
        try:
            partitions = [TopicPartition(FINANCE_COMMANDS, shard) for shard in range(SHARDS)]
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            async for record in consumer:
                assert record.key is not None
                assert record.value is not None
                assert record.partition == shard_of(record.key.decode())
                await self.decide(database, record.partition, json.loads(record.value))
        finally:
            await consumer.stop()
            await database.close()

    async def decide(self, database: asyncpg.Connection, shard: int, content: dict[str, Any]) -> None:
        """Write the outcome of a command in one transaction, with its notification."""
        self.decided.append(content)
        async with database.transaction():
            await _write_outcome(database, shard, content)
            await database.execute("SELECT pg_notify('outcomes', $1)", str(shard))
        if self.visible_at_once:
            await self.api.checkpoint("balance", shard, 2**40)
        self._decided[content["command_id"]].set()


async def _write_outcome(database: asyncpg.Connection, shard: int, content: dict[str, Any]) -> None:
    sequence = await database.fetchval(
        "UPDATE ledger.shards SET outcome_sequence = outcome_sequence + 1, position = position + 1 "
        "WHERE shard = $1 RETURNING outcome_sequence",
        shard,
    )
    command_id = UUID(content["command_id"])
    first = await database.fetchval("SELECT content FROM ledger.outcomes WHERE command_id = $1 AND first", command_id)
    same = first is None or kept_meaning_hash(first) == meaning_hash(content)
    await database.execute(
        "INSERT INTO ledger.outcomes VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, now(), 2, 'test')",
        shard,
        sequence,
        command_id,
        first is None,
        content["business_center_id"],
        content["type"],
        json.dumps(content),
        "accepted" if same else "rejected",
        None if same else "conflict",
        "done" if same else "this command_id was used with other content",
        sequence if first is None else None,
        sequence,
    )


@contextlib.asynccontextmanager
async def allocation(api: Api, *, visible_at_once: bool = True) -> AsyncIterator[Allocation]:
    """Yield an `Allocation` that runs during the test."""
    writer = Allocation(api, visible_at_once=visible_at_once)
    running = asyncio.create_task(writer.run())
    try:
        yield writer
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


def command(type_: str, business_center_id: str, **fields: Any) -> dict[str, Any]:
    """Return a command with a new id."""
    return {
        "command_id": str(uuid4()),
        "type": type_,
        "business_center_id": business_center_id,
        "issued_at": "2026-03-12T09:00:00Z",
        "actor": {"id": "maria", "role": "admin"},
        **fields,
    }
