"""Every service ends in order and in time when asked, whatever it is doing and whichever server is unavailable."""

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from drawdown.local.system import Service
from drawdown.serving import SERVICES
from shared.runtime.kafka import FINANCE_COMMANDS, connection_arguments
from tests.acceptance.front_door import FrontDoor, until
from tests.integration.standing_still import standing_still
from tests.model.driver import Driver
from tests.model.workload import Workload
from tests.servers import RunningSystem, free_ports, running_system

MOST_SECONDS = 10.0
BURST = 400
SHARDS = 4


@contextlib.asynccontextmanager
async def working_system() -> AsyncIterator[tuple[RunningSystem, Driver, Workload]]:
    """Yield a system with some Business Centers, and the driver that knows the outcomes of their spends."""
    async with running_system() as system, FrontDoor(system) as door:
        workload, driver = Workload(11), Driver(door)
        for work in workload.opening(door.now_us()):
            await driver.do(work)
        yield system, driver, workload


def burst(driver: Driver, workload: Workload) -> list[dict[str, Any]]:
    return [workload.next_event(driver.door.now_us()) for _ in range(BURST)]


async def end_all(system: RunningSystem) -> None:
    """Ask every service to end at the same time. All must end with 0 in time."""

    async def end(name: str) -> tuple[str, int, float]:
        begun = time.monotonic()
        code = await system.kill_service(name, signal.SIGTERM)
        return name, code, time.monotonic() - begun

    ends = await asyncio.gather(*(end(name) for name in SERVICES))
    print(", ".join(f"{name} {seconds:.2f} s" for name, _, seconds in ends))
    assert {name: code for name, code, _ in ends} == dict.fromkeys(SERVICES, 0), system.log_of("allocation")
    assert max(seconds for *_, seconds in ends) < MOST_SECONDS


async def begin_again(system: RunningSystem) -> None:
    await asyncio.gather(*(system.restart_service(name) for name in SERVICES))


async def test_a_stop_under_load_leaves_nothing_half_done_and_work_continues_afterwards() -> None:
    async with working_system() as (system, driver, workload):
        await end_all(system)  # idle
        for _ in range(3):
            await begin_again(system)
            await driver.publish_all(burst(driver, workload))
            await end_all(system)
        await begin_again(system)
        await driver.compare(workload.centers, workload.account_ids)


@pytest.mark.embedded
async def test_services_stop_in_time_with_a_database_that_does_not_answer() -> None:
    async with working_system() as (system, driver, workload):
        assert system.postgres is not None
        assert system.postgres.child is not None
        await driver.publish_all(burst(driver, workload))
        with standing_still(system.postgres.child.pid):
            await driver.publish_all(burst(driver, workload))
            await end_all(system)
        await begin_again(system)
        await driver.compare(workload.centers, workload.account_ids)


@pytest.mark.embedded
async def test_services_stop_in_time_without_a_database() -> None:
    async with working_system() as (system, driver, workload):
        assert system.postgres is not None
        await driver.publish_all(burst(driver, workload))
        await system.postgres.stop()
        await end_all(system)
        await system.postgres.start()
        await begin_again(system)
        await driver.compare(workload.centers, workload.account_ids)


@pytest.mark.embedded
async def test_services_stop_in_time_with_a_broker_that_does_not_answer() -> None:
    async with working_system() as (system, driver, workload):
        assert system.kafka is not None
        assert system.kafka.child is not None
        await driver.publish_all(burst(driver, workload))
        with standing_still(system.kafka.child.pid):
            command = driver.door.admin_command(workload.centers[0], "deposit_cash", amount="1")
            answer = await give(system, command)
            await end_all(system)
            assert (await answer).startswith(b"HTTP/1.1 503 ")
        await begin_again(system)
        # As the answer said: the command is applied once, whether or not the broker got it.
        await driver.command(command)
        await driver.compare(workload.centers, workload.account_ids)


@pytest.mark.embedded
async def test_services_stop_in_time_without_a_broker() -> None:
    async with running_system() as system:
        assert system.kafka is not None
        await system.kafka.stop()
        await end_all(system)


async def test_another_process_takes_over_the_shards_within_two_heartbeats() -> None:
    async with working_system() as (system, driver, workload):
        other = Service("allocation", system.settings.model_copy(update={"http_port": free_ports(len(SERVICES))}), {})
        other.log = other.log.with_name("allocation-2.log")
        system.services["allocation-2"] = other
        await system.restart_service("allocation-2")
        database = await asyncpg.connect(system.database_url)
        await driver.publish_all(burst(driver, workload))
        try:
            assert await system.kill_service("allocation", signal.SIGTERM) == 0
            begun = time.monotonic()

            async def all_owned() -> bool | None:
                owners = await database.fetch("SELECT DISTINCT owner FROM ledger.shards")
                return True if len(owners) == 1 and owners[0]["owner"] is not None else None

            await until("one process has all shards", all_owned, seconds=20)
            print(f"all shards taken after {time.monotonic() - begun:.2f} s")
            # Otherwise a lease would have to expire, which takes three seconds.
            assert time.monotonic() - begun < 2.5
        finally:
            await database.close()
        await driver.compare(workload.centers, workload.account_ids)


async def test_clients_of_the_api_delay_its_stop_by_seven_seconds_at_most() -> None:
    async with working_system() as (system, driver, workload):
        command = driver.door.admin_command(workload.centers[0], "deposit_cash", amount="1")
        await system.kill_service("allocation", signal.SIGTERM)  # No process decides.
        stuck = await asyncio.open_connection("127.0.0.1", system.settings.http_port)
        stuck[1].write(b"POST /v1/commands HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{")
        async with system.client() as client:
            asked = asyncio.create_task(client.post("/v1/commands", json=command))
            await until("the command is taken", lambda: published(system, command["command_id"]))
            begun = time.monotonic()
            assert await system.kill_service("api", signal.SIGTERM) == 0, system.log_of("api")
            seconds = time.monotonic() - begun
            answer = await asked
        stuck[1].close()
        with contextlib.suppress(ConnectionError):
            await stuck[1].wait_closed()
        print(f"{seconds:.2f} s")
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert "command_id" in answer.json()["message"]
        assert seconds < MOST_SECONDS


async def give(system: RunningSystem, command: dict[str, Any]) -> Awaitable[bytes]:
    """Send a command to the API in parts. Return when the API works on it, with the answer to await."""
    reader, writer = await asyncio.open_connection("127.0.0.1", system.settings.http_port)
    body = json.dumps(command).encode()
    head = ("POST /v1/commands HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", "Expect: 100-continue")
    writer.write("\r\n".join([*head, "", ""]).encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    writer.write(body)

    async def answer() -> bytes:
        try:
            return await reader.read()
        finally:
            writer.close()

    return answer()


async def published(system: RunningSystem, command_id: str) -> bool | None:
    """Return whether the broker has this command: then a request waits for its outcome."""
    consumer = AIOKafkaConsumer(**connection_arguments(system.settings), auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([TopicPartition(FINANCE_COMMANDS, shard) for shard in range(system.settings.shards)])
        async for record in consumer:
            if json.loads(record.value)["command_id"] == command_id:
                return True
    finally:
        await consumer.stop()
    return None


@pytest.mark.embedded
async def test_a_second_signal_ends_a_service_at_once_with_exit_code_1() -> None:
    async with working_system() as (system, _driver, _workload):
        assert system.postgres is not None
        assert system.postgres.child is not None
        child = system.services["allocation"].child
        assert child is not None
        with standing_still(system.postgres.child.pid):
            begun = time.monotonic()
            child.send(signal.SIGTERM)
            assert not await child.wait(0.3)
            child.send(signal.SIGTERM)
            assert await child.wait(MOST_SECONDS)
        assert child.exit_code() == 1
        assert time.monotonic() - begun < 1.5
