"""Child processes that never outlive their parent, however it ends."""

import asyncio
import atexit
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from drawdown.local import guardian

_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Identity:
    """The ids of the user and the group that a child process runs as."""

    user: int
    group: int


class _Guardian:
    """Our end of the pipe to the guardian process, which starts with the first child."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._started_by = 0

    def add(self, pid: int, number: int) -> None:
        self._tell(f"+{pid} {number}\n")

    def remove(self, pid: int) -> None:
        self._tell(f"-{pid}\n")

    def start(self, keep_open: Sequence[int] = ()) -> None:
        """Start the guardian unless it runs. A fork of this process starts its own."""
        if self._process is not None and self._started_by == os.getpid() and self._process.poll() is None:
            return
        self._started_by = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", guardian.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            pass_fds=keep_open,
        )

        atexit.register(self._dismiss, self._process)

    @staticmethod
    def _dismiss(process: "subprocess.Popen[bytes]") -> None:
        """Close the pipe, and wait until the guardian has ended the remaining children."""
        assert process.stdin is not None
        process.stdin.close()
        process.wait()

    def _tell(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode())
        self._process.stdin.flush()


_guardian = _Guardian()


def start_guardian(keep_open: Sequence[int] = ()) -> None:
    """Start the guardian before the first child. It keeps these file descriptors open until all children have ended."""
    _guardian.start(keep_open)


class Child:
    """A child process in its own session, whose output is appended to a file."""

    def __init__(self, process: "subprocess.Popen[bytes]", stop_signal: signal.Signals) -> None:
        self._process = process
        self._stop_signal = stop_signal
        self._forgotten = False

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """Return the exit code, or None while the process runs. A negative code is the signal that ended it."""
        code = self._process.poll()
        if code is not None and not self._forgotten:
            self._forgotten = True
            _guardian.remove(self.pid)
        return code

    def send(self, number: int) -> None:
        """Send a signal. Does nothing if the process has ended."""
        self._process.send_signal(number)

    async def wait(self, seconds: float) -> bool:
        """Wait for the process to end. Returns False if it still runs after `seconds`."""
        give_up_at = time.monotonic() + seconds
        while self.exit_code() is None:
            if time.monotonic() >= give_up_at:
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True

    async def stop(self, seconds: float = 10.0) -> None:
        """Send the stop signal, and kill the process if it still runs after `seconds`."""
        if self.exit_code() is None:
            self.send(self._stop_signal)
        if not await self.wait(seconds):
            self.send(signal.SIGKILL)
            await self.wait(seconds)


def spawn(
    arguments: Sequence[str | Path],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    identity: Identity | None = None,
    stop_signal: signal.Signals = signal.SIGTERM,
) -> Child:
    """Start a child process, which ends at the latest when this process does.

    Args:
        arguments: the program and its arguments.
        log: the file to which its output is appended.
        environment: its whole environment; None means ours.
        directory: its working directory; None means ours.
        identity: the user and the group it runs as; None means ours.
        stop_signal: the signal that asks it to end.

    Raises:
        OSError: the program cannot be started.

    """
    _guardian.start()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(argument) for argument in arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if environment is None else dict(environment),
            cwd=directory,
            start_new_session=True,
            user=identity.user if identity else None,
            group=identity.group if identity else None,
            extra_groups=[] if identity else None,
        )
    _guardian.add(process.pid, stop_signal)
    return Child(process, stop_signal)


def is_alive(pid: int) -> bool:
    """Return whether a process with that id exists, even if another user owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0
