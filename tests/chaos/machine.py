"""The machine under test: real servers, and services as processes that are restarted whenever they end."""

import asyncio
import contextlib
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx

from drawdown.local.system import environment_of
from drawdown.serving import SERVICES
from shared.runtime.settings import Settings
from tests.chaos.checker import Findings, judge
from tests.chaos.load import Load
from tests.chaos.observed import backlog, observe
from tests.chaos.victim import PRELOAD, Victim, run
from tests.servers import LIMITS, free_ports

NAMES = (*SERVICES, "allocation-2")
KILLED = -9
SETTLE_SECONDS = 180.0
RESTART_SECONDS = 0.5
_POLL_SECONDS = 0.05
_LOOK_SECONDS = 0.2
_processes = multiprocessing.get_context("forkserver")


def service_of(name: str) -> str:
    """Return the service of a process name; `allocation-2` is a second process of allocation."""
    return name.partition("-")[0]


@dataclass
class Running:
    """A process of a service."""

    process: "multiprocessing.process.BaseProcess"

    async def ended(self) -> int:
        """Wait for the process to end; return its exit code, or minus the signal that ended it."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        sentinel = self.process.sentinel
        loop.add_reader(sentinel, done.set)
        try:
            await done.wait()
        finally:
            loop.remove_reader(sentinel)
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode


class Machine:
    """The services of one system. Each process is started by the task that supervises it."""

    def __init__(self, settings: Settings, directory: Path, names: tuple[str, ...] = NAMES) -> None:
        self.settings = settings
        self.names = names
        self.logs = directory
        self.running: dict[str, Running] = {}
        self.ends: Counter[tuple[str, int]] = Counter()  # How often each process ended with which exit code.
        self.clock_file: Path | None = None
        self._ports = {name: free_ports(1) for name in names if name != "api"}
        _processes.set_forkserver_preload(PRELOAD)

    @property
    def url(self) -> str:
        """The URL of the API."""
        return f"http://127.0.0.1:{self.settings.http_port}"

    def start(self, name: str, *, step: int | None = None, passage: int = 1) -> Running:
        """Start a process, optionally with a step at which it dies."""
        environment = environment_of(self.settings)
        if name != "api":
            environment["DRAWDOWN_HEALTH_PORT"] = str(self._ports[name])
        service = service_of(name)
        clock_file = self.clock_file if service == "allocation" else None
        victim = Victim(service, environment, self.logs / f"{name}.log", step, passage, clock_file)
        process = _processes.Process(target=run, args=(victim,), daemon=True)
        process.start()
        self.running[name] = Running(process)
        return self.running[name]

    async def keep(self, name: str) -> None:
        """Start a process, and restart it whenever it ends, like a supervisor, until cancelled."""
        while True:
            running = self.start(name)
            try:
                code = await running.ended()
            except asyncio.CancelledError:
                running.process.kill()
                raise
            self.ends[name, code] += 1
            await asyncio.sleep(RESTART_SECONDS)

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Keep all services running, and kill them at the end."""
        tasks = [asyncio.create_task(self.keep(name)) for name in self.names]
        try:
            yield
        finally:
            await cancel(tasks)

    def kill(self) -> None:
        """Kill every process at once."""
        for running in self.running.values():
            running.process.kill()
            running.process.join()

    async def is_ready(self, name: str) -> bool:
        """Return whether /readyz says that the service is ready."""
        port = self._ports.get(name, self.settings.http_port)
        # Plain HTTP without a list of authorities, because that takes longer to load than the answer.
        async with httpx.AsyncClient(trust_env=False, limits=LIMITS, verify=False, timeout=2) as client:
            try:
                return (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200
            except httpx.HTTPError:
                return False

    async def all_ready(self, seconds: float = 60.0) -> float:
        """Wait until every service is ready; return how many seconds it took."""
        began = time.monotonic()
        while waiting := [name for name in self.names if not await self.is_ready(name)]:
            assert time.monotonic() - began < seconds, f"not ready after {seconds:.0f} s: {waiting}; see {self.logs}"
            await asyncio.sleep(_LOOK_SECONDS)
        return time.monotonic() - began

    def others(self) -> dict[tuple[str, int], int]:
        """Return the ends of processes that were neither killed nor asked to end."""
        return {end: times for end, times in self.ends.items() if end[1] not in (KILLED, 0)}


@contextlib.asynccontextmanager
async def under_load(machine: Machine, seed: int) -> AsyncIterator[tuple[Load, httpx.AsyncClient]]:
    """Open Business Centers on a ready machine; yield the load, which is paused, and a client of the API."""
    settings = machine.settings
    async with httpx.AsyncClient(base_url=machine.url, trust_env=False, limits=LIMITS, timeout=15) as api:
        load = Load(
            seed,
            shards=settings.shards,
            bootstrap_servers=settings.kafka_bootstrap_servers,
            idempotent=settings.kafka_idempotence,
            api=api,
        )
        await load.open()
        running = asyncio.create_task(load.run())
        try:
            yield load, api
        finally:
            if running.done():
                running.result()  # The load has failed, which explains any other finding.
            await cancel([running])


async def check(
    load: Load, database_url: str, bootstrap_servers: str, api: httpx.AsyncClient, seconds: float = SETTLE_SECONDS
) -> Findings:
    """Pause the load, wait until nothing is in progress, and compare. The load stays paused."""
    await load.pause()
    database = await asyncpg.connect(database_url)
    try:
        give_up_at = time.monotonic() + seconds
        while waiting := await backlog(database, load.ends):
            if time.monotonic() > give_up_at:
                return Findings(wrong=[f"still under way after {seconds:.0f} s: {each}" for each in waiting])
            await asyncio.sleep(_POLL_SECONDS)
        return judge(load.journal, await observe(database, bootstrap_servers, api, load.journal))
    finally:
        await database.close()


async def cancel(tasks: "list[asyncio.Task[None]]") -> None:
    """Cancel tasks, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def with_servers(settings: Settings, bootstrap_servers: str, database_url: str) -> Settings:
    """Return the same settings with other servers."""
    return settings.model_copy(
        update={"kafka_bootstrap_servers": bootstrap_servers, "database_url": database_url, "api_authentication": "off"}
    )


async def drawdown(settings: Settings, *command: str) -> int:
    """Run the command line while the services run; return its exit code."""
    environment = {**os.environ, **environment_of(settings)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "drawdown", *command), env=environment, stdout=asyncio.subprocess.DEVNULL
    )
    return await process.wait()


async def audit(settings: Settings) -> list[str]:
    """Replay the ledger with `drawdown audit replay`; return a sentence if it fails."""
    code = await drawdown(settings, "audit", "replay")
    return [f"drawdown audit replay ends with {code}"] if code else []
