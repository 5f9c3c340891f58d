"""Limits how often one client may send requests."""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

# The oldest client is forgotten, and starts again with its full burst. After two seconds of rest it has that anyway.
CLIENTS_AT_MOST = 10_000
BURST_SECONDS = 2
# A client that asks too often and does not wait is held this long before it is refused. Over all its connections, this
# many refusals a second are sent, and none is held longer than the maximum.
HOLD_SECONDS = 0.5
HOLD_SECONDS_AT_MOST = 10.0
LET_GO_A_SECOND = 20
_NS = 1_000_000_000

_Number = TypeVar("_Number", int, float)


class RateLimit:
    """Allows each client `per_second` requests a second, and two seconds' worth of them at once.

    It keeps one number for each client: when the client will have earned back what it has used (the generic cell rate
    algorithm, ITU-T I.371).
    """

    def __init__(self, per_second: int, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._each_ns = _NS // per_second
        self._now_ns = now_ns
        self._earned_back_at_ns: OrderedDict[str, int] = OrderedDict()

    def take(self, client: str) -> float:
        """Count one request and return 0; or return the seconds to wait, in which case it was not counted."""
        now_ns = self._now_ns()
        earned_back_at_ns = max(self._earned_back_at_ns.get(client, now_ns), now_ns)
        wait_ns = earned_back_at_ns + self._each_ns - now_ns - BURST_SECONDS * _NS
        _note(self._earned_back_at_ns, client, earned_back_at_ns + (self._each_ns if wait_ns <= 0 else 0))
        return max(wait_ns, 0) / _NS

    def add(self, client: str, requests: int) -> None:
        """Count a request as this many more, because it cost that much; the client's next requests wait for it."""
        now_ns = self._now_ns()
        earned_back_at_ns = max(self._earned_back_at_ns.get(client, now_ns), now_ns)
        _note(self._earned_back_at_ns, client, earned_back_at_ns + requests * self._each_ns)


class Holds:
    """Delays the refusals of clients that ask too often, one of a client at a time, so that no other client waits."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last: OrderedDict[str, float] = OrderedDict()

    def seconds(self, client: str) -> float:
        """Return how long the client's next refusal is held, in seconds."""
        now = self._now()
        earliest = max(now + HOLD_SECONDS, self._last.get(client, now) + 1 / LET_GO_A_SECOND)
        _note(self._last, client, min(earliest, now + HOLD_SECONDS_AT_MOST))
        return self._last[client] - now


def _note(numbers: OrderedDict[str, _Number], client: str, number: _Number) -> None:
    """Keep a client's number and make it the newest client; forget the oldest if there are too many."""
    numbers[client] = number
    numbers.move_to_end(client)
    if len(numbers) > CLIENTS_AT_MOST:
        numbers.popitem(last=False)
