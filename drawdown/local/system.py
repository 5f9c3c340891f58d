"""The whole system on this machine: the servers and services, each in its own process."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx

from drawdown.deployment.command_keys import with_command_keys
from drawdown.deployment.migrate import migrate
from drawdown.local.embedded import EmbeddedKafka, EmbeddedPostgres, EmbeddedServerError, require_free
from drawdown.local.processes import Child, spawn
from drawdown.serving import SERVICES
from shared.runtime.settings import PREFIX, Settings, is_loopback
from shared.runtime.topics import ensure_topics

READY_SECONDS = 60.0
_POLL_SECONDS = 0.1
_STOP_SECONDS = 15.0
_FIRST_BACKOFF_SECONDS = 0.5
_LONGEST_BACKOFF_SECONDS = 10.0
# A service that ran this long had started well, so its next restart is quick again.
_STEADY_SECONDS = 30.0

Say = Callable[[str], None]


def environment_of(settings: Settings) -> dict[str, str]:
    """Return the environment variables that give a child process exactly these settings."""
    values = settings.model_dump(mode="json", exclude_none=True)
    return {PREFIX + name.upper(): str(value) for name, value in values.items()}


def _api_authentication(settings: Settings) -> str:
    """Return the setting; without one, tokens are off only if the API is unreachable from other machines."""
    return settings.api_authentication or ("off" if is_loopback(settings.http_host) else "tokens")


def port_of(settings: Settings, service: str) -> int:
    """Return the port of a service's /readyz and /metrics: the HTTP port for the API, the ports after it for others."""
    return settings.http_port + ("api", *(name for name in SERVICES if name != "api")).index(service)


async def prepare(settings: Settings) -> None:
    """Migrate the database to this version's schema, and create missing topics. Waits for both servers.

    Raises:
        TopicsDoNotFitError: a topic is not configured as the ledger needs it.
        CannotGoOnError: the ledger has a different number of shards, or a migration does not get a lock it needs.

    """
    await migrate(settings)
    await ensure_topics(settings)


class Service:
    """One service and its process."""

    def __init__(self, name: str, settings: Settings, environment: Mapping[str, str]) -> None:
        self.name = name
        self.port = port_of(settings, name)
        self.log = settings.data_dir / "logs" / f"{name}.log"
        self.url = f"http://{settings.http_client_host}:{self.port}"
        self.child: Child | None = None
        self.restarts = 0
        self._started_at = 0.0
        self._backoff_seconds = _FIRST_BACKOFF_SECONDS
        self._environment = {**os.environ, **environment_of(settings), **environment}
        if name != "api":
            self._environment[PREFIX + "HEALTH_PORT"] = str(self.port)

    def start(self) -> None:
        """Start the process."""
        self._started_at = time.monotonic()
        command = [sys.executable, "-m", "drawdown", self.name]
        self.child = spawn(command, log=self.log, environment=self._environment)

    async def stop(self) -> None:
        """Ask the process to end; return when it has."""
        if self.child is not None:
            await self.child.stop(_STOP_SECONDS)

    async def is_ready(self, client: httpx.AsyncClient) -> bool:
        """Return whether /readyz says that the service is ready."""
        try:
            return (await client.get(f"{self.url}/readyz")).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def next_backoff_seconds(self) -> float:
        """Return the pause before the next restart: twice the last one, or short again after a run of 30 s."""
        if time.monotonic() - self._started_at > _STEADY_SECONDS:
            self._backoff_seconds = _FIRST_BACKOFF_SECONDS
        seconds = self._backoff_seconds
        self._backoff_seconds = min(2 * seconds, _LONGEST_BACKOFF_SECONDS)
        return seconds


class System:
    """Starts all servers and services, keeps them running, and stops them.

    Servers are embedded unless the settings name them.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        environment: Mapping[str, str] | None = None,
        services: tuple[str, ...] = SERVICES,
        say: Say = lambda _text: None,
    ) -> None:
        """Prepare a system that is not started yet.

        Args:
            settings: the system's settings, which every service gets.
            environment: further environment variables for every service.
            services: the names of the services to run.
            say: called with a line for each event.

        """
        data_dir = settings.data_dir.absolute()
        self.postgres = EmbeddedPostgres(data_dir, settings.postgres_port) if settings.database_is_embedded else None
        self.kafka = EmbeddedKafka(data_dir, settings.kafka_port) if settings.kafka_is_embedded else None
        self.settings = settings.model_copy(
            update={"data_dir": data_dir, "api_authentication": _api_authentication(settings)}
        )
        self.services: dict[str, Service] = {}
        self._names = services
        self._environment = dict(environment or {})
        self._say = say
        self._stopping = False

    @property
    def url(self) -> str:
        """Return the URL of the API."""
        return self.services["api"].url

    async def start(self) -> None:
        """Start the servers, prepare schema and topics, start the services; return when all are ready.

        Raises:
            EmbeddedServerError: a server or service does not start.

        """
        self.settings = with_command_keys(self.settings)
        await asyncio.gather(self._start_postgres(), self._start_kafka())
        await self._prepare()
        for name in self._names:
            require_free(port_of(self.settings, name), "DRAWDOWN_HTTP_PORT")
            self.services[name] = Service(name, self.settings, self._environment)
            self.services[name].start()
        await asyncio.gather(*(self.wait_until_ready(name) for name in self._names))

    async def stop(self) -> None:
        """Stop the services, then the broker, then the database."""
        self._stopping = True
        await asyncio.gather(*(service.stop() for service in self.services.values()))
        if self.kafka is not None:
            await self.kafka.stop()
        if self.postgres is not None:
            await self.postgres.stop()

    def kill(self) -> None:
        """Kill everything at once. The ledger recovers at the next start."""
        self._stopping = True
        self._kill_services()
        if self.kafka is not None and self.kafka.child is not None:
            self.kafka.child.send(signal.SIGKILL)
        if self.postgres is not None and self.postgres.child is not None:
            self.postgres.child.send(signal.SIGQUIT)

    async def wait_until_ready(self, name: str, seconds: float = READY_SECONDS) -> None:
        """Wait until a service says that it is ready.

        Raises:
            EmbeddedServerError: the service has ended, or is not ready in time.

        """
        service = self.services[name]
        give_up_at = time.monotonic() + seconds
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            while not await service.is_ready(client):
                assert service.child is not None
                if service.child.exit_code() is not None:
                    raise EmbeddedServerError(f"{name} exited while it was starting: see {service.log}")
                if time.monotonic() > give_up_at:
                    raise EmbeddedServerError(f"{name} is not ready after {seconds:.0f} s: see {service.log}")
                await asyncio.sleep(_POLL_SECONDS)

    async def watch(self) -> None:
        """Restart servers and services that end by themselves, until cancelled."""
        await asyncio.gather(
            *(self._watch_service(service) for service in self.services.values()), self._watch_servers()
        )

    async def _watch_service(self, service: Service) -> None:
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            code = service.child.exit_code() if service.child else None
            if code is None or self._stopping:
                continue
            seconds = service.next_backoff_seconds()
            self._say(
                f"{service.name} ended ({_meaning(code)}); restarting in {seconds:.1f} s; see {_short(service.log)}"
            )
            await asyncio.sleep(seconds)
            service.restarts += 1
            service.start()

    async def _watch_servers(self) -> None:
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            if self._stopping:
                continue
            if self.postgres and self.postgres.child and self.postgres.child.exit_code() is not None:
                self._say("PostgreSQL ended; starting it again")
                await self._start_postgres()
            if self.kafka and self.kafka.child and self.kafka.child.exit_code() is not None:
                self._say("the broker ended and lost its records; starting an empty one")
                await self._replace_kafka()

    async def _replace_kafka(self) -> None:
        self._stopping = True
        self._kill_services()  # Their state is in the ledger, and an orderly stop would wait for the broker.
        self.kafka = EmbeddedKafka(self.settings.data_dir, self.settings.kafka_port)
        await self._start_kafka()
        await self._prepare()
        for service in self.services.values():
            await service.stop()
            service.start()
        self._stopping = False

    def _kill_services(self) -> None:
        for service in self.services.values():
            if service.child is not None:
                service.child.send(signal.SIGKILL)

    async def _start_postgres(self) -> None:
        if self.postgres is None:
            return
        await self.postgres.start()
        self.settings = self.settings.model_copy(update={"database_url": self.postgres.url})
        self._say(f"PostgreSQL at 127.0.0.1:{self.postgres.port}")

    async def _start_kafka(self) -> None:
        if self.kafka is None:
            return
        await self.kafka.start()
        self.settings = self.settings.model_copy(
            update={"kafka_bootstrap_servers": self.kafka.url, "kafka_idempotence": False}
        )
        self._say(f"broker at {self.kafka.url}")

    async def _prepare(self) -> None:
        await prepare(self.settings)
        if self.kafka is not None:  # An empty broker's offsets start at 0, but the ledger has read further.
            from services.allocation.operating.offsets import adopt

            await adopt(self.settings)


def _meaning(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
