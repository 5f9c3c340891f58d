"""Ends the child processes of a supervisor that died suddenly (kill -9, a closed terminal, a crash).

It runs as a separate script in its own session, and uses only the standard library. The supervisor holds the only other
end of its standard input, and writes lines to it: `+PID SIGNAL` adds a child and the signal that stops it, and `-PID`
removes one that has ended. When the input ends, it sends the remaining children their signals, and kills those that do
not end within ten seconds.
"""

import contextlib
import os
import signal
import sys
import time

PATIENCE_SECONDS = 10.0


def main() -> None:
    """Track the supervisor's children until it has gone, then end them."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    children: dict[int, int] = {}
    for line in sys.stdin:
        if line.startswith("+"):
            pid, number = line[1:].split()
            children[int(pid)] = int(number)
        else:
            children.pop(int(line[1:]), None)
    _end(children)


def _end(children: dict[int, int]) -> None:
    for pid, number in children.items():
        _signal(pid, number)
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while any(_signal(pid, 0) for pid in children) and time.monotonic() < give_up_at:
        time.sleep(0.05)
    for pid in children:
        _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: int) -> bool:
    """Send a signal; return whether there was such a process. Signal 0 only checks."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
        return True
    return False


if __name__ == "__main__":
    main()
