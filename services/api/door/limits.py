"""How often one client may ask."""

import time
from collections import OrderedDict
from collections.abc import Callable

# A client that is forgotten begins anew: nothing is lost by it once it has rested for two seconds.
CLIENTS_AT_MOST = 10_000
BURST_SECONDS = 2
# A client that asks too often and does not wait is held this long before it is refused. Of its refusals, over however
# many connections, so many a second are let go, as long as none waits for the longest.
HOLD_SECONDS = 0.5
HOLD_SECONDS_AT_MOST = 10.0
LET_GO_A_SECOND = 20
_NS = 1_000_000_000


class RateLimit:
    """So many requests a second of each client, and two seconds' worth of them at once.

    Kept is one number a client: when what it has used will have been earned back (the generic cell rate algorithm,
    ITU-T I.371).
    """

    def __init__(self, per_second: int, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._each_ns = _NS // per_second
        self._now_ns = now_ns
        self._earned_back_at_ns: OrderedDict[str, int] = OrderedDict()

    def take(self, client: str) -> float:
        """Count one request; return 0, or in how many seconds it may be asked: then it was not counted."""
        now_ns = self._now_ns()
        earned_back_at_ns = max(self._earned_back_at_ns.pop(client, now_ns), now_ns)
        wait_ns = earned_back_at_ns + self._each_ns - now_ns - BURST_SECONDS * _NS
        self._note(client, earned_back_at_ns + (self._each_ns if wait_ns <= 0 else 0))
        return max(wait_ns, 0) / _NS

    def add(self, client: str, requests: int) -> None:
        """Count what has been worth so many more requests than it was counted for: the next ones wait for it."""
        now_ns = self._now_ns()
        self._note(client, max(self._earned_back_at_ns.pop(client, now_ns), now_ns) + requests * self._each_ns)

    def _note(self, client: str, earned_back_at_ns: int) -> None:
        self._earned_back_at_ns[client] = earned_back_at_ns
        if len(self._earned_back_at_ns) > CLIENTS_AT_MOST:
            self._earned_back_at_ns.popitem(last=False)


class Holds:
    """When those who ask too often are refused: one of a client after the other, so that nobody else waits for them."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._last: OrderedDict[str, float] = OrderedDict()

    def seconds(self, client: str) -> float:
        """How long its next refusal is held."""
        now = self._now()
        earliest = max(now + HOLD_SECONDS, self._last.pop(client, now) + 1 / LET_GO_A_SECOND)
        self._last[client] = min(earliest, now + HOLD_SECONDS_AT_MOST)
        if len(self._last) > CLIENTS_AT_MOST:
            self._last.popitem(last=False)
        return self._last[client] - now
