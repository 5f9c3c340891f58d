"""How far each shard is behind its topics, for how long, and whether it moves: asked of the broker, beside the writing.

Kafka's own tools know nothing of it, for there is no consumer group. A worker that hangs says nothing either.
"""

import asyncio
import contextlib
from collections import deque
from time import monotonic

from services.allocation import metrics
from services.allocation.lease import Lease
from services.allocation.worker import Worker
from shared.runtime.kafka import CONSUMED

LOOK_SECONDS = 1.0
ANSWER_SECONDS = 4.0
STUCK_SECONDS = 10.0  # Many times what the largest batch takes.


class ShardLag:
    """What looking at one shard's topics again and again has shown."""

    def __init__(self) -> None:
        self.records = 0
        # (when, the ends of the topics then): what is decided up to those ends was published before that moment.
        self._seen: deque[tuple[float, tuple[int, ...]]] = deque()
        self._decided: tuple[int, ...] = ()
        self._moved_at = monotonic()

    def look(self, now: float, ends: tuple[int, ...], decided: tuple[int, ...]) -> None:
        """Take in the topics' ends and the offsets that the ledger wants next."""
        if decided != self._decided:
            self._moved_at = now
        self._decided = decided
        self.records = sum(max(0, end - offset) for end, offset in zip(ends, decided, strict=True))
        self._seen.append((now, ends))
        while len(self._seen) > 1 and _reaches(decided, self._seen[1][1]):
            self._seen.popleft()

    def seconds(self, now: float) -> float:
        """How long the oldest record that waits has waited, at most; 0 where none does."""
        return now - self._seen[0][0] if self.records else 0.0

    def is_stuck(self, now: float) -> bool:
        """Whether records wait and none was decided for long."""
        return min(self.seconds(now), now - self._moved_at) > STUCK_SECONDS


def _reaches(decided: tuple[int, ...], ends: tuple[int, ...]) -> bool:
    return all(offset >= end for offset, end in zip(decided, ends, strict=True))


async def watch_lag(worker: Worker, lags: dict[int, ShardLag]) -> None:
    """Keep `lags` and the metrics up to date for a shard that is being written, until cancelled.

    It asks over the worker's consumer, so it ends before that is closed. What was last known of the shard stays.
    """
    while True:
        await _look(worker, lags)
        await asyncio.sleep(LOOK_SECONDS)


async def _look(worker: Worker, lags: dict[int, ShardLag]) -> None:
    """Look at one shard; with a broker that does not answer the last ends count: what waits still waits.

    Whatever it raises is no matter of the writing.
    """
    with contextlib.suppress(Exception):
        async with asyncio.timeout(ANSWER_SECONDS):
            ends = await worker.ends()
        lease = worker.lease
        decided = (lease.spend_offset, lease.command_offset)
        lag = lags.setdefault(lease.shard, ShardLag())
        lag.look(monotonic(), ends, decided)
        _tell(lease, ends, decided, lag)


def _tell(lease: Lease, ends: tuple[int, ...], decided: tuple[int, ...], lag: ShardLag) -> None:
    for topic, end, offset in zip(CONSUMED, ends, decided, strict=True):
        metrics.LAG.labels(lease.shard, topic).set(max(0, end - offset))
    metrics.LAG_SECONDS.labels(lease.shard).set(lag.seconds(monotonic()))
