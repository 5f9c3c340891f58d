"""Servers and whole systems for tests: each with ports and a data directory of its own."""

import contextlib
import itertools
import os
import random
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from drawdown.serving import SERVICES
from drawdown.system import System
from shared.runtime.settings import Settings

_numbers = itertools.count(1)


def free_ports(count: int) -> int:
    """The first of `count` neighbouring free ports, below those that outgoing connections get."""
    while True:
        first = random.randrange(20_000, 32_000)
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first


def embedded_settings(data_dir: Path, **overrides: Any) -> Settings:
    """Settings of an embedded system with ports of its own; nothing from the environment."""
    values: dict[str, Any] = {
        "data_dir": data_dir,
        "http_port": free_ports(len(SERVICES)),
        "kafka_port": free_ports(1),
        "postgres_port": free_ports(1),
        "api_authentication": "off",
        **overrides,
    }
    return Settings(**values)


@contextlib.contextmanager
def reachable_directory() -> Iterator[Path]:
    """A temporary directory that other users can enter: started by root, PostgreSQL runs as one of them."""
    with tempfile.TemporaryDirectory(prefix="drawdown-test-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@contextlib.asynccontextmanager
async def fresh_database(server_url: str) -> AsyncIterator[str]:
    """A new and empty database of a running server; yields its URL."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    admin = await asyncpg.connect(server_url)
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        yield f"{server_url.rpartition('/')[0]}/{name}"
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


class RunningSystem(System):
    """A whole system that a test can hurt: the services are real processes, `python -m drawdown <service>`."""

    @property
    def bootstrap_servers(self) -> str:
        """Where its broker listens."""
        return self.settings.kafka_bootstrap_servers

    @property
    def database_url(self) -> str:
        """Its database, as the superuser."""
        return self.settings.database_url

    def client(self, **options: Any) -> httpx.AsyncClient:
        """An HTTP client of its API."""
        return httpx.AsyncClient(base_url=self.url, trust_env=False, **{"timeout": 30, **options})

    def log_of(self, service: str) -> str:
        """What a service has logged so far."""
        return self.services[service].log.read_text(errors="replace")

    async def kill_service(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a service a signal; return its exit code when it has gone (negative: the signal)."""
        child = self.services[name].child
        assert child is not None
        child.send(number)
        assert await child.wait(30), f"{name} does not end"
        code = child.exit_code()
        assert code is not None
        return code

    async def restart_service(self, name: str) -> None:
        """Start a service that has ended; return when it is ready."""
        child = self.services[name].child
        assert child is None or child.exit_code() is not None, f"{name} still runs"
        self.services[name].start()
        await self.wait_until_ready(name)


@contextlib.asynccontextmanager
async def running_system(
    *, environment: Mapping[str, str] | None = None, services: tuple[str, ...] = SERVICES, **settings: Any
) -> AsyncIterator[RunningSystem]:
    """A system of one's own, stopped at the end.

    Args:
        environment: further variables for every service.
        services: those to run.
        settings: fields of `Settings`, such as `shards=1` or `clock_offset_seconds=3600`.

    """
    with reachable_directory() as directory:
        system = RunningSystem(
            embedded_settings(directory, **settings), environment=environment, services=services, say=print
        )
        try:
            await system.start()
            yield system
        finally:
            await system.stop()
