"""Apache Kafka and PostgreSQL in containers: the servers of production."""

import contextlib
import gc
import warnings
from collections.abc import Iterator
from typing import Self

import docker
import pytest
from testcontainers.community.postgres import PostgresContainer
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

POSTGRES_IMAGE = "postgres:18"
KAFKA_IMAGE = "apache/kafka:4.3.1"

_CLIENT_PORT = 9092
_START_SECONDS = 120
_SCRIPT = "/tmp/start.sh"
_LISTENERS = {"CLIENT": f"0.0.0.0:{_CLIENT_PORT}", "BROKER": "localhost:9093", "CONTROLLER": "localhost:9094"}


class KafkaContainer(DockerContainer):
    """One node of Apache Kafka, broker and controller at once.

    Clients have to be told the port that Docker chose, which is known only when the container runs. So it waits for a
    script that says it and then starts Kafka.
    """

    def __init__(self) -> None:
        super().__init__(KAFKA_IMAGE)
        self.with_exposed_ports(_CLIENT_PORT)
        self.with_envs(
            KAFKA_NODE_ID="1",
            KAFKA_PROCESS_ROLES="broker,controller",
            KAFKA_LISTENERS=",".join(f"{name}://{address}" for name, address in _LISTENERS.items()),
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
        self.with_command(["sh", "-c", f"while [ ! -s {_SCRIPT} ]; do sleep 0.1; done; . {_SCRIPT}"])

    @property
    def bootstrap_servers(self) -> str:
        """Where clients on this machine find it."""
        return f"{self.get_container_host_ip()}:{self.get_exposed_port(_CLIENT_PORT)}"

    def start(self) -> Self:
        """Start it; return when it serves."""
        super().start()
        advertised = f"CLIENT://{self.bootstrap_servers},BROKER://{_LISTENERS['BROKER']}"
        script = f"export KAFKA_ADVERTISED_LISTENERS={advertised}\nexec /etc/kafka/docker/run\n"
        self.copy_into_container(script.encode(), _SCRIPT)
        started = LogMessageWaitStrategy("Kafka Server started").with_startup_timeout(_START_SECONDS)
        started.wait_until_ready(self)
        return self


@contextlib.contextmanager
def containers() -> Iterator[tuple[str, str]]:
    """Both servers; yields the bootstrap server and the database's URL. Skips the test where Docker gives none."""
    with contextlib.ExitStack() as stack:
        try:
            _check_that_docker_answers()
            kafka = stack.enter_context(KafkaContainer())
            postgres = stack.enter_context(PostgresContainer(POSTGRES_IMAGE, driver=None))
        except docker.errors.DockerException as error:
            pytest.skip(f"no containers here: {error}")
        yield kafka.bootstrap_servers, postgres.get_connection_url()


def _check_that_docker_answers() -> None:
    """Raise where it does not. The client leaves its socket to the collector then: collect it, without a warning."""
    problem = _problem_of_docker()
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()
    if problem:
        raise docker.errors.DockerException(problem)


def _problem_of_docker() -> str | None:
    try:
        with contextlib.closing(docker.from_env()) as client:
            client.ping()
    except docker.errors.DockerException as error:
        return str(error)
    return None
