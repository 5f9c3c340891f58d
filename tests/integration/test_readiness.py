"""/readyz tells the truth: soon after a service can no longer do its work it says why, and it recovers by itself."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import asyncpg
import httpx
import pytest

from drawdown.local.system import Service
from drawdown.serving import SERVICES
from services.allocation.lease import LEASE_SECONDS
from services.api.service import LOCK_TIMEOUT_SECONDS
from shared.runtime.reachability import LONGEST_SILENCE_SECONDS
from tests.acceptance.front_door import FrontDoor, until
from tests.integration.standing_still import standing_still
from tests.servers import LIMITS, RunningSystem, free_ports, running_system

# /readyz asks no server, so this is the time that a loaded machine takes. Asking a server would take longer.
SLOWEST_ANSWER_SECONDS = 2.0
STANDING_BY = "standing by: other processes write every shard"
WITH_DATABASE = SERVICES
WITH_BROKER = ("allocation", "signals", "api")


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, limits=LIMITS, timeout=5) as client:
        yield client


async def ask(client: httpx.AsyncClient, service: Service) -> tuple[bool, str]:
    """Return whether the service says that it is ready, and its sentence. Raise AssertionError if the answer takes too
    long.
    """
    begun = time.monotonic()
    response = await client.get(f"{service.url}/readyz")
    assert time.monotonic() - begun < SLOWEST_ANSWER_SECONDS
    assert (await client.get(f"{service.url}/healthz")).status_code == 200
    answer = response.json()
    assert (answer["status"] == "not ready") == (response.status_code == 503)
    return response.status_code == 200, answer["detail"]


async def until_all(
    system: RunningSystem, client: httpx.AsyncClient, names: tuple[str, ...], expected: bool, said: str, seconds: float
) -> None:
    """Return once all of them say so, with these words in their sentence."""

    async def all_say() -> bool | None:
        answers = await asyncio.gather(*(ask(client, system.services[name]) for name in names))
        return True if all(ready == expected and said in detail for ready, detail in answers) else None

    await until(f"{names} say {said!r}", all_say, seconds)


@pytest.mark.embedded
async def test_a_server_that_hangs_or_is_unavailable_is_named_until_it_returns(client: httpx.AsyncClient) -> None:
    async with running_system() as system:
        assert system.postgres is not None
        assert system.postgres.child is not None
        assert system.kafka is not None
        assert system.kafka.child is not None
        await until_all(system, client, SERVICES, True, "", 30)

        begun = time.monotonic()
        with standing_still(system.postgres.child.pid):
            await until_all(system, client, WITH_DATABASE, False, "the database has not answered for", 30)
            assert time.monotonic() - begun > LONGEST_SILENCE_SECONDS - 1.5, "flaps"
        await until_all(system, client, SERVICES, True, "", 60)

        with standing_still(system.kafka.child.pid):
            await until_all(system, client, WITH_BROKER, False, "the broker has not answered for", 30)
            assert all([(await ask(client, system.services[name]))[0] for name in ("balance", "incentives")])
        await until_all(system, client, SERVICES, True, "", 60)

        await system.postgres.stop()
        await until_all(system, client, WITH_DATABASE, False, "the database has not answered for", 30)
        await system.postgres.start()
        await until_all(system, client, SERVICES, True, "", 60)


async def test_a_service_says_what_it_waits_for_during_its_start(client: httpx.AsyncClient) -> None:
    async with running_system() as system:
        nowhere = system.settings.model_copy(
            update={"http_port": free_ports(len(SERVICES)), "database_url": f"postgresql://127.0.0.1:{free_ports(1)}/x"}
        )
        lost = Service("balance", nowhere, {})
        system.services["lost"] = lost
        lost.start()

        async def answers() -> tuple[bool, str] | None:
            try:
                return await ask(client, lost)
            except httpx.TransportError:
                return None

        assert await until("it answers", answers) == (False, "the database has not answered yet")


async def test_a_second_allocation_is_ready_when_it_has_its_shards_or_is_due_none(client: httpx.AsyncClient) -> None:
    async with running_system(shards=2) as system:
        for number in (2, 3):
            elsewhere = system.settings.model_copy(update={"http_port": free_ports(len(SERVICES))})
            another = Service("allocation", elsewhere, {})
            another.log = another.log.with_name(f"allocation-{number}.log")
            system.services[f"allocation-{number}"] = another
            await system.restart_service(f"allocation-{number}")
        allocations = [service for name, service in system.services.items() if name.startswith("allocation")]

        async def is_shared_out() -> bool | None:
            said = sorted([(await ask(client, service))[1].split(",")[0] for service in allocations])
            return True if said == [STANDING_BY, "writing the shards [0]", "writing the shards [1]"] else None

        await until("one stands by, two write", is_shared_out)


async def test_an_allocation_that_cannot_write_is_not_ready_although_both_servers_answer(
    client: httpx.AsyncClient,
) -> None:
    async with running_system(shards=1) as system:
        blocker = await asyncpg.connect(system.database_url)
        try:
            async with blocker.transaction():
                await blocker.execute("LOCK TABLE ledger.quarantine IN ACCESS EXCLUSIVE MODE")
                await publish_something(system)
                await until_all(system, client, ("allocation",), False, "none is decided in the shards [0]", 60)
            await until_all(system, client, ("allocation",), True, "writing the shards [0]", 60)
            figures = (await client.get(f"{system.services['allocation'].url}/metrics")).text
            assert 'drawdown_lag_seconds{shard="0"}' in figures
        finally:
            await blocker.close()


async def test_the_api_names_the_shards_without_a_writer_and_since_when(client: httpx.AsyncClient) -> None:
    async with running_system(shards=2) as system:
        api = ("api",)
        await until_all(system, client, api, True, "every shard is written", 30)
        before = datetime.now(UTC)
        await system.kill_service("allocation")
        await until_all(system, client, api, False, "nobody has written shards 0, 1 since", 30)
        _, detail = await ask(client, system.services["api"])
        since = datetime.fromisoformat(detail.rpartition(" since ")[2])
        assert abs((since - before).total_seconds()) < LEASE_SECONDS + 1
        assert "drawdown_shards_unwritten 2.0" in (await client.get(f"{system.url}/metrics")).text
        await system.restart_service("allocation")
        await until_all(system, client, api, True, "every shard is written", 30)
        assert "drawdown_shards_unwritten 0.0" in (await client.get(f"{system.url}/metrics")).text


async def test_a_service_that_waits_for_a_lock_is_not_ready_although_the_database_answers(
    client: httpx.AsyncClient,
) -> None:
    async with running_system(shards=1) as system:
        blocker = await asyncpg.connect(system.database_url)
        try:
            async with blocker.transaction():
                await blocker.execute(
                    "LOCK TABLE ledger.checkpoints_balance, balance.business_centers IN ACCESS EXCLUSIVE MODE"
                )
                await until_all(system, client, ("api",), False, "requests cannot read: another session", 20)
                begun = time.monotonic()
                assert (await client.get(f"{system.url}/v1/business-centers/bc")).status_code == 503
                assert time.monotonic() - begun < LOCK_TIMEOUT_SECONDS + SLOWEST_ANSWER_SECONDS
                await until_all(system, client, ("balance",), False, "the follower has completed no step for", 60)
            await until_all(system, client, ("balance",), True, "following", 60)
            await until_all(system, client, ("api",), True, "every shard is written", 60)
        finally:
            await blocker.close()


async def publish_something(system: RunningSystem) -> None:
    """Publish spends of an unknown account. They are quarantined, which is also a write."""
    async with FrontDoor(system) as door:
        for _ in range(3):
            await door.publish_raw(b"{}", b"key", 0)
