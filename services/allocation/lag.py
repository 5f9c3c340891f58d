"""The lag of each shard: how many records wait, for how long, and whether any is decided.

The broker is asked while the shard is being written. Kafka's own tools do not know the lag, because there is no
consumer group, and a worker that hangs reports nothing.
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
STUCK_SECONDS = 10.0  # many times as long as the largest batch takes


class ShardLag:
    """The lag of one shard, from repeated looks at its topics."""

    def __init__(self) -> None:
        self.records = 0
        # (time, end offsets of the topics then): records below those offsets were published before that time.
        self._seen: deque[tuple[float, tuple[int, ...]]] = deque()
        self._decided: tuple[int, ...] = ()
        self._moved_at = monotonic()

    def look(self, now: float, ends: tuple[int, ...], decided: tuple[int, ...]) -> None:
        """Note the end offsets of the topics and the next offsets of the ledger, at `now` in monotonic seconds."""
        if decided != self._decided:
            self._moved_at = now
        self._decided = decided
        self.records = sum(max(0, end - offset) for end, offset in zip(ends, decided, strict=True))
        self._seen.append((now, ends))
        while len(self._seen) > 1 and _reaches(decided, self._seen[1][1]):
            self._seen.popleft()

    def seconds(self, now: float) -> float:
        """Return for how many seconds the oldest waiting record has waited at most; 0 if no record waits."""
        return now - self._seen[0][0] if self.records else 0.0

    def is_stuck(self, now: float) -> bool:
        """Return whether records wait and none was decided for `STUCK_SECONDS`."""
        return min(self.seconds(now), now - self._moved_at) > STUCK_SECONDS


def _reaches(decided: tuple[int, ...], ends: tuple[int, ...]) -> bool:
    return all(offset >= end for offset, end in zip(decided, ends, strict=True))


async def watch_lag(worker: Worker, lags: dict[int, ShardLag]) -> None:
    """Keep `lags` and the metrics up to date for a shard that is being written, until cancelled.

    This uses the worker's consumer, so it must end before that is closed. The last known lag of the shard stays.
    """
    while True:
        await _look(worker, lags)
        await asyncio.sleep(LOOK_SECONDS)


async def _look(worker: Worker, lags: dict[int, ShardLag]) -> None:
    """Look at one shard. If the broker does not answer, the last known ends stay, because the records still wait.

    Errors are ignored, because they must not disturb the writing.
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
