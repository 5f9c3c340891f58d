"""Servers and whole systems for tests: each with ports and a data directory of its own.

The same tests run on the embedded servers and on those of production in containers: `chosen` are those of this run.
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

# Our API closes a connection that was idle for five seconds. A client that keeps one as long, as httpx does by itself,
# asks just as it is closed, and gets no answer: on a busy machine, now and then.
LIMITS = httpx.Limits(keepalive_expiry=1.0)
_numbers = itertools.count(1)
_ports = itertools.count(random.randrange(10_000))


class Postgres(Protocol):
    """A PostgreSQL that a test may stop and start again."""

    @property
    def url(self) -> str:
        """Where to connect, as the superuser."""

    async def start(self) -> None:
        """Start it; return when it answers."""

    async def stop(self) -> None:
        """Stop it; return when it has gone."""


class Broker(Protocol):
    """A broker that a test may stop and start again."""

    @property
    def url(self) -> str:
        """Its bootstrap server."""

    async def start(self) -> None:
        """Start it; return when it answers."""

    async def stop(self) -> None:
        """Stop it; return when it has gone."""


class Servers(Protocol):
    """One kind of servers."""

    @property
    def name(self) -> str:
        """What the summary of a run calls them."""

    @property
    def ports(self) -> range:
        """Where free ones are looked for: both kinds may be tested at the same time."""

    @property
    def producers_can_be_idempotent(self) -> bool:
        """Whether the broker knows idempotent producers."""

    def postgres(self, directory: Path, /) -> Postgres:
        """A PostgreSQL of its own, not started yet; its files may lie in the directory."""

    def broker(self, directory: Path, /) -> contextlib.AbstractAsyncContextManager[Broker]:
        """A broker without topics, nobody else's meanwhile; its files may lie in the directory."""

    def of_a_system(self, directory: Path, /) -> contextlib.AbstractAsyncContextManager[dict[str, Any]]:
        """The settings that name the servers of a system; none where it starts embedded ones itself."""

    def close(self) -> None:
        """End what still runs."""


class EmbeddedServers:
    """Those of `make run`."""

    name = "embedded"
    ports = range(20_000, 26_000)
    producers_can_be_idempotent = False

    def postgres(self, directory: Path) -> EmbeddedPostgres:
        """A PostgreSQL with its files in the directory, not started yet."""
        return EmbeddedPostgres(directory, free_ports(1))

    @contextlib.asynccontextmanager
    async def broker(self, directory: Path) -> AsyncIterator[EmbeddedKafka]:
        """A new and empty broker."""
        broker = EmbeddedKafka(directory, free_ports(1))
        await broker.start()
        try:
            yield broker
        finally:
            await broker.stop()

    @contextlib.asynccontextmanager
    async def of_a_system(self, _directory: Path) -> AsyncIterator[dict[str, Any]]:
        """None: a system starts its own."""
        yield {}

    def close(self) -> None:
        """Nothing: whoever started one has stopped it."""


chosen: Servers = EmbeddedServers()


def choose(servers: Servers) -> None:
    """Let the tests of this run use other servers."""
    global chosen
    chosen = servers


def free_ports(count: int) -> int:
    """The first of `count` neighbouring free ports, below those that outgoing connections get.

    None is given out twice before all have been: nobody may be listening yet at those that were.
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


def settings_with(database_url: str, broker: Broker, data_dir: Path, **overrides: Any) -> Settings:
    """Settings of a process that uses a database and a broker which run already."""
    return embedded_settings(
        data_dir,
        database_url=database_url,
        kafka_bootstrap_servers=broker.url,
        kafka_idempotence=chosen.producers_can_be_idempotent,
        **overrides,
    )


async def run_to_its_end(command: str, settings: Settings) -> "subprocess.CompletedProcess[str]":
    """Run `drawdown …` under these settings, for a minute at most."""
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
    """Run Python in a process of its own; the most bytes of memory that it had taken, each time it said `measure()`."""
    measure = r"""
        import re
        from pathlib import Path
        def measure() -> None:  # Not by getrusage, which takes over what the parent had.
            print(int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024)
    """
    ran = subprocess.run(
        [sys.executable, "-c", dedent(measure) + dedent(code)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return [int(line) for line in ran.stdout.split()]


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
        return httpx.AsyncClient(base_url=self.url, trust_env=False, limits=LIMITS, **{"timeout": 30, **options})

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
