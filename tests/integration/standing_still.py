"""Servers that neither answer nor refuse, because a signal has stopped their processes."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def standing_still(*pids: int | None) -> Iterator[None]:
    """Stop these processes and their children while the block runs; then let them continue."""
    stopped: list[int] = []
    try:
        for pid in pids:
            assert pid is not None
            _stop(pid, stopped)
        yield
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _stop(pid: int, stopped: list[int]) -> None:
    """Stop the parent first, so that it starts no other child."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, signal.SIGSTOP)
        stopped.append(pid)
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            _stop(int(child), stopped)
