"""An allocation process within the test's own process, so that a test can break its code; and functions that send it
work.
"""

import asyncio
import contextlib
import itertools
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

import asyncpg
from aiokafka import AIOKafkaProducer
from structlog.testing import capture_logs

from services.allocation import service
from services.allocation.memory import snapshots
from shared.ledger.merkle import CompactRange
from shared.rules.shard import Shard
from shared.runtime.kafka import FINANCE_COMMANDS, SPEND_EVENTS, create_producer
from shared.runtime.settings import Settings
from shared.runtime.topics import ensure_topics
from tests.acceptance.front_door import until
from tests.model.forms import rfc3339
from tests.model.shards import shard_of
from tests.raw_batches import publish_batch

Message = dict[str, Any]
OPENED = {"billing": "prepay", "buying_type": "auction", "time_zone": "UTC"}


class Writing:
    """A writer that runs, what it was sent, and what it has written."""

    def __init__(
        self, settings: Settings, database: asyncpg.Connection, producer: AIOKafkaProducer, logs: list[Any]
    ) -> None:
        self.logs = logs
        self.settings = settings
        self.database = database
        self._producer = producer
        self._sent: dict[str, dict[int, int]] = {SPEND_EVENTS: {}, FINANCE_COMMANDS: {}}
        self.allocation: asyncio.Task[None] | None = None
        self._said_before = 0

    def start(self) -> None:
        """Start the writer."""
        self._said_before = len(self.logs)
        self.allocation = asyncio.create_task(service.run(self.settings))

    async def has_loaded(self) -> bool | None:
        """Return whether it has loaded every shard since it was started; None: not yet."""
        loaded = sum(each["event"] == "shard loaded" for each in self.logs[self._said_before :])
        return True if loaded >= self.settings.shards else None

    async def stop(self) -> None:
        """Stop the writer in order."""
        assert self.allocation is not None
        self.allocation.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.allocation
        self.allocation = None

    def center(self, shard: int = 0) -> str:
        """Return the unused id of a Business Center in that shard."""
        return next(self._centers(shard))

    def _centers(self, shard: int) -> Iterator[str]:
        names = (f"bc-{uuid.uuid4().hex[:8]}" for _ in itertools.count())
        return (name for name in names if shard_of(name, self.settings.shards) == shard)

    async def send(
        self, *messages: Message, to: int | None = None, headers: Sequence[tuple[str, bytes | None]] = ()
    ) -> list[int]:
        """Send commands and events in this order, to their shards or to another; return their offsets."""
        acknowledged = []
        for message in messages:
            topic = SPEND_EVENTS if message["type"] in ("spend", "reversal") else FINANCE_COMMANDS
            shard = shard_of(message["business_center_id"], self.settings.shards) if to is None else to
            acknowledged.append(
                await self._producer.send(topic, json.dumps(message).encode(), partition=shard, headers=list(headers))
            )
        places = await asyncio.gather(*acknowledged)
        for place in places:
            self._sent[place.topic][place.partition] = place.offset + 1
        return [place.offset for place in places]

    async def send_batch(self, data: bytes, shard: int, topic: str = SPEND_EVENTS) -> int:
        """Publish one batch, byte by byte; return the offset of its first record.

        A producer of its own sends it, because one that numbers its records would continue after the one that it has
        counted.
        """
        producer = await create_producer(self.settings.model_copy(update={"kafka_idempotence": False}))
        try:
            return await publish_batch(producer, data, topic, shard)
        finally:
            await producer.stop()

    async def decided(self, *shards: int, seconds: float = 60) -> None:
        """Wait until everything sent to these shards (none: to any) is decided, including forwarded records."""

        async def ask() -> bool | None:
            assert self.allocation is not None
            assert not self.allocation.done(), self.allocation.exception()
            rows = await self.database.fetch(
                "SELECT shard, spend_offset, command_offset, EXISTS ("
                "SELECT FROM ledger.forwarded f WHERE f.shard = s.shard) AS waits FROM ledger.shards s"
            )
            done = [
                row["spend_offset"] >= self._sent[SPEND_EVENTS].get(row["shard"], 0)
                and row["command_offset"] >= self._sent[FINANCE_COMMANDS].get(row["shard"], 0)
                and not row["waits"]
                for row in rows
                if not shards or row["shard"] in shards
            ]
            return True if all(done) else None

        await until("all is decided", ask, seconds)

    async def opened(self, shard: int = 0, cash: str = "1000000") -> str:
        """Open a Business Center with one account of the same id and this much cash."""
        center = self.center(shard)
        await self.send(
            command(center, "open_business_center", currency="USD", time_zone="UTC"),
            command(center, "open_ad_account", ad_account_id=center, **OPENED),
            command(center, "deposit_cash", ad_account_id=center, amount=cash),
        )
        await self.decided(shard)
        return center

    async def charged(self, center: str) -> list[str]:
        """Return the charged events of a Business Center, in the ledger's order."""
        rows = await self.database.fetch(
            "SELECT source_event_id::text FROM ledger.entries WHERE business_center_id = $1 AND day IS NOT NULL"
            " AND part = 0 ORDER BY shard, position",
            center,
        )
        return [row[0] for row in rows]

    def told(self, text: str) -> list[Message]:
        """Return the log entries that contain these words."""
        return [line for line in self.logs if text in line["event"]]

    async def quarantined(self) -> list[asyncpg.Record]:
        """Return all quarantined records, by shard and sequence."""
        return await self.database.fetch("SELECT * FROM ledger.quarantine ORDER BY shard, sequence")  # type: ignore[no-any-return]

    async def standing(self, shard: int, state: str) -> asyncpg.Record:
        """Return what the writer reports about a shard, once it reports this state."""

        async def ask() -> asyncpg.Record | None:
            return await self.database.fetchrow(
                "SELECT * FROM ledger.shard_states WHERE shard = $1 AND state = $2", shard, state
            )

        return await until(f"shard {shard} is {state}", ask)


@contextlib.asynccontextmanager
async def writing(settings: Settings) -> AsyncIterator[Writing]:
    """Yield a writer of a new ledger that has loaded every shard. Its topics are empty."""
    await ensure_topics(settings)
    producer = await create_producer(settings)
    database = await asyncpg.connect(settings.database_url)
    with capture_logs() as logs:
        writer = Writing(settings, database, producer, logs)
        writer.start()
        try:
            await until("it has loaded every shard", writer.has_loaded)
            yield writer
        finally:
            if writer.allocation is not None:
                await writer.stop()
            await producer.stop()
            await database.close()


def command(center: str, type_: str, **fields: Any) -> Message:
    """Return a finance command of an administrator."""
    return {
        "command_id": str(uuid.uuid4()),
        "type": type_,
        "business_center_id": center,
        "issued_at": _now(),
        "actor": {"id": "administrator", "role": "admin"},
        **fields,
    }


def spend(center: str, campaign: str = "brand", **fields: Any) -> Message:
    """Return a spend of the Business Center's account of the same id."""
    return {
        "type": "spend",
        "event_id": str(uuid.uuid4()),
        "business_center_id": center,
        "ad_account_id": center,
        "campaign_id": campaign,
        "amount": "1",
        "currency": "USD",
        "occurred_at": _now(),
        **fields,
    }


def reversal(spent: Message, amount: str = "1") -> Message:
    """Return the reversal of a spend."""
    return {**spent, "type": "reversal", "event_id": str(uuid.uuid4()), "reverses": spent["event_id"], "amount": amount}


def _now() -> str:
    return rfc3339(time.time_ns() // 1000)


def breaks(function: Callable[..., Any], when: Callable[..., bool], error: Exception) -> Callable[..., Any]:
    """Return the function, but with an error for some arguments."""

    def broken(*arguments: Any, **options: Any) -> Any:
        if when(*arguments, **options):
            raise type(error)(*error.args)
        return function(*arguments, **options)

    return broken


def breaks_later(
    function: Callable[..., Awaitable[Any]], when: Callable[..., bool], error: Exception
) -> Callable[..., Awaitable[Any]]:
    """Return the same for a coroutine function."""

    async def broken(*arguments: Any, **options: Any) -> Any:
        if when(*arguments, **options):
            raise type(error)(*error.args)
        return await function(*arguments, **options)

    return broken


async def kept_state(rules: Shard, tree: CompactRange) -> snapshots.Snapshot:
    """Return a snapshot of the state."""
    made = await snapshots.dump(rules, tree)
    assert made is not None
    return await made
