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
    """Whose rights a child has."""

    user: int
    group: int


class _Guardian:
    """Our end of the pipe to the guardian process, which is started with the first child."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._started_by = 0

    def add(self, pid: int, number: int) -> None:
        self._tell(f"+{pid} {number}\n")

    def remove(self, pid: int) -> None:
        self._tell(f"-{pid}\n")

    def start(self, keep_open: Sequence[int] = ()) -> None:
        """Start it unless it is there. Not shared with forks of this process: they look after their own."""
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
        """Let it go, and wait until it has ended those of its wards that are left."""
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
    """Start the guardian before the first child does; it keeps these file descriptors open until all have ended."""
    _guardian.start(keep_open)


class Child:
    """A running child process, in a session of its own, its output appended to a file."""

    def __init__(self, process: "subprocess.Popen[bytes]", polite: signal.Signals) -> None:
        self._process = process
        self._polite = polite
        self._forgotten = False

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        code = self._process.poll()
        if code is not None and not self._forgotten:
            self._forgotten = True
            _guardian.remove(self.pid)
        return code

    def send(self, number: int) -> None:
        """Send a signal; nothing happens if it has ended."""
        self._process.send_signal(number)

    async def wait(self, seconds: float) -> bool:
        """Wait for its end; False when it still runs after `seconds`."""
        give_up_at = time.monotonic() + seconds
        while self.exit_code() is None:
            if time.monotonic() >= give_up_at:
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True

    async def stop(self, seconds: float = 10.0) -> None:
        """Ask it to end, and kill it when it has not after `seconds`."""
        if self.exit_code() is None:
            self.send(self._polite)
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
    polite: signal.Signals = signal.SIGTERM,
) -> Child:
    """Start a child.

    Args:
        arguments: the program and its arguments.
        log: the file its output is appended to.
        environment: the whole of it; none: ours.
        directory: where it works; none: here.
        identity: whose rights it has; none: ours.
        polite: the signal that asks it to end.

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
    _guardian.add(process.pid, polite)
    return Child(process, polite)


def is_alive(pid: int) -> bool:
    """Whether there is a process of that id, whosever it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid > 0
