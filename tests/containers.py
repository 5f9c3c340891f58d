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
# The label names the test process that owns a container.
_LABEL = "drawdown.tests"
_OWNER = f"{socket.gethostname()}:{os.getpid()}"
# More than the default of 100, because systems that run at the same time share a server.
_MAX_CONNECTIONS = 300

# Use this machine's ports, check ten times a second for two minutes, and start no extra container for cleaning up.
testcontainers_config.connection_mode_override = ConnectionMode.docker_host
testcontainers_config.sleep_time = 0.1
testcontainers_config.max_tries = 1_200
testcontainers_config.ryuk_disabled = True


class KafkaContainer(DockerContainer):
    """One node of Apache Kafka, which is broker and controller.

    Its port on this machine is chosen before the start, because Kafka advertises it, and it survives a restart.
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
        """The address for clients on this machine."""
        return f"127.0.0.1:{self.port}"


class ContainerBroker:
    """A broker that belongs to one test or system at a time."""

    def __init__(self, container: KafkaContainer) -> None:
        self.container = container
        self.runs = False

    @property
    def url(self) -> str:
        """The bootstrap server."""
        return self.container.bootstrap_servers

    async def start(self) -> None:
        """Start the broker with the records it had; return when it serves."""
        await _start(self.container, self._answers)
        self.runs = True

    async def stop(self) -> None:
        """Stop the server; return when it has ended."""
        self.runs = False
        await asyncio.to_thread(self.container.get_wrapped_container().stop)

    async def clear(self) -> None:
        """Delete all topics; return when there are none."""
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
    """A PostgreSQL that can be restarted at the same port and with its data."""

    def __init__(self) -> None:
        self.port = free_ports(1)
        self.container = PostgresContainer(POSTGRES_IMAGE, driver=None, labels={_LABEL: _OWNER})
        self.container.with_bind_ports(_POSTGRES_PORT, self.port)
        self.container.with_command(["-c", f"max_connections={_MAX_CONNECTIONS}"])

    @property
    def url(self) -> str:
        """The superuser's URL."""
        container = self.container
        return f"postgresql://{container.username}:{container.password}@127.0.0.1:{self.port}/{container.dbname}"

    async def start(self) -> None:
        """Start the server; return when it answers."""
        await _start(self.container, self._answers)

    async def stop(self) -> None:
        """Stop the server; return when it has ended."""
        await asyncio.to_thread(self.container.get_wrapped_container().stop)

    async def _answers(self) -> bool:
        try:
            connection = await asyncpg.connect(self.url)
        except (OSError, asyncpg.PostgresError):
            return False
        await connection.close()
        return True


async def _start(container: DockerContainer, answers: Callable[[], Awaitable[bool]]) -> None:
    """Start a container, new or stopped; return when its server answers."""
    is_new = container.status == "not_started"
    await asyncio.to_thread(container.start if is_new else container.get_wrapped_container().start)
    async with asyncio.timeout(_START_SECONDS):
        while not await answers():  # noqa: ASYNC110 - another process
            await asyncio.sleep(_POLL_SECONDS)


class ContainerServers:
    """Apache Kafka and PostgreSQL in containers, removed at the end of the run.

    A broker takes seconds to start and its topics have fixed names, so a returned broker is cleared and used again.
    Databases have different names, so one PostgreSQL serves all of them.
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
        """Return a new PostgreSQL that is not started yet."""
        postgres = ContainerPostgres()
        self._stack.callback(postgres.container.stop)
        return postgres

    @contextlib.asynccontextmanager
    async def broker(self, _directory: Path) -> AsyncIterator[ContainerBroker]:
        """Yield a broker without topics, which nobody else uses meanwhile."""
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
        """Yield the settings for a broker and a database that only this system uses."""
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
    """Return why Docker cannot be used, or None if its daemon answers."""
    problem = _ask_docker()
    # A failed client leaves its socket to the garbage collector. Collect it now, without a warning.
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
