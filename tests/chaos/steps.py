"""The steps of every write path, by their names in the code, and how a process is made to die at one.

The product has no fail points. The process that must die wraps the step before its service starts. If the code no
longer has the name of a step, that process ends at once.
"""

import asyncio
import inspect
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib import import_module
from itertools import count
from typing import Any, Final, Literal

from shared.ledger.checkpoints import checkpoints_of
from shared.runtime.read_models import READ_MODELS

Arguments = Callable[..., bool]


@dataclass(frozen=True)
class Step:
    """A place in the code where a process can die.

    `target` is `module:name`. `only` decides from a call's arguments whether it is this step. The process dies at one
    of the first `most` passages. With `at_stop`, only a process that was asked to end passes the step.
    """

    service: str
    name: str
    target: str
    when: Literal["before", "during", "after", "amid"] = "before"
    only: Arguments | None = None
    most: int = 20
    at_stop: bool = False


def _says(text: str) -> Arguments:
    """Select the calls whose statement contains the text. The connection is their first argument."""
    return lambda _connection, statement, *_arguments, **_options: text in statement


def _of(name: str) -> Arguments:
    """Select the calls whose first argument is this table or topic."""
    return lambda _self, called, *_arguments, **_options: called == name


_EXECUTE = "asyncpg:Connection.execute"
_COPY_RECORDS = "asyncpg:Connection.copy_records_to_table"
_SEND = "aiokafka:AIOKafkaProducer.send"
_WORKER = "services.allocation.worker:"
_SERVICE = "services.allocation.service:"
_APPEND = "services.allocation.writing.append:"
_FOLLOW = "shared.ledger.follow:"
_COMMANDS = "services.api.commands.publishing:"

_ALLOCATION: Final = (
    Step("allocation", "lease taken", _SERVICE + "Allocation._start", most=1),
    Step("allocation", "consumer open", _SERVICE + "open_consumer", "after", most=2),
    Step("allocation", "state loaded", "services.allocation.memory.snapshots:load", "after", most=2),
    Step("allocation", "fetched", _WORKER + "Worker._fetch", "after"),
    Step("allocation", "decoded", _WORKER + "decode", "after"),
    Step("allocation", "looked up", _WORKER + "look_up", "after"),
    Step("allocation", "decided", _WORKER + "Decider.decide", "after"),
    Step("allocation", "before BEGIN", _APPEND + "_move_lease"),
    Step("allocation", "in the middle of BEGIN", _EXECUTE, "during", _says("ledger.move_lease")),
    Step("allocation", "lease moved", _EXECUTE, "after", _says("ledger.move_lease")),
    Step("allocation", "in the middle of COPY", "asyncpg:Connection.copy_to_table", "amid"),
    Step("allocation", "entries copied", _APPEND + "_copy", "after"),
    Step("allocation", "outcomes copied", _COPY_RECORDS, "after", _of("outcomes"), most=5),
    Step("allocation", "quarantine copied", _COPY_RECORDS, "after", _of("quarantine"), most=3),
    Step("allocation", "record forwarded", _COPY_RECORDS, "after", _of("forwarded"), most=5),
    Step("allocation", "forwarded record taken", _EXECUTE, "after", _says("DELETE FROM ledger.forwarded"), most=5),
    Step("allocation", "before COMMIT", _APPEND + "_close_batch"),
    Step("allocation", "in the middle of COMMIT", _EXECUTE, "during", _says("COMMIT")),
    Step("allocation", "committed, memory not yet", _APPEND + "_advance_lease"),
    Step("allocation", "batch over", _WORKER + "append", "after"),
    Step("allocation", "outcome to be sent", _SEND, "before", _of("finance.outcomes"), most=5),
    Step("allocation", "outcome sent", _SEND, "after", _of("finance.outcomes"), most=5),
    Step("allocation", "outcomes acknowledged", _EXECUTE, "before", _says("INSERT INTO ledger.checkpoints"), most=5),
    Step("allocation", "outcomes checkpointed", _EXECUTE, "after", _says("INSERT INTO ledger.checkpoints"), most=5),
    Step("allocation", "snapshot due", "services.allocation.memory.snapshots:dump", most=1, at_stop=True),
    Step("allocation", "snapshot written", _EXECUTE, "after", _says("INTO ledger.snapshots"), most=1, at_stop=True),
    Step("allocation", "before release", _SERVICE + "release", most=2, at_stop=True),
    Step("allocation", "released", _SERVICE + "release", "after", most=2, at_stop=True),
    Step("allocation", "before withdrawal", _SERVICE + "withdraw", most=1, at_stop=True),
)


def _follower(service: str) -> tuple[Step, ...]:
    moves = _says(f"UPDATE {checkpoints_of(service)} SET position")
    return (
        Step(service, "before the checkpoint is taken", _FOLLOW + "advance", most=8),
        Step(service, "checkpoint taken", "asyncpg:Connection.fetchrow", "after", _says("FOR UPDATE OF c"), most=8),
        Step(service, "folded", _EXECUTE, "before", moves, most=8),
        Step(service, "checkpoint moved, not committed", _EXECUTE, "after", moves, most=8),
        Step(service, "committed", _FOLLOW + "advance", "after", most=8),
    )


_SIGNALS: Final = (
    Step("signals", "a signal to be sent", _SEND, "before", _of("delivery.signals"), most=10),
    Step("signals", "a signal sent", _SEND, "after", _of("delivery.signals"), most=10),
    Step("signals", "sent, not remembered", _EXECUTE, "before", _says("INTO signals.latest"), most=5),
    Step("signals", "remembered, no checkpoint", _EXECUTE, "after", _says("INTO signals.latest"), most=5),
)

_API: Final = (
    Step("api", "command not published", _COMMANDS + "_publish", most=5),
    Step("api", "command being published", _SEND, "after", _of("finance.commands"), most=5),
    Step("api", "command published", _COMMANDS + "_publish", "after", most=5),
    Step("api", "outcome known", _COMMANDS + "_outcome_row", "after", most=5),
    Step("api", "before the answer", _COMMANDS + "_outcome", most=5),
)

STEPS: Final = (
    *_ALLOCATION,
    *(step for model in READ_MODELS for step in _follower(model.name)),
    *_SIGNALS,
    *_API,
)


def find(target: str) -> tuple[Any, str]:
    """Return the object that has a target as its attribute, and the attribute's name.

    Raises ImportError or AttributeError if the code has no such name.
    """
    module, _, path = target.partition(":")
    *holders, name = path.split(".")
    holder = import_module(module)
    for each in holders:
        holder = getattr(holder, each)
    getattr(holder, name)
    return holder, name


def arm(step: Step, passage: int) -> None:
    """Make this process die at the given passage of a step; 1 is the first."""
    holder, name = find(step.target)
    original = getattr(holder, name)
    passages = count(1)

    def is_due(*arguments: Any, **options: Any) -> bool:
        return (step.only is None or step.only(*arguments, **options)) and next(passages) == passage

    async def awaited(*arguments: Any, **options: Any) -> Any:
        due = is_due(*arguments, **options)
        if due and step.when == "before":
            die()
        if due and step.when == "during":
            asyncio.get_running_loop().call_later(0.0005, die)
        if due and step.when == "amid":
            options["source"] = _half(options["source"])
        result = await original(*arguments, **options)
        if due and step.when == "after":
            die()
        return result

    def called(*arguments: Any, **options: Any) -> Any:
        due = is_due(*arguments, **options)
        if due and step.when == "before":
            die()
        return original(*arguments, **options)

    if not inspect.iscoroutinefunction(original):
        assert step.when == "before", step
    setattr(holder, name, awaited if inspect.iscoroutinefunction(original) else called)


async def _half(rows: memoryview) -> AsyncIterator[bytes]:
    """Send the first half of a COPY to the server, then die."""
    yield bytes(rows[: len(rows) // 2])
    await asyncio.sleep(0.005)
    die()


def die() -> None:
    """End this process as if the machine had lost its power."""
    os.kill(os.getpid(), signal.SIGKILL)
