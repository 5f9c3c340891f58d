"""Parts of the benchmarks that run in a process of their own, so that they do not delay what measures."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drawdown.local.processes import Child, spawn
from drawdown.local.system import environment_of
from tests.benchmarks.bench import Bench

LONGEST_SECONDS = 300.0


class ChildFailedError(Exception):
    """A child did not end well; the message is what it printed."""


@dataclass
class Running:
    """A child and what it prints to."""

    child: Child
    log: Path

    async def answer(self) -> dict[str, Any]:
        """Wait for its end; answer the JSON of its last line.

        Raises:
            ChildFailedError: it ended with an error, or not in time.

        """
        ended = await self.child.wait(LONGEST_SECONDS)
        printed = self.log.read_text(errors="replace")
        if not ended or self.child.exit_code() != 0:
            raise ChildFailedError(printed[-2000:])
        return dict(json.loads(printed.splitlines()[-1]))


@contextlib.asynccontextmanager
async def child(bench: Bench, module: str, *arguments: str) -> AsyncIterator[Running]:
    """Run a module of this package beside us, with the settings of the system; at the end it is gone."""
    log = bench.settings.data_dir / "logs" / f"bench-{module}.log"
    log.unlink(missing_ok=True)
    running = Running(
        spawn(
            [sys.executable, "-m", f"tests.benchmarks.{module}", *arguments],
            log=log,
            environment={**os.environ, **environment_of(bench.settings)},
        ),
        log,
    )
    try:
        yield running
    finally:
        running.child.send(signal.SIGTERM)
        await running.child.stop()


async def run_child(bench: Bench, module: str, *arguments: str) -> dict[str, Any]:
    """Run a module of this package to its end and answer what it says."""
    async with child(bench, module, *arguments) as running:
        return await running.answer()
