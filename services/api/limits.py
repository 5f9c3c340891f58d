"""How often one client may ask."""

import time
from collections import OrderedDict
from collections.abc import Callable

# A client that is forgotten begins anew: nothing is lost by it once it has rested for two seconds.
CLIENTS_AT_MOST = 10_000
BURST_SECONDS = 2


class RateLimit:
    """So many requests a second of each client, and two seconds' worth of them at once.

    Kept is one number a client: when what it has used will have been earned back (the generic cell rate algorithm,
    ITU-T I.371).
    """

    def __init__(self, per_second: int, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds_each = 1 / per_second
        self._now = now
        self._earned_back_at: OrderedDict[str, float] = OrderedDict()

    def take(self, client: str) -> float:
        """Count one request; return 0, or after how many seconds it may be asked, and then it was not counted."""
        now = self._now()
        earned_back_at = max(self._earned_back_at.pop(client, now), now) + self._seconds_each
        wait_seconds = earned_back_at - now - BURST_SECONDS
        if wait_seconds > 0:
            earned_back_at -= self._seconds_each
        self._earned_back_at[client] = earned_back_at
        if len(self._earned_back_at) > CLIENTS_AT_MOST:
            self._earned_back_at.popitem(last=False)
        return max(wait_seconds, 0.0)
