"""Servers and whole systems for tests, each with its own ports and data directory.

The same tests run on the embedded servers and on production's servers in containers. `chosen` is the kind of this run.
"""

import asyncio
import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any, Protocol

import asyncpg
import httpx

from drawdown.local.embedded import EmbeddedKafka, EmbeddedPostgres
from drawdown.local.system import System, environment_of
from drawdown.serving import SERVICES
from shared.runtime.settings import Settings

# Our API closes a connection that was idle for five seconds. httpx by default keeps it for as long, so on a busy
# machine it would now and then send a request just as the connection closes.
LIMITS = httpx.Limits(keepalive_expiry=1.0)
_numbers = itertools.count(1)
_ports = itertools.count(random.randrange(10_000))


class Postgres(Protocol):
    """A PostgreSQL that a test may stop and start again."""

    @property
    def url(self) -> str:
        """The superuser's URL."""

    async def start(self) -> None:
        """Start the server; return when it answers."""

    async def stop(self) -> None:
        """Stop the server; return when it has ended."""


class Broker(Protocol):
    """A broker that a test may stop and start again."""

    @property
    def url(self) -> str:
        """The bootstrap server."""

    async def start(self) -> None:
        """Start the server; return when it answers."""

    async def stop(self) -> None:
        """Stop the server; return when it has ended."""


class Servers(Protocol):
    """A kind of servers."""

    @property
    def name(self) -> str:
        """The name in the summary of a run."""

    @property
    def ports(self) -> range:
        """The ports to choose from. Each kind has other ports, because both may be tested at the same time."""

    @property
    def producers_can_be_idempotent(self) -> bool:
        """Whether the broker supports idempotent producers."""

    def postgres(self, directory: Path, /) -> Postgres:
        """Return a new PostgreSQL that is not started yet. Its files may be in the directory."""

    def broker(self, directory: Path, /) -> contextlib.AbstractAsyncContextManager[Broker]:
        """Yield a broker without topics, which nobody else uses meanwhile. Its files may be in the directory."""

    def of_a_system(self, directory: Path, /) -> contextlib.AbstractAsyncContextManager[dict[str, Any]]:
        """Yield the settings for the servers of a system; none if it starts embedded ones itself."""

    def close(self) -> None:
        """End the servers that still run."""


class EmbeddedServers:
    """The servers of `make run`."""

    name = "embedded"
    ports = range(20_000, 26_000)
    producers_can_be_idempotent = False

    def postgres(self, directory: Path) -> EmbeddedPostgres:
        """Return a PostgreSQL with its files in the directory, not started yet."""
        return EmbeddedPostgres(directory, free_ports(1))

    @contextlib.asynccontextmanager
    async def broker(self, directory: Path) -> AsyncIterator[EmbeddedKafka]:
        """Yield a new and empty broker."""
        broker = EmbeddedKafka(directory, free_ports(1))
        await broker.start()
        try:
            yield broker
        finally:
            await broker.stop()

    @contextlib.asynccontextmanager
    async def of_a_system(self, _directory: Path) -> AsyncIterator[dict[str, Any]]:
        """Yield no settings, because a system starts its own servers."""
        yield {}

    def close(self) -> None:
        """Do nothing, because each user of a server stops it."""


chosen: Servers = EmbeddedServers()


def choose(servers: Servers) -> None:
    """Let the tests of this run use other servers."""
    global chosen
    chosen = servers


def free_ports(count: int) -> int:
    """Return the first of `count` consecutive free ports, below those of outgoing connections.

    A port is not returned again before all others were, because its user may not be listening yet.
    """
    while True:
        ports = [chosen.ports[next(_ports) % len(chosen.ports)] for _ in range(count)]
        if ports[-1] - ports[0] == count - 1 and all(map(_is_free, ports)):
            return ports[0]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def embedded_settings(data_dir: Path, **overrides: Any) -> Settings:
    """Return the settings of an embedded system with its own ports, and with nothing from the environment."""
    values: dict[str, Any] = {
        "data_dir": data_dir,
        "http_port": free_ports(len(SERVICES)),
        "kafka_port": free_ports(1),
        "postgres_port": free_ports(1),
        "api_authentication": "off",
        **overrides,
    }
    return Settings(**values)


def settings_with(database_url: str, broker: Broker, data_dir: Path, **overrides: Any) -> Settings:
    """Return the settings of a process that uses a running database and a running broker."""
    return embedded_settings(
        data_dir,
        database_url=database_url,
        kafka_bootstrap_servers=broker.url,
        kafka_idempotence=chosen.producers_can_be_idempotent,
        **overrides,
    )


async def run_to_its_end(command: str, settings: Settings) -> "subprocess.CompletedProcess[str]":
    """Run `drawdown …` with these settings, for a minute at most."""
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "drawdown", *command.split()],
        env=environment_of(settings),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def memory_of(code: str) -> list[int]:
    """Run Python code in a new process; return its peak memory in bytes at each call of `measure()`."""
    measure = r"""
        import re
        from pathlib import Path
        def measure() -> None:  # Not with getrusage, which inherits the parent's peak.
            print(int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024)
    """
    ran = subprocess.run(
        [sys.executable, "-c", dedent(measure) + dedent(code)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return [int(line) for line in ran.stdout.split()]


@contextlib.contextmanager
def reachable_directory() -> Iterator[Path]:
    """Yield a temporary directory that other users can enter, because PostgreSQL runs as one if root starts it."""
    with tempfile.TemporaryDirectory(prefix="drawdown-test-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@contextlib.asynccontextmanager
async def fresh_database(server_url: str) -> AsyncIterator[str]:
    """Create a new and empty database on a running server; yield its URL."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    admin = await asyncpg.connect(server_url)
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        yield f"{server_url.rpartition('/')[0]}/{name}"
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


class RunningSystem(System):
    """A whole system whose services are real processes, `python -m drawdown <service>`, so that tests can kill them."""

    @property
    def bootstrap_servers(self) -> str:
        """The broker's address."""
        return self.settings.kafka_bootstrap_servers

    @property
    def database_url(self) -> str:
        """The superuser's URL of the database."""
        return self.settings.database_url

    def client(self, **options: Any) -> httpx.AsyncClient:
        """Return an HTTP client of the API."""
        return httpx.AsyncClient(base_url=self.url, trust_env=False, limits=LIMITS, **{"timeout": 30, **options})

    def log_of(self, service: str) -> str:
        """Return the log of a service so far."""
        return self.services[service].log.read_text(errors="replace")

    async def kill_service(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to a service; return its exit code when it has ended. A negative code is the signal."""
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
    """Start a new system, and stop it at the end.

    Args:
        environment: further environment variables for every service.
        services: the names of the services to run.
        settings: fields of `Settings`, such as `shards=1` or `clock_offset_seconds=3600`.

    """
    with reachable_directory() as directory:
        async with chosen.of_a_system(directory) as servers:
            system = RunningSystem(
                embedded_settings(directory, **{**servers, **settings}),
                environment=environment,
                services=services,
                say=print,
            )
            try:
                await system.start()
                yield system
            finally:
                await system.stop()
