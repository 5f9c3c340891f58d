"""A disk that hangs: commits of batches wait for it, and yet no living process is overtaken."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import uuid4

import asyncpg
import pytest

from drawdown.local.system import Service
from drawdown.serving import SERVICES
from services.allocation.lease import LEASE_SECONDS
from tests.acceptance.front_door import FrontDoor, until
from tests.acceptance.platform import Record
from tests.model.shards import shard_of
from tests.servers import RunningSystem, free_ports, running_system

pytestmark = pytest.mark.timeout(180)

SHARDS = 4
STALLED_BEATS = round(2.5 * LEASE_SECONDS / 0.25)


@asynccontextmanager
async def blocked_commits(database: asyncpg.Connection) -> AsyncIterator[None]:
    """Make every durable commit wait with its locks while the block runs, for a standby that never comes."""
    await database.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    await database.execute("SELECT pg_reload_conf()")
    try:
        yield
    finally:
        await database.execute("ALTER SYSTEM RESET synchronous_standby_names")
        await database.execute("SELECT pg_reload_conf()")


def add_allocation(system: RunningSystem) -> None:
    """Start a second allocation process."""
    elsewhere = system.settings.model_copy(update={"http_port": free_ports(len(SERVICES))})
    service = Service("allocation", elsewhere, {})
    service.log = service.log.with_name("allocation-2.log")
    system.services["allocation-2"] = service
    service.start()


async def epochs(database: asyncpg.Connection) -> dict[int, tuple[str, int]]:
    rows = await database.fetch("SELECT shard, owner, epoch FROM ledger.shards")
    return {row["shard"]: (row["owner"], row["epoch"]) for row in rows}


async def shared_by_two_processes(database: asyncpg.Connection) -> bool | None:
    owners = [owner for owner, _ in (await epochs(database)).values()]
    shares = Counter(owners)
    return True if None not in shares and list(shares.values()) == [SHARDS // 2, SHARDS // 2] else None


async def heartbeats(database: asyncpg.Connection) -> dict[str, int]:
    return dict(await database.fetch("SELECT owner, beat FROM ledger.allocators"))


def spend(center: str) -> Record:
    return {
        "type": "spend",
        "event_id": str(uuid4()),
        "business_center_id": center,
        "ad_account_id": center,
        "campaign_id": "spring",
        "amount": "0.01",
        "currency": "USD",
        "occurred_at": datetime.now(UTC).isoformat(),
    }


async def test_a_stalled_disk_causes_no_takeover_and_no_double_decision() -> None:
    async with (
        running_system(shards=SHARDS, services=("allocation", "balance", "api")) as system,
        FrontDoor(system) as door,
    ):
        database = await asyncpg.connect(system.database_url)
        await database.execute("SET synchronous_commit = off")
        names = (f"center-{number}" for number in range(1000))
        centers = {shard_of(name, SHARDS): name for name in names}
        for center in centers.values():
            await door.accepted(center, "open_business_center", currency="USD", time_zone="UTC")
            account = {"billing": "prepay", "buying_type": "auction", "time_zone": "UTC"}
            await door.accepted(center, "open_ad_account", ad_account_id=center, **account)
            await door.accepted(center, "deposit_cash", ad_account_id=center, amount="100")
        add_allocation(system)
        await until("two processes own the shards", lambda: shared_by_two_processes(database))
        before = await epochs(database)
        sent: list[Record] = []
        async with blocked_commits(database):
            began = await heartbeats(database)

            async def both_beat_on() -> bool | None:
                event = spend(centers[len(sent) % SHARDS])
                sent.append(event)
                await door.publish(event)
                now = await heartbeats(database)
                return True if all(now[owner] - beat >= STALLED_BEATS for owner, beat in began.items()) else None

            await until("both processes beat on, for longer than a lease", both_beat_on)
            # Every shard has a batch that waits for the disk, and none has committed it.
            assert await epochs(database) == before
        await door.fence()
        assert await epochs(database) == before
        charged = await database.fetch(
            "SELECT source_event_id::text AS id, count(*) AS times FROM ledger.entries"
            " WHERE campaign_id = 'spring' AND kind = 'cash_debit' GROUP BY 1"
        )
        assert {row["id"]: row["times"] for row in charged} == dict.fromkeys((each["event_id"] for each in sent), 1)
        assert "shard lost" not in system.log_of("allocation") + system.log_of("allocation-2")
        await database.close()
