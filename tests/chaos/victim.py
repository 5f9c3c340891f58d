"""A service in a process that can be made to die at a step, and whose clock can be moved while it runs.

Processes are forked from a server that has imported the services. So a start takes only the service's own work
(connecting, taking shards, loading their state), and not a second of imports. Nothing else is shared.
"""

import ctypes
import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from drawdown.serving import SERVICES
from tests.chaos.steps import STEPS, Step, arm, find

# Snapshots of a shard's state are written more often than every 20,000 entries, so that a run of minutes has some.
ENTRIES_BETWEEN_SNAPSHOTS = 3_000
PRELOAD = ["drawdown.serving", *(f"services.{name}.service" for name in SERVICES)]


@dataclass(frozen=True)
class Victim:
    """The description of a process: its service, its environment, and the step at which it dies."""

    service: str
    environment: dict[str, str]
    log: Path
    step: int | None = None  # An index of STEPS, because a Step contains functions, which cannot be pickled.
    passage: int = 1
    clock_file: Path | None = None


def run(victim: Victim) -> None:
    """Run the service in this process until it ends or dies."""
    _end_with_parent()
    output = os.open(victim.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stderr.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.update(victim.environment)
    random.seed()
    from drawdown.serving import serve
    from services.allocation.memory import snapshots

    snapshots.FEWEST_ENTRIES_BETWEEN = ENTRIES_BETWEEN_SNAPSHOTS
    for each in STEPS:
        find(each.target)
    if victim.step is not None:
        arm(STEPS[victim.step], victim.passage)
    if victim.clock_file is not None:
        _move_clock(victim.clock_file)
    serve(victim.service)


def index_of(step: Step) -> int:
    """Return the index with which a Victim names a step."""
    return STEPS.index(step)


def _end_with_parent() -> None:
    """Have the kernel kill this process when the server that forked it ends, so that none outlives the tests."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _move_clock(file: Path) -> None:
    """Add the offset in the file, in µs, to every reading of the clock."""
    from shared.runtime.clock import Clock

    true_us: Callable[[Clock], int] = Clock.now_us

    def now_us(self: Clock) -> int:
        return true_us(self) + int(file.read_text())

    Clock.now_us = now_us  # type: ignore[method-assign]
