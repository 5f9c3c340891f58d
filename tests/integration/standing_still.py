"""Servers that do not answer and do not refuse either: processes stopped by a signal."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def standing_still(*pids: int | None) -> Iterator[None]:
    """Stop these processes and all that they started; they go on at the end."""
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
    """The parent first: it starts no other then."""
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, signal.SIGSTOP)
        stopped.append(pid)
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            _stop(int(child), stopped)
