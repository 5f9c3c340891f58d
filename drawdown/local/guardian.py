"""Ends the processes of a supervisor that died without a word (kill -9, power of the terminal, a crash).

Run as a script of its own, standard library only, in a session of its own. It reads lines from its standard input,
whose other end only the supervisor holds: `+PID SIGNAL` (look after it, and this is how it is asked to end) and
`-PID` (it has ended). At the end of the input it asks those that are left to end, and kills what does not.
"""

import contextlib
import os
import signal
import sys
import time

PATIENCE_SECONDS = 10.0


def main() -> None:
    """Look after the processes until the supervisor is gone."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    wards: dict[int, int] = {}
    for line in sys.stdin:
        if line.startswith("+"):
            pid, number = line[1:].split()
            wards[int(pid)] = int(number)
        else:
            wards.pop(int(line[1:]), None)
    _end(wards)


def _end(wards: dict[int, int]) -> None:
    for pid, number in wards.items():
        _signal(pid, number)
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while any(_signal(pid, 0) for pid in wards) and time.monotonic() < give_up_at:
        time.sleep(0.05)
    for pid in wards:
        _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: int) -> bool:
    """Whether there was such a process."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
        return True
    return False


if __name__ == "__main__":
    main()
