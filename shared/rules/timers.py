"""The timers of a shard: grants that expire, and days that begin.

Timers that are due at one moment fire in the order of their fields. So expiries come before turn-overs, and nothing
seems to deliver in between.
"""

import heapq
from collections.abc import Callable
from typing import Final, NamedTuple

from shared.rules.state import AdAccount, BusinessCenter, Grant

EXPIRY: Final = 0
TURN_OVER: Final = 1
FEWEST_IDLE: Final = 1000


class Timer(NamedTuple):
    """A timer that is due at `due`, in µs since the Unix epoch.

    For an expiry `name` is the grant's kind and `id` its id. For a turn-over `name` is the ad account's id and `id` is
    empty.
    """

    due: int
    kind: int
    business_center_id: str
    name: str
    id: str


class Timers:
    """The timers of a shard, the next one first. `idle` counts those of grants that have left memory."""

    __slots__ = ("_heap", "idle")

    def __init__(self) -> None:
        self._heap: list[Timer] = []
        self.idle = 0

    def __len__(self) -> int:
        return len(self._heap)

    def next_due(self) -> int | None:
        """Return when the next timer is due, in µs since the Unix epoch, or None if there is no timer."""
        return self._heap[0].due if self._heap else None

    def is_due(self, now: int) -> bool:
        """Return whether a timer is due at `now` (µs) or was due before."""
        return bool(self._heap) and self._heap[0].due <= now

    def pop(self) -> Timer:
        """Take out and return the next timer. Raise IndexError if there is none."""
        return heapq.heappop(self._heap)

    def add_expiry(self, center: BusinessCenter, grant: Grant) -> None:
        """Schedule the expiry of a grant, if it can still expire."""
        if grant.expires_at is not None and not grant.expired:
            heapq.heappush(self._heap, Timer(grant.expires_at, EXPIRY, center.id, grant.kind, grant.id))

    def add_turn_over(self, account: AdAccount) -> None:
        """Schedule a look at an ad account's budgets at its `turn_over_at`, unless that is None."""
        if account.turn_over_at is not None:
            due = Timer(account.turn_over_at, TURN_OVER, account.business_center.id, account.id, "")
            heapq.heappush(self._heap, due)

    def take_turn_overs(self) -> list[Timer]:
        """Take out and return all turn-overs, because the days of the time zones have changed."""
        taken = [timer for timer in self._heap if timer.kind == TURN_OVER]
        self._heap = [timer for timer in self._heap if timer.kind != TURN_OVER]
        heapq.heapify(self._heap)
        return taken

    def forget_idle(self, is_in_memory: Callable[[Timer], bool]) -> None:
        """Drop the expiries of grants that have left memory, once there are many of them."""
        if self.idle > FEWEST_IDLE and self.idle > len(self._heap) // 2:
            self._heap = sorted({timer for timer in self._heap if timer.kind != EXPIRY or is_in_memory(timer)})
            self.idle = 0
