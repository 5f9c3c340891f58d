"""Apache Kafka and PostgreSQL in containers, with or without a proxy in front."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from testcontainers.core.container import DockerContainer

from drawdown.local.system import prepare
from shared.runtime.settings import Settings
from tests.chaos.machine import with_servers
from tests.chaos.proxy import Proxy
from tests.containers import ContainerPostgres, KafkaContainer
from tests.servers import embedded_settings, free_ports, fresh_database, reachable_directory

SHARDS = 4


@dataclass
class Servers:
    """Both servers. The services reach them through proxies; the checker reaches PostgreSQL directly."""

    kafka: DockerContainer
    postgres: DockerContainer
    kafka_proxy: Proxy
    postgres_proxy: Proxy
    database_url: str
    settings: Settings
    directory: Path

    @contextlib.asynccontextmanager
    async def fresh_settings(self) -> AsyncIterator[Settings]:
        """Yield settings with a new and empty database on the same server."""
        async with fresh_database(self.database_url) as url:
            yield self.settings.model_copy(update={"database_url": url})

    async def kill(self, server: DockerContainer) -> None:
        """Kill all processes of a server with `kill -9`."""
        await asyncio.to_thread(server.get_wrapped_container().kill, "SIGKILL")

    async def start(self, server: DockerContainer) -> None:
        """Start a server again with its remaining data."""
        await asyncio.to_thread(server.get_wrapped_container().start)


@contextlib.asynccontextmanager
async def servers(*, proxied: bool = True, volume: str | None = None) -> AsyncIterator[Servers]:
    """Start both servers with schema and topics, and remove them at the end.

    Args:
        proxied: whether the services go through proxies.
        volume: the Docker volume for PostgreSQL's data; None means a new one.

    """
    async with contextlib.AsyncExitStack() as stack:
        directory = stack.enter_context(reachable_directory())
        kafka, kafka_proxy = _kafka(proxied)
        postgres, postgres_proxy = _postgres(volume)
        for container in (kafka, postgres.container):
            stack.callback(container.stop)
        await asyncio.gather(*(asyncio.to_thread(container.start) for container in (kafka, postgres.container)))
        await stack.enter_async_context(kafka_proxy)
        await stack.enter_async_context(postgres_proxy)
        through = postgres.url.replace(f":{postgres.port}/", f":{postgres_proxy.port}/") if proxied else postgres.url
        broker = f"127.0.0.1:{kafka_proxy.port if proxied else kafka_proxy.upstream_port}"
        settings = with_servers(embedded_settings(directory, shards=SHARDS), broker, through)
        await prepare(settings)
        yield Servers(kafka, postgres.container, kafka_proxy, postgres_proxy, postgres.url, settings, directory)


def _kafka(proxied: bool) -> tuple[KafkaContainer, Proxy]:
    container = KafkaContainer()
    proxy = Proxy(free_ports(1), container.port)
    if proxied:
        container.with_envs(KAFKA_ADVERTISED_LISTENERS=f"CLIENT://127.0.0.1:{proxy.port},BROKER://localhost:9093")
    return container, proxy


def _postgres(volume: str | None) -> tuple[ContainerPostgres, Proxy]:
    postgres = ContainerPostgres()
    if volume is not None:
        postgres.container.with_volume_mapping(volume, "/var/lib/postgresql", "rw")
        postgres.container.with_command(["-c", "max_wal_size=64MB", "-c", "min_wal_size=32MB"])
    return postgres, Proxy(free_ports(1), postgres.port)
