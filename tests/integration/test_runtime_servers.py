"""The servers, and how the runtime uses them."""

import asyncio
import signal
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer

from drawdown.local.embedded import EmbeddedKafka, EmbeddedPostgres, EmbeddedServerError
from shared.runtime.incarnation import incarnation
from shared.runtime.kafka import SPEND_EVENTS, TOPICS, create_producer, murmur2_partition
from shared.runtime.postgres import connect, create_pool
from shared.runtime.roles import SERVICE_ROLES
from shared.runtime.settings import Settings
from shared.runtime.topics import TopicsDoNotFitError, ensure_topics
from tests.servers import Postgres, free_ports


async def test_topics_are_created_with_a_partition_for_each_shard_and_only_once(settings: Settings) -> None:
    await ensure_topics(settings)
    await ensure_topics(settings)
    consumer = AIOKafkaConsumer(*TOPICS, bootstrap_servers=settings.kafka_bootstrap_servers)
    await consumer.start()
    try:
        assert all(len(consumer.partitions_for_topic(topic) or ()) == settings.shards for topic in TOPICS)
    finally:
        await consumer.stop()


async def test_topics_with_a_wrong_number_of_partitions_are_refused(settings: Settings) -> None:
    await ensure_topics(settings)
    with pytest.raises(TopicsDoNotFitError, match="has 4 partitions, but DRAWDOWN_SHARDS is 5"):
        await ensure_topics(settings.model_copy(update={"shards": 5}))


@pytest.mark.embedded
async def test_a_new_broker_has_another_cluster_id(settings: Settings, tmp_path: Path, kafka: EmbeddedKafka) -> None:
    first = await incarnation(settings)
    await kafka.stop()
    again = EmbeddedKafka(tmp_path, kafka.port)
    await again.start()
    try:
        assert await incarnation(settings) != first == kafka.cluster_id
    finally:
        await again.stop()


async def test_a_producer_puts_a_key_into_the_partition_of_the_java_client(settings: Settings) -> None:
    await ensure_topics(settings)
    producer = await create_producer(settings)
    try:
        for key in (b"bc-1", b"northwind", "bücher".encode()):
            sent = await producer.send_and_wait(SPEND_EVENTS, b"{}", key=key)
            assert sent.partition == murmur2_partition(key, settings.shards)
    finally:
        await producer.stop()


@pytest.mark.embedded
async def test_a_broker_that_starts_late_is_waited_for(
    settings: Settings, tmp_path: Path, kafka: EmbeddedKafka
) -> None:
    await kafka.stop()
    late = EmbeddedKafka(tmp_path, kafka.port)
    waiting = asyncio.create_task(incarnation(settings))
    await asyncio.sleep(0.5)
    assert not waiting.done()
    await late.start()
    try:
        assert await waiting == late.cluster_id
    finally:
        await late.stop()


@pytest.mark.parametrize("role", SERVICE_ROLES)
async def test_a_pool_acts_as_its_role_in_utc(role: str, settings: Settings) -> None:
    pool = await create_pool(settings, role, application_name="a test")
    async with pool:
        for _ in range(3):  # The role survives the pool's reset.
            row = await pool.fetchrow("SELECT current_user, current_setting('timezone'), application_name "
                                      "FROM pg_stat_activity WHERE pid = pg_backend_pid()")  # fmt: skip
            assert tuple(row) == (role, "UTC", "a test")


async def test_a_role_cannot_change_the_ledger(settings: Settings) -> None:
    for role in SERVICE_ROLES:
        connection = await connect(settings, role, "a test")
        try:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute("DELETE FROM ledger.entries")
        finally:
            await connection.close()


async def test_postgresql_asks_for_its_password(postgres: Postgres) -> None:
    server = urlsplit(postgres.url)
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(host=server.hostname, port=server.port, user=server.username, password="guessed")


async def test_postgresql_commits_durably(postgres: Postgres) -> None:
    connection = await asyncpg.connect(postgres.url)
    try:
        for setting in ("fsync", "synchronous_commit", "full_page_writes", "data_checksums"):
            assert await connection.fetchval("SELECT current_setting($1)", setting) == "on"
    finally:
        await connection.close()


@pytest.mark.embedded
async def test_postgresql_recovers_from_a_crash(reachable_path: Path) -> None:
    server = EmbeddedPostgres(reachable_path, free_ports(1))
    await server.start()
    connection = await asyncpg.connect(server.url)
    await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    assert server.child is not None
    server.child.send(signal.SIGKILL)
    assert await server.child.wait(10)
    connection.terminate()

    again = EmbeddedPostgres(reachable_path, server.port)
    await again.start()
    try:
        connection = await asyncpg.connect(again.url)
        assert await connection.fetchval("SELECT answer FROM kept") == 42
        await connection.close()
    finally:
        await again.stop()


@pytest.mark.embedded
async def test_a_server_left_by_a_dead_supervisor_is_ended_first(reachable_path: Path) -> None:
    left = EmbeddedPostgres(reachable_path, free_ports(1))
    await left.start()
    again = EmbeddedPostgres(reachable_path, left.port)
    await again.start()
    try:
        assert left.child is not None
        assert left.child.exit_code() == 0
        assert again.child is not None
        assert again.child.exit_code() is None
    finally:
        await again.stop()


@pytest.mark.embedded
async def test_a_port_in_use_is_named_with_its_setting(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    with pytest.raises(EmbeddedServerError, match=f"port {kafka.port} is taken: set DRAWDOWN_KAFKA_PORT to a free one"):
        await EmbeddedKafka(tmp_path, kafka.port).start()
