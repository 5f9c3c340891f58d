"""Runs parts of the benchmarks in separate processes, so that they do not delay the measurement."""

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
    """A child failed. The message is its output."""


@dataclass
class Running:
    """A child process and the file of its output."""

    child: Child
    log: Path

    async def answer(self) -> dict[str, Any]:
        """Wait for the child to end; return the JSON in its last line.

        Raises:
            ChildFailedError: the child ended with an error, or not in time.

        """
        ended = await self.child.wait(LONGEST_SECONDS)
        printed = self.log.read_text(errors="replace")
        if not ended or self.child.exit_code() != 0:
            raise ChildFailedError(printed[-2000:])
        return dict(json.loads(printed.splitlines()[-1]))


@contextlib.asynccontextmanager
async def child(bench: Bench, module: str, *arguments: str) -> AsyncIterator[Running]:
    """Run a module of this package as a child, with the settings of the system, and end it at the end."""
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
    """Run a module of this package to its end; return its answer."""
    async with child(bench, module, *arguments) as running:
        return await running.answer()
