"""From one allocation process to three and back while spend flows: nothing is lost or doubled, and nothing waits for
long.
"""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer

from drawdown.local.system import Service
from drawdown.serving import SERVICES
from shared.runtime.kafka import SPEND_EVENTS, create_producer
from tests.acceptance.front_door import FrontDoor, until
from tests.acceptance.platform import Record
from tests.model.shards import shard_of
from tests.servers import RunningSystem, free_ports, running_system

pytestmark = [pytest.mark.containers, pytest.mark.alone, pytest.mark.timeout(600)]

SHARDS = 16
CAMPAIGNS = 16_000
LONGEST_PAUSE_SECONDS = 2.0
# After a kill, the next owner decides again everything since the last snapshots of all the process's shards.
LONGEST_PAUSE_AFTER_A_KILL_SECONDS = 5.0
# If a shard waits longer than this while nothing changes, the machine is busy with something else. Then a hand-over,
# which takes some ten round trips in sequence, may take longer in the same proportion.
QUIET_SECONDS = 0.15
PERIOD_SECONDS = 0.05  # between two spends of a shard
CALM_SECONDS = 3.0
CALM, CALM_AGAIN = "nothing changes", "nothing changes any more"
FIRST, SECOND, THIRD = "allocation", "allocation-2", "allocation-3"


def spend(center: str, campaign: str) -> Record:
    return {
        "type": "spend",
        "event_id": str(uuid4()),
        "business_center_id": center,
        "ad_account_id": center,
        "campaign_id": campaign,
        "amount": "0.01",
        "currency": "USD",
        "occurred_at": datetime.now(UTC).isoformat(),
    }


@dataclass
class Scaling:
    """A system with a Business Center in every shard, and what was published."""

    system: RunningSystem
    door: FrontDoor
    database: asyncpg.Connection
    producer: AIOKafkaProducer
    centers: list[str]
    published: list[str] = field(default_factory=list)

    async def send(self, event: Record) -> Awaitable[object]:
        """Hand an event to the producer."""
        self.published.append(event["event_id"])
        key = event["business_center_id"].encode()
        acknowledged: Awaitable[object] = await self.producer.send(SPEND_EVENTS, json.dumps(event).encode(), key)
        return acknowledged

    async def open(self) -> None:
        """Open the Business Centers, and spend in as many campaigns as make the state of a large shard."""
        account = {"billing": "prepay", "buying_type": "auction", "time_zone": "UTC"}
        for center in self.centers:
            await self.door.accepted(center, "open_business_center", currency="USD", time_zone="UTC")
            await self.door.accepted(center, "open_ad_account", ad_account_id=center, **account)
            await self.door.accepted(center, "deposit_cash", ad_account_id=center, amount="1000000")
        for number in range(CAMPAIGNS // SHARDS):
            for center in self.centers:
                await self.send(spend(center, f"campaign-{number}"))
        await self.producer.flush()
        await self.door.fence()

    @contextlib.asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """Spend in every shard, twenty times a second, while the block runs."""
        flow = asyncio.create_task(self._flow())
        try:
            yield
        finally:
            flow.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await flow
            await self.producer.flush()

    async def _flow(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        for turn in count(1):
            for center in self.centers:
                await self.send(spend(center, f"campaign-{turn % 100}"))
            await asyncio.sleep(max(0.0, began + turn * PERIOD_SECONDS - loop.time()))

    def add(self, name: str) -> Service:
        """Start one more allocation process, which may not be ready yet."""
        elsewhere = self.system.settings.model_copy(update={"http_port": free_ports(len(SERVICES))})
        service = Service("allocation", elsewhere, {})
        service.log = service.log.with_name(f"{name}.log")
        self.system.services[name] = service
        service.start()
        return service

    async def shared_out(self, processes: int) -> None:
        """Wait until this many processes own all shards, none more than its share, and every shard has had a batch
        since.
        """

        async def ask() -> bool | None:
            rows = await self.database.fetch("SELECT owner, count(*) FROM ledger.shards GROUP BY 1")
            shares = [row["count"] for row in rows if row["owner"] is not None]
            return True if sum(shares) == SHARDS and len(shares) == processes else None

        await until(f"{processes} processes own all shards", ask)
        await self.everywhere_flowing()
        await asyncio.sleep(CALM_SECONDS)  # The flow is watched for this long; nothing waits for it.

    async def everywhere_flowing(self) -> None:
        """Wait until every shard has a batch from after this moment."""
        now = datetime.now(UTC)

        async def ask() -> bool | None:
            late = await self.database.fetchval("SELECT count(*) FROM ledger.shards WHERE ledger_time <= $1", now)
            return True if late == 0 else None

        await until("every shard flows", ask)

    async def longest_pause(self, since: datetime) -> float:
        """Return the longest pause before a batch that came since this moment, over all shards, in seconds."""
        pauses = await self.database.fetch(
            """
            SELECT shard, max(extract(epoch FROM pause))::float8 AS pause FROM (
                SELECT shard, recorded_at,
                    recorded_at - lag(recorded_at) OVER (PARTITION BY shard ORDER BY last_position) AS pause
                FROM ledger.batches
            ) AS pauses WHERE recorded_at >= $1 GROUP BY shard
            """,
            since,
        )
        assert len(pauses) == SHARDS
        return max(float(row["pause"]) for row in pauses)


@pytest.fixture
async def scaling() -> AsyncIterator[Scaling]:
    services = ("allocation", "balance", "api")
    async with running_system(shards=SHARDS, services=services) as system, FrontDoor(system) as door:
        database = await asyncpg.connect(system.database_url)
        producer = await create_producer(system.settings)
        centers: dict[int, str] = {}
        for name in (f"center-{number}" for number in count()):
            centers.setdefault(shard_of(name, SHARDS), name)
            if len(centers) == SHARDS:
                break
        yield Scaling(system, door, database, producer, list(centers.values()))
        await producer.stop()
        await database.close()


async def test_scaling_from_one_process_to_three_and_back_loses_and_delays_nothing(scaling: Scaling) -> None:
    await scaling.open()
    pauses: dict[str, float] = {}

    async def measured(what: str, change: Awaitable[Any] | None, processes: int) -> None:
        since = datetime.now(UTC)
        if change is not None:
            await change
        await scaling.shared_out(processes)
        pauses[what] = await scaling.longest_pause(since)

    async with scaling.flowing():
        await scaling.everywhere_flowing()
        await measured(CALM, None, 1)
        scaling.add(SECOND)
        scaling.add(THIRD)
        await measured("from one to three", None, 3)
        await measured("one is asked to end", scaling.system.kill_service(SECOND, signal.SIGTERM), 2)
        await measured("one is killed", scaling.system.kill_service(FIRST, signal.SIGKILL), 1)
        await measured(CALM_AGAIN, None, 1)
    print("the longest pause of any shard, in seconds:", pauses)
    await scaling.door.fence()
    charged = await scaling.database.fetch(
        "SELECT source_event_id::text AS id, count(*) AS times FROM ledger.entries"
        " WHERE campaign_id LIKE 'campaign-%' AND kind = 'cash_debit' GROUP BY 1"
    )
    assert {row["id"]: row["times"] for row in charged} == dict.fromkeys(scaling.published, 1)
    busy = max(1.0, max(pauses.pop(CALM), pauses.pop(CALM_AGAIN)) / QUIET_SECONDS)
    heirs_log = scaling.system.log_of(THIRD)
    assert pauses.pop("one is killed") <= LONGEST_PAUSE_AFTER_A_KILL_SECONDS * busy, (busy, pauses, heirs_log)
    assert max(pauses.values()) <= LONGEST_PAUSE_SECONDS * busy, (busy, pauses)
