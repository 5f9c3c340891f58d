"""`drawdown run`: runs the whole system on this machine, shows it in the terminal, and stops all of it at the end."""

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from drawdown.api_client import ApiClient, ApiToken
from drawdown.local import spend_sending
from drawdown.local.left_behind import left_behind
from drawdown.local.processes import is_alive, start_guardian
from drawdown.local.screen import Observer, Screen
from drawdown.local.subscriber import Subscriber
from drawdown.local.system import System
from drawdown.local.traffic import CAST, Traffic
from drawdown.serving import switched_off
from services.allocation.service import read_policy
from services.api.door.access import Access
from shared.runtime.clock import Clock
from shared.runtime.logging import configure_logging
from shared.runtime.settings import Settings

_DRAIN_SECONDS = 15.0
_LOCK_SECONDS = 20.0
_POLL_SECONDS = 0.1
_AGAIN_SECONDS = 1.0
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Options:
    """The options of `drawdown run`. `rate` is in spends a second."""

    traffic: bool = True
    rate: int = 500
    spend: Path | None = None
    keep_times: bool = False


class AlreadyRunningError(OSError):
    """Another run uses this data directory."""


async def supervise(settings: Settings, options: Options) -> int:
    """Run everything until a signal asks it to stop; return the exit code, which is 0 after an orderly stop.

    Raises:
        EmbeddedServerError: a server or service does not start.
        AlreadyRunningError: another run uses the data directory.
        UnreadableFileError: the file contains no spend.
        BadSettingError: the policy file contains no policy, or tokens are required and there are no keys for them.

    """
    read_policy(settings.policy_file)
    with _only_run(settings.data_dir) as lock, _log(settings.data_dir).open("a", buffering=1) as log:
        start_guardian(keep_open=(lock,))
        configure_logging(settings, "supervisor", log)
        return await _Run(settings, options).run()


class _Run:
    """One run, from its start to its end."""

    def __init__(self, settings: Settings, options: Options) -> None:
        self._options = options
        self._subscriber = Subscriber()
        self._screen = Screen(self._subscriber, on_gone=lambda: self._ask(signal.SIGHUP))
        self._system = System(settings, say=self._screen.say)
        Access(self._system.settings)
        self._stop_asked = asyncio.Event()
        self._kill_asked = asyncio.Event()
        self._undecided: str | None = None

    async def run(self) -> int:
        """Start everything, wait until asked to stop, and stop it; return the exit code."""
        for number in _ENDING_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._ask, number)
        try:
            if await self._unless_asked(self._start()):
                await self._go_on()
        finally:
            await self._system.stop()
        if self._undecided is not None:
            self._screen.say(self._undecided)
        self._screen.say(f"stopped; the ledger stays in {self._system.settings.data_dir}")
        return 130 if self._kill_asked.is_set() else 0

    def _ask(self, number: int) -> None:
        """Stop in order at the first signal, and at once at the second. A closed terminal counts only once."""
        if number == signal.SIGHUP:
            if self._stop_asked.is_set():
                return
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.dup2(nowhere, sys.stderr.fileno())
        if self._stop_asked.is_set():
            self._kill_asked.set()
            self._system.kill()
        self._stop_asked.set()

    async def _unless_asked(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do the work. Returns False if a signal came first, and cancels the work."""
        task = asyncio.create_task(work)
        try:
            return await _first(task, self._stop_asked)
        finally:
            await _cancelled(task)

    async def _start(self) -> None:
        settings = self._system.settings
        self._screen.say(f"data in {settings.data_dir}, logs in {settings.data_dir / 'logs'}")
        if settings.clock_offset_seconds:
            now = Clock(settings).now().isoformat(timespec="seconds")
            self._screen.say(f"THE CLOCK IS MOVED by {settings.clock_offset_seconds} s: it is {now} here")
        for what in switched_off(settings):
            self._screen.say(f"SECURITY IS OFF: {what}")
        await self._system.start()
        self._screen.where = _where(self._system)

    async def _go_on(self) -> None:
        urls = {name: service.url for name, service in self._system.services.items()}
        async with ApiClient(urls, ApiToken(self._system.settings)) as client:
            observer = Observer(client, self._subscriber)
            watching = asyncio.create_task(self._system.watch())
            background = [
                watching,
                asyncio.create_task(self._keep_on("the subscriber of signals", self._follow)),
                asyncio.create_task(self._keep_on("the screen", lambda: self._screen.show(observer))),
            ]
            spending = asyncio.create_task(self._spend(client, observer))
            try:
                await _first(watching, self._stop_asked)
            finally:
                await _cancelled(spending)
                if not watching.done():
                    await self._drain(client)
                await _cancelled(*background)

    async def _follow(self) -> None:
        await self._subscriber.follow(self._system.settings)

    async def _keep_on(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Repeat work that failed, because a failure of the display must not end the run."""
        task = asyncio.current_task()
        assert task is not None
        while not task.cancelling():  # A failure during cancellation may have replaced the CancelledError.
            try:
                await work()
            except Exception as error:
                self._screen.say(f"{what} failed: {type(error).__name__}: {error}")
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _spend(self, client: ApiClient, observer: Observer) -> None:
        try:
            if self._options.spend is not None:
                await self._spend_file(self._options.spend, client, observer)
            elif self._options.traffic:
                observer.centers = [center.id for center in CAST]
                rate = self._options.rate
                await Traffic(self._system.settings, client, self._subscriber, rate=rate, say=self._screen.say).run()
            else:
                self._screen.say("no traffic, as asked")
        except Exception as error:
            self._screen.say(f"spend is no longer sent: {type(error).__name__}: {error}")

    async def _spend_file(self, path: Path, client: ApiClient, observer: Observer) -> None:
        settings, say = self._system.settings, self._screen.say
        keep_times = self._options.keep_times
        file = await asyncio.to_thread(spend_sending.prepare, settings, path, keep_times=keep_times, say=say)
        observer.centers = sorted({center for center, _ in file.summary.accounts})
        await spend_sending.open_send_and_report(settings, client, file, say)

    async def _drain(self, client: ApiClient) -> None:
        self._screen.say(f"draining (at most {_DRAIN_SECONDS:.0f} s; a second signal stops at once)")
        idle = asyncio.create_task(client.wait_until_idle(_DRAIN_SECONDS))
        was_idle = await _first(idle, self._kill_asked) and idle.result()
        await _cancelled(idle)
        if not was_idle:
            self._screen.say("some records are not drained")
        # This is said at the very end, because the live picture would hide it now.
        seen = None if self._kill_asked.is_set() else await client.figures("allocation")
        self._undecided = left_behind(seen, broker_keeps=self._system.kafka is None)


async def _first(task: "asyncio.Task[Any]", event: asyncio.Event) -> bool:
    """Wait for a task, and raise its error. Returns False if the event came first and the task still runs."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
    await _cancelled(waiting)
    if task.done():
        await task
        return True
    return False


async def _cancelled(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _where(system: System) -> list[str]:
    """Return the lines with the addresses of everything, for the screen."""
    settings = system.settings
    metrics = "" if settings.api_wants_tokens else f"   metrics {system.url}/metrics"
    return [
        f"API {system.url}   docs {system.url}/docs   OpenAPI {system.url}/openapi.json{metrics}",
        f"Kafka {settings.kafka_bootstrap_servers}   PostgreSQL {_without_password(settings.database_url)}",
        "Ctrl-C drains and stops.",
    ]


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _log(data_dir: Path) -> Path:
    path = data_dir / "logs" / "supervisor.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def _only_run(data_dir: Path) -> Iterator[int]:
    """Hold the lock of the data directory. After a run was killed, its guardian holds the lock until all have ended.

    Raises:
        AlreadyRunningError: another run holds the lock.

    """
    data_dir.mkdir(parents=True, exist_ok=True)
    path = data_dir / "lock"
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        give_up_at = time.monotonic() + _LOCK_SECONDS
        while not _locked(lock):
            holder = int(os.pread(lock, 32, 0).strip() or b"0")
            if time.monotonic() > give_up_at or is_alive(holder):
                raise AlreadyRunningError(
                    f"another run uses {data_dir} (process {holder}): a second run needs its own DRAWDOWN_DATA_DIR "
                    "and ports"
                )
            time.sleep(_POLL_SECONDS)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield lock
    finally:
        os.close(lock)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
