"""Kills services with `kill -9` at every step of their write paths, under load.

Each process is started so that it dies at a chosen step, and is restarted when it has. So several services die at the
same time. If a step is not reached in time, the process is killed at that moment instead.
"""

import asyncio
import itertools
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from drawdown.serving import SERVICES
from tests.chaos.machine import KILLED, Machine, cancel, service_of
from tests.chaos.steps import STEPS, Step
from tests.chaos.victim import index_of

ANY_MOMENT = "any moment"
PATIENCE_SECONDS = 15.0
READY_SECONDS = 30.0
MOST_TRIES = 4
MOST_OTHER_ENDS = 20
_EVERY_SO_MANY = 12  # One of this many kills comes at a random moment.
_POLL_SECONDS = 0.1

Planned = tuple[Step | None, int]


@dataclass
class Tally:
    """How often processes died at each step, and their other ends."""

    kills: Counter[tuple[str, str]] = field(default_factory=Counter)
    missed: Counter[tuple[str, str]] = field(default_factory=Counter)
    other_ends: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """The number of kills so far."""
        return self.kills.total()


class Killer:
    """Kills the services of a machine until a number of kills is reached."""

    def __init__(self, machine: Machine, seed: int, tally: Tally, say: Callable[[str], None]) -> None:
        self._machine = machine
        self._tally = tally
        self._say = say
        self._random = random.Random(seed)
        self._plans = {name: self._plan(service_of(name)) for name in machine.names}

    def _plan(self, service: str) -> Iterator[Planned]:
        """Yield a service's steps equally often. The seed decides their order, and the passage at which to die."""
        steps = [step for step in STEPS if step.service == service]
        while True:
            self._random.shuffle(steps)
            for number, step in enumerate(steps):
                yield step, self._random.randint(1, step.most)
                if number % _EVERY_SO_MANY == 0:
                    yield None, 1

    async def kill_until(self, count: int) -> None:
        """Kill until the tally has reached `count`; then start all services without a step to die at."""
        async with asyncio.TaskGroup() as tasks:
            for name in self._machine.names:
                tasks.create_task(self._torment(name, count))

    async def kill_at_every_step(self) -> None:
        """Kill once at every step of every service, in a few tries each; then start all services normally."""
        left = {service: deque(step for step in STEPS if step.service == service) for service in SERVICES}

        async def one_by_one(name: str) -> None:
            service = service_of(name)
            tries: Counter[str] = Counter()
            while left[service]:
                step = left[service].popleft()
                tries[step.name] += 1
                await self._one(name, step, 1)
                if not self._tally.kills[service, step.name] and tries[step.name] < MOST_TRIES:
                    left[service].append(step)
            self._machine.start(name)

        async with asyncio.TaskGroup() as tasks:
            for name in self._machine.names:
                tasks.create_task(one_by_one(name))

    async def _torment(self, name: str, count: int) -> None:
        while self._tally.count < count:
            step, passage = next(self._plans[name])
            await self._one(name, step, passage)
        self._machine.start(name)

    async def _one(self, name: str, step: Step | None, passage: int) -> None:
        running = self._machine.start(name, step=None if step is None else index_of(step), passage=passage)
        ending = asyncio.ensure_future(running.ended())
        try:
            if step is None:
                await asyncio.wait({ending}, timeout=self._random.uniform(0, 3))
            elif step.at_stop:
                await self._ask_to_end(name, ending)
            else:
                await asyncio.wait({ending}, timeout=PATIENCE_SECONDS)
            reached = ending.done()
            if not reached:
                running.process.kill()
            self._count(name, step, await ending, reached)
        finally:
            await cancel([ending])  # type: ignore[list-item]
            running.process.kill()

    async def _ask_to_end(self, name: str, ending: "asyncio.Future[int]") -> None:
        """Let a process write for a while, then ask it to end; it dies at a step of the shutdown."""
        give_up_at = time.monotonic() + READY_SECONDS
        while not ending.done() and time.monotonic() < give_up_at:
            if await self._machine.is_ready(name):
                break
            await asyncio.sleep(_POLL_SECONDS)
        await asyncio.wait({ending}, timeout=self._random.uniform(0, 1))
        self._machine.running[name].process.terminate()  # Does nothing if it has just died.
        await asyncio.wait({ending}, timeout=PATIENCE_SECONDS)

    def _count(self, name: str, step: Step | None, code: int, reached: bool) -> None:
        service = service_of(name)
        if code in (0, 1) and step is not None and step.at_stop:  # It ended as asked, or its time for that was over.
            self._tally.missed[service, step.name] += 1
            return
        if code != KILLED:
            self._tally.other_ends.append(f"{name}: exit {code}, to die at {step.name if step else ANY_MOMENT!r}")
            self._say(f"  {self._tally.other_ends[-1]}; see {self._machine.logs / name}.log")
            if len(self._tally.other_ends) >= MOST_OTHER_ENDS:
                raise RuntimeError(f"services end by themselves again and again: see {self._machine.logs}")
            return
        if step is not None and reached:
            self._tally.kills[service, step.name] += 1
            return
        if step is not None:
            self._tally.missed[service, step.name] += 1
        self._tally.kills[service, ANY_MOMENT] += 1


def never_reached(tally: Tally) -> list[str]:
    """Return the steps at which no process has died."""
    return [f"{step.service}: {step.name}" for step in STEPS if not tally.kills[step.service, step.name]]


def table(tally: Tally) -> Iterator[tuple[str, str, int]]:
    """Return rows of service, step and number of kills, in the order of the write paths."""
    for service, steps in itertools.groupby(STEPS, key=lambda step: step.service):
        names = dict.fromkeys([*(step.name for step in steps), ANY_MOMENT])
        yield from ((service, name, tally.kills[service, name]) for name in names)
