"""The newest signal of an entity is the last one in the compacted topic, whatever arrives late."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from drawdown.local.system import environment_of
from services.signals.last_word import SETTLE_SECONDS, Awaited, Partition, Signalled
from shared.runtime.fetched import MOST_BYTES
from shared.runtime.kafka import DELIVERY_SIGNALS, create_producer
from shared.runtime.settings import Settings
from shared.runtime.topics import ensure_topics
from tests.chaos.proxy import Proxy
from tests.containers import KafkaContainer
from tests.integration.followers_ledger import Ledger, allow_erasing
from tests.raw_batches import PACK, batch, publish_batch, record
from tests.servers import free_ports, settings_with

PATIENCE_SECONDS = 120.0
CAUSES = ("ad_account_balance", "ad_account_budget", "business_center_balance")


class Topic:
    """The topic, and a consumer that reads as far as a test wants."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer
        self.records: list[Any] = []

    def positions(self, account: str) -> list[int]:
        key = f"ad_account/{account}".encode()
        values = [record.value for record in self.records if record.key == key]
        return [json.loads(value)["position"] for value in values if value and b'"recorded_at"' in value]

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not is_so():
                self.records.append(await self._consumer.getone())


@contextlib.asynccontextmanager
async def reading(settings: Settings) -> AsyncIterator[Topic]:
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_bootstrap_servers, auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([TopicPartition(DELIVERY_SIGNALS, number) for number in range(settings.shards)])
        yield Topic(consumer)
    finally:
        await consumer.stop()


@pytest.fixture
async def topic(settings: Settings) -> AsyncIterator[Topic]:
    await ensure_topics(settings)
    async with reading(settings) as topic:
        yield topic


@pytest.fixture
async def producer(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    producer = await create_producer(settings)
    yield producer
    await producer.stop()


@pytest.fixture
async def admin(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url)
    await allow_erasing(connection)
    yield connection
    await connection.close()


@contextlib.asynccontextmanager
async def publishing(settings: Settings) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the service in a separate process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "drawdown", "signals"), env={**os.environ, **environment_of(settings)}
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def pause(admin: asyncpg.Connection, position: int, account: str, causes: int) -> None:
    """Add one pause cause at this position of the ledger."""
    ledger = Ledger(first=position)
    ledger.add("pause", "bc-1", account, cause=CAUSES[causes - 1], details={"causes": list(CAUSES[:causes])})
    await ledger.write(admin)


async def publish_again(producer: AIOKafkaProducer, topic: Topic, position: int) -> None:
    """Publish a signal again, as a producer, a socket or a proxy does that has held it back until now."""
    late = next(record for record in topic.records if f'"position":{position},'.encode() in (record.value or b""))
    await producer.send_and_wait(DELIVERY_SIGNALS, late.value, key=late.key)


async def test_a_late_old_signal_is_followed_by_the_newest_and_nothing_else_is_repeated(
    settings: Settings, admin: asyncpg.Connection, topic: Topic, producer: AIOKafkaProducer
) -> None:
    await pause(admin, 1, "acct-1", 1)
    await pause(admin, 2, "acct-1", 2)
    await pause(admin, 3, "acct-2", 1)
    async with publishing(settings):
        await topic.until(lambda: (topic.positions("acct-1"), topic.positions("acct-2")) == ([1, 2], [3]))
        # As when a range that was not acknowledged is published again: at once, or after the service has corrected the
        # first.
        await asyncio.gather(*(publish_again(producer, topic, position) for position in (1, 2, 3)))
        await publish_again(producer, topic, 1)
        await topic.until(lambda: topic.positions("acct-1") == [1, 2, 1, 2, 1, 2])
        await publish_again(producer, topic, 1)
        await topic.until(lambda: topic.positions("acct-1") == [1, 2, 1, 2, 1, 2, 1, 2])
        await topic.until(lambda: topic.positions("acct-2") == [3, 3])


async def test_a_late_signal_that_arrives_while_no_process_runs_is_seen_at_the_next_start(
    settings: Settings, admin: asyncpg.Connection, topic: Topic, producer: AIOKafkaProducer
) -> None:
    await pause(admin, 1, "acct-1", 1)
    await pause(admin, 2, "acct-1", 2)
    async with publishing(settings):
        await topic.until(lambda: topic.positions("acct-1") == [1, 2])
        await until_checked(admin, 2)
    await publish_again(producer, topic, 1)
    async with publishing(settings):
        await topic.until(lambda: topic.positions("acct-1") == [1, 2, 1, 2])
        await until_checked(admin, 4)


async def test_a_stored_offset_beyond_the_topic_hides_no_signal(
    settings: Settings, admin: asyncpg.Connection, topic: Topic, producer: AIOKafkaProducer
) -> None:
    await pause(admin, 1, "acct-1", 1)
    await pause(admin, 2, "acct-1", 2)
    async with publishing(settings):
        await topic.until(lambda: topic.positions("acct-1") == [1, 2])
        await until_checked(admin, 2)
    await publish_again(producer, topic, 1)
    await admin.execute("UPDATE signals.incarnations SET checked_offset = 1000")
    async with publishing(settings):
        await topic.until(lambda: topic.positions("acct-1") == [1, 2, 1, 2])


async def test_the_service_publishes_the_state_again_without_its_notes_of_the_broker(
    settings: Settings, admin: asyncpg.Connection, topic: Topic
) -> None:
    await pause(admin, 1, "acct-1", 1)
    await pause(admin, 2, "acct-1", 2)
    async with publishing(settings):
        await topic.until(lambda: topic.positions("acct-1") == [1, 2])
        await until_checked(admin, 2)  # If it is killed before it has committed, it publishes both again.
    await admin.execute("DELETE FROM signals.incarnations")
    async with publishing(settings):
        await topic.until(lambda: topic.positions("acct-1") == [1, 2, 2])


async def until_checked(admin: asyncpg.Connection, records: int) -> None:
    checked = "SELECT sum(checked_offset)::int FROM signals.incarnations"
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await admin.fetchval(checked) != records:  # noqa: ASYNC110 - another task's work
            await asyncio.sleep(0.05)


async def test_no_foreign_record_ends_the_reading(
    settings: Settings, admin: asyncpg.Connection, topic: Topic, producer: AIOKafkaProducer
) -> None:
    await pause(admin, 1, "acct-1", 1)
    await pause(admin, 2, "acct-1", 2)
    async with publishing(settings):
        await topic.until(lambda: topic.positions("acct-1") == [1, 2])
        strangers = (
            None,
            b"",
            b"\xff",
            b"[]",
            b"{}",
            b'{"position": "x"}',
            b'{"ad_account_id": "a\\u0000", "position": 1}',
            b'{"shard": 999, "ad_account_id": "acct-1", "campaign_id": null, "position": 1}',
            b'{"shard": 70000, "ad_account_id": "acct-1", "campaign_id": null, "position": 1}',
            b'{"shard": 0, "ad_account_id": "acct-9", "campaign_id": null, "position": 1e30}',
        )
        for value in strangers:
            await producer.send_and_wait(DELIVERY_SIGNALS, value, key=b"ad_account/acct-1")
        await publish_again(producer, topic, 1)
        await topic.until(lambda: topic.positions("acct-1") == [1, 2, 1, 2])


async def test_an_unreadable_batch_at_the_end_of_the_topic_is_read_only_once(
    settings: Settings, admin: asyncpg.Connection, topic: Topic
) -> None:
    await pause(admin, 1, "acct-1", 1)
    async with publishing(settings):
        await topic.until(lambda: topic.positions("acct-1") == [1])
        await until_checked(admin, 1)
        codec, pack = PACK["gzip"]
        unreadable = batch(pack(record(bytes(2 * MOST_BYTES), key=b"x")), 1, codec=codec)
        stranger = await create_producer(settings.model_copy(update={"kafka_idempotence": False}))
        try:
            await publish_batch(stranger, unreadable, DELIVERY_SIGNALS, 0)
        finally:
            await stranger.stop()
        await until_checked(admin, 2)


def test_a_newest_signal_is_awaited_until_it_arrives_or_can_no_longer_arrive() -> None:
    partition, entity = Partition(0), Signalled(0, "acct-1", "")
    assert partition.see({entity: 2}, {entity: 2}) == []
    assert partition.see({entity: 3}, {}) == []  # published, and its range was undone
    assert partition.see({entity: 1}, {entity: 2}) == [entity]
    partition.awaited[entity] = Awaited(end_offset=10, since_seconds=0.0)
    assert partition.see({entity: 1}, {entity: 2}) == []  # is already awaited
    assert partition.overtaken(9, SETTLE_SECONDS) == []
    assert partition.overtaken(10, SETTLE_SECONDS / 2) == []
    assert partition.overtaken(10, SETTLE_SECONDS) == [entity]
    assert partition.see({entity: 2}, {entity: 2}) == []
    assert partition.overtaken(10, SETTLE_SECONDS) == []


class ProxiedKafka(KafkaContainer):
    """A node with a second address, which leads through a proxy."""

    def __init__(self, proxy_port: int) -> None:
        super().__init__()
        self.second_port = free_ports(1)
        self.with_bind_ports(9096, self.second_port)
        listeners = "CLIENT://0.0.0.0:9092,PROXIED://0.0.0.0:9096,BROKER://localhost:9093,CONTROLLER://localhost:9094"
        advertised = f"CLIENT://{self.bootstrap_servers},PROXIED://127.0.0.1:{proxy_port},BROKER://localhost:9093"
        names = ("CLIENT", "PROXIED", "BROKER", "CONTROLLER")
        self.with_envs(
            KAFKA_LISTENERS=listeners,
            KAFKA_ADVERTISED_LISTENERS=advertised,
            KAFKA_LISTENER_SECURITY_PROTOCOL_MAP=",".join(f"{name}:PLAINTEXT" for name in names),
        )


async def until_one_waits_for_acknowledgements(admin: asyncpg.Connection, proxy: Proxy, position: int) -> None:
    """Return once a process has stored its signals, and has sent them no further than the proxy."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'signals' "
        "AND datname = current_database() AND state = 'idle in transaction' AND query LIKE '%INTO signals.latest%'"
    )
    sent = f'"position":{position},'.encode()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (proxy.holds(sent) and await admin.fetchval(waiting)):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)


async def until_followed(admin: asyncpg.Connection, position: int) -> None:
    """Return once the checkpoint has moved, so that the signals up to there are done."""
    followed = "SELECT max(position) FROM ledger.checkpoints WHERE follower = 'signals'"
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await admin.fetchval(followed) != position:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)


@pytest.mark.containers
@pytest.mark.parametrize("end", [None, signal.SIGKILL, signal.SIGSTOP], ids=["lives on", "is killed", "is stopped"])
async def test_a_signal_of_a_process_that_lost_its_session_is_never_the_last_one(
    end: signal.Signals | None, admin: asyncpg.Connection, database_url: str, proxied: tuple[Proxy, str], tmp_path: Path
) -> None:
    proxy, direct_address = proxied
    proxy.heal()
    direct = settings_with(database_url, At(direct_address), tmp_path)
    database, database_port = urlsplit(database_url), free_ports(1)
    through = direct.model_copy(
        update={
            "kafka_bootstrap_servers": f"127.0.0.1:{proxy.port}",
            "database_url": database_url.replace(f":{database.port}/", f":{database_port}/"),
        }
    )
    account = f"acct-{end.name if end else 'lives'}"
    await ensure_topics(direct)
    await pause(admin, 1, account, 1)
    async with (
        Proxy(database_port, database.port or 0) as to_database,
        reading(direct) as topic,
        publishing(through) as overtaken,
    ):
        await topic.until(lambda: topic.positions(account) == [1])
        await until_followed(admin, 1)  # Otherwise the next process publishes the range again.
        proxy.partition()
        await pause(admin, 2, account, 2)
        await until_one_waits_for_acknowledgements(admin, proxy, 2)
        if end is not None:
            overtaken.send_signal(end)
        to_database.partition()
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'signals' "
            "AND datname = current_database()"
        )
        async with publishing(direct):
            await topic.until(lambda: topic.positions(account) == [1, 2])
            await pause(admin, 3, account, 3)
            await topic.until(lambda: topic.positions(account) == [1, 2, 3])
            proxy.heal()
            if end is signal.SIGSTOP:
                overtaken.send_signal(signal.SIGCONT)
            await topic.until(lambda: topic.positions(account)[:4] == [1, 2, 3, 2])
            await topic.until(lambda: topic.positions(account)[-1] == 3)


@dataclass(frozen=True)
class At:
    """A broker that this test does not start or stop."""

    url: str

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


@pytest.fixture(scope="module")
async def proxied() -> AsyncIterator[tuple[Proxy, str]]:
    """Yield a proxy in front of a node of Apache Kafka, and the node's own address."""
    port = free_ports(1)
    container = ProxiedKafka(port)
    await asyncio.to_thread(container.start)
    try:
        async with Proxy(port, container.second_port) as proxy:
            yield proxy, container.bootstrap_servers
    finally:
        await asyncio.to_thread(container.stop)
