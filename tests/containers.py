"""Apache Kafka and PostgreSQL in containers: the servers of production."""

import asyncio
import contextlib
import gc
import os
import socket
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import docker
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from testcontainers.community.postgres import PostgresContainer
from testcontainers.core.config import ConnectionMode, testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from drawdown.local.processes import is_alive
from tests.servers import free_ports, fresh_database

POSTGRES_IMAGE = "postgres:18"
KAFKA_IMAGE = "apache/kafka:4.3.1"

_CLIENT_PORT = 9092
_POSTGRES_PORT = 5432
_START_SECONDS = 120
_CLEAR_SECONDS = 30.0
_POLL_SECONDS = 0.02
_LISTENERS = {"CLIENT": f"0.0.0.0:{_CLIENT_PORT}", "BROKER": "localhost:9093", "CONTROLLER": "localhost:9094"}
# Names the process of the tests that a container is for.
_LABEL = "drawdown.tests"
_OWNER = f"{socket.gethostname()}:{os.getpid()}"
# More than the default of 100: systems that run at the same time share a server.
_MAX_CONNECTIONS = 300

# The ports of this machine, a look ten times a second for two minutes, and no further image that only cleans up.
testcontainers_config.connection_mode_override = ConnectionMode.docker_host
testcontainers_config.sleep_time = 0.1
testcontainers_config.max_tries = 1_200
testcontainers_config.ryuk_disabled = True


class KafkaContainer(DockerContainer):
    """One node of Apache Kafka, broker and controller at once.

    Its port on this machine is chosen beforehand: clients have to be told it, and it stays the same after a restart.
    """

    def __init__(self) -> None:
        super().__init__(KAFKA_IMAGE, labels={_LABEL: _OWNER})
        self.port = free_ports(1)
        self.with_bind_ports(_CLIENT_PORT, self.port)
        self.with_envs(
            KAFKA_NODE_ID="1",
            KAFKA_PROCESS_ROLES="broker,controller",
            KAFKA_LISTENERS=",".join(f"{name}://{address}" for name, address in _LISTENERS.items()),
            KAFKA_ADVERTISED_LISTENERS=f"CLIENT://{self.bootstrap_servers},BROKER://{_LISTENERS['BROKER']}",
            KAFKA_LISTENER_SECURITY_PROTOCOL_MAP=",".join(f"{name}:PLAINTEXT" for name in _LISTENERS),
            KAFKA_INTER_BROKER_LISTENER_NAME="BROKER",
            KAFKA_CONTROLLER_LISTENER_NAMES="CONTROLLER",
            KAFKA_CONTROLLER_QUORUM_VOTERS=f"1@{_LISTENERS['CONTROLLER']}",
            KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR="1",
            KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS="1",
            KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR="1",
            KAFKA_TRANSACTION_STATE_LOG_MIN_ISR="1",
            KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS="0",
            KAFKA_AUTO_CREATE_TOPICS_ENABLE="false",
            KAFKA_HEAP_OPTS="-Xmx512m",
        )
        self.waiting_for(LogMessageWaitStrategy("Kafka Server started").with_startup_timeout(_START_SECONDS))

    @property
    def bootstrap_servers(self) -> str:
        """Where clients on this machine find it."""
        return f"127.0.0.1:{self.port}"


class ContainerBroker:
    """A broker of one test or system at a time."""

    def __init__(self, container: KafkaContainer) -> None:
        self.container = container
        self.runs = False

    @property
    def url(self) -> str:
        """Its bootstrap server."""
        return self.container.bootstrap_servers

    async def start(self) -> None:
        """Start it, as it was when it was stopped; return when it serves."""
        await _start(self.container, self._answers)
        self.runs = True

    async def stop(self) -> None:
        """Stop it; return when it has gone."""
        self.runs = False
        await asyncio.to_thread(self.container.get_wrapped_container().stop)

    async def clear(self) -> None:
        """Delete all topics; return when none is left."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.url)
        await admin.start()
        try:
            async with asyncio.timeout(_CLEAR_SECONDS):
                while topics := [topic for topic in await admin.list_topics() if not topic.startswith("__")]:
                    await admin.delete_topics(topics)
                    await asyncio.sleep(_POLL_SECONDS)
        finally:
            await admin.close()

    async def _answers(self) -> bool:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.url)
        try:
            await admin.start()
        except KafkaError:
            return False
        finally:
            await admin.close()
        return True


class ContainerPostgres:
    """A PostgreSQL that can be stopped and started again, at the same port and with its data."""

    def __init__(self) -> None:
        self.port = free_ports(1)
        self.container = PostgresContainer(POSTGRES_IMAGE, driver=None, labels={_LABEL: _OWNER})
        self.container.with_bind_ports(_POSTGRES_PORT, self.port)
        self.container.with_command(["-c", f"max_connections={_MAX_CONNECTIONS}"])

    @property
    def url(self) -> str:
        """Where to connect, as the superuser."""
        container = self.container
        return f"postgresql://{container.username}:{container.password}@127.0.0.1:{self.port}/{container.dbname}"

    async def start(self) -> None:
        """Start it; return when it answers."""
        await _start(self.container, self._answers)

    async def stop(self) -> None:
        """Stop it; return when it has gone."""
        await asyncio.to_thread(self.container.get_wrapped_container().stop)

    async def _answers(self) -> bool:
        try:
            connection = await asyncpg.connect(self.url)
        except (OSError, asyncpg.PostgresError):
            return False
        await connection.close()
        return True


async def _start(container: DockerContainer, answers: Callable[[], Awaitable[bool]]) -> None:
    """Start it for the first time, or again with what it had; return when it answers."""
    is_new = container.status == "not_started"
    await asyncio.to_thread(container.start if is_new else container.get_wrapped_container().start)
    async with asyncio.timeout(_START_SECONDS):
        while not await answers():  # noqa: ASYNC110 - another process
            await asyncio.sleep(_POLL_SECONDS)


class ContainerServers:
    """Apache Kafka and PostgreSQL in containers, removed at the end of the run.

    A broker takes seconds to start and its topics have fixed names, so one that has been given back is cleared and
    serves the next. Databases have names of their own: one PostgreSQL has them all.
    """

    name = f"{KAFKA_IMAGE} and {POSTGRES_IMAGE} in containers"
    ports = range(26_000, 32_000)
    producers_can_be_idempotent = True

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._idle: list[ContainerBroker] = []
        self._shared: ContainerPostgres | None = None
        _remove_what_killed_runs_left()

    def close(self) -> None:
        """Remove all containers."""
        self._stack.close()

    def postgres(self, _directory: Path) -> ContainerPostgres:
        """A PostgreSQL of its own, not started yet."""
        postgres = ContainerPostgres()
        self._stack.callback(postgres.container.stop)
        return postgres

    @contextlib.asynccontextmanager
    async def broker(self, _directory: Path) -> AsyncIterator[ContainerBroker]:
        """A broker without topics, nobody else's meanwhile."""
        broker = self._idle.pop() if self._idle else self._new_broker()
        try:
            if not broker.runs:
                await broker.start()
            yield broker
        finally:
            if broker.runs:
                await broker.clear()
                self._idle.append(broker)

    def _new_broker(self) -> ContainerBroker:
        container = KafkaContainer()
        self._stack.callback(container.stop)
        return ContainerBroker(container)

    @contextlib.asynccontextmanager
    async def of_a_system(self, directory: Path) -> AsyncIterator[dict[str, Any]]:
        """The settings that name the servers of a system: a broker and a database of its own."""
        if self._shared is None:
            self._shared = self.postgres(directory)
            await self._shared.start()
        async with self.broker(directory) as broker, fresh_database(self._shared.url) as database_url:
            yield {"kafka_bootstrap_servers": broker.url, "database_url": database_url}


def _remove_what_killed_runs_left() -> None:
    host, _, _ = _OWNER.partition(":")
    with contextlib.closing(docker.from_env()) as client:
        for container in client.containers.list(all=True, filters={"label": _LABEL}):
            owner_host, _, pid = container.labels[_LABEL].partition(":")
            if owner_host == host and not is_alive(int(pid)):
                container.remove(force=True, v=True)


def problem_of_docker() -> str | None:
    """Why no Docker daemon can be used, or None where one answers."""
    problem = _ask_docker()
    # The client that failed leaves its socket to the collector: collect it, without a warning.
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()
    return problem


def _ask_docker() -> str | None:
    try:
        with contextlib.closing(docker.from_env()) as client:
            client.ping()
    except docker.errors.DockerException as error:
        return str(error)
    return None
