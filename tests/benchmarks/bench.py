"""The objects that all benchmarks of a run use: the system, the ledger, a publisher, and the published counts."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass

import asyncpg

from shared.runtime.read_models import READ_MODELS
from shared.runtime.settings import Settings
from tests.benchmarks.load import Center, Publisher, Record, create_publisher
from tests.benchmarks.plan import SHARDS, Plan
from tests.benchmarks.watch import Ledger, Sample
from tests.servers import RunningSystem, running_system

FOLLOWERS = tuple(model.name for model in READ_MODELS)

_SHOWN_LINES = 25
_SHOWN_CHARACTERS = 400

Say = Callable[[str], None]


@dataclass
class Bench:
    """One run. The ledger must come to consume `published_spends` spends and `published_commands` commands."""

    plan: Plan
    system: RunningSystem
    ledger: Ledger
    publisher: Publisher
    say: Say
    published_spends: int = 0
    published_commands: int = 0

    @property
    def settings(self) -> Settings:
        """The settings of the system."""
        return self.system.settings

    async def command(self, records: Iterable[Record]) -> None:
        """Publish finance commands, and wait until all of them are accepted."""
        self.published_commands += await self.publisher.commands(records)
        await self.ledger.wait_for(commands=self.published_commands)
        refused = await self.ledger.refused()
        assert not refused, f"the set-up was refused: {refused}"

    async def spend(self, centers: list[Center], count: int) -> None:
        """Publish random spends."""
        self.published_spends += await self.publisher.spends(centers, count)

    async def settle(self) -> list[Sample]:
        """Wait until every published spend is in the ledger."""
        return await self.ledger.wait_for(spends=self.published_spends)

    async def followers_settle(self) -> None:
        """Wait until every running follower has folded the whole ledger."""
        for follower in FOLLOWERS:
            await self.ledger.wait_for_follower(follower)

    async def tidy(self) -> None:
        """Let the database do the maintenance that a large load leaves, so that it does not disturb the next part."""
        await self.followers_settle()
        await self.ledger.connection.execute("VACUUM (ANALYZE)")
        await self.ledger.connection.execute("CHECKPOINT")

    async def stop(self, *services: str) -> None:
        """Ask services to end, and wait until they have."""
        for service in services:
            await self.system.kill_service(service, signal.SIGTERM)

    async def start(self, *services: str) -> None:
        """Start services and wait until they are ready."""
        await asyncio.gather(*(self.system.restart_service(service) for service in services))


@contextlib.asynccontextmanager
async def prepared_bench(plan: Plan) -> AsyncIterator[Bench]:
    """Start a whole and empty system with all services."""
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:6.1f} s] {text}", flush=True)

    async with contextlib.AsyncExitStack() as stack:
        say("starting PostgreSQL, the broker and all services")
        system = await stack.enter_async_context(running_system(shards=SHARDS, log_level="warning"))
        connection = await asyncpg.connect(system.database_url)
        stack.push_async_callback(connection.close, timeout=5)
        publisher, producer = await create_publisher(system.settings)
        stack.push_async_callback(producer.stop)
        try:
            yield Bench(plan, system, Ledger(connection), publisher, say)
        except Exception:
            _show_logs(system)
            raise


def _show_logs(system: RunningSystem) -> None:
    """Print the end of the services' logs, because they are deleted with the system."""
    for name in system.services:
        if lines := system.log_of(name).splitlines()[-_SHOWN_LINES:]:
            print(f"--- {name}", *(line[:_SHOWN_CHARACTERS] for line in lines), sep="\n")
