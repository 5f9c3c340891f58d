"""The lag of each shard: how many records wait, for how long, and whether any is decided.

The broker is asked while the shard is being written, and also while it is not, which is when records wait. Kafka's own
tools do not know the lag, because there is no consumer group, and a worker that hangs reports nothing.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic
from typing import NoReturn

from aiokafka import AIOKafkaConsumer, TopicPartition

from services.allocation import metrics
from services.allocation.lease import Lease
from services.allocation.worker import Worker
from shared.runtime.kafka import CONSUMED, start_client, stop_client
from shared.runtime.settings import Settings
from shared.runtime.stopping import close_within

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
        self._fetched: tuple[int, ...] = (0, 0)
        self._moved_at = monotonic()

    def note_fetched(self, offsets: tuple[int, ...]) -> None:
        """Note the offsets after the records that a worker has fetched: the topics reach at least to there.

        The embedded broker counts only up to the start of its last batch, and a fetch may have seen a later end.
        """
        self._fetched = tuple(map(max, offsets, self._fetched))

    def look(self, now: float, ends: tuple[int, ...], decided: tuple[int, ...]) -> None:
        """Note the end offsets of the topics and the next offsets of the ledger, at `now` in monotonic seconds."""
        ends = tuple(map(max, ends, self._fetched))
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
        _note(worker.lease, ends, lags)


async def watch_unwritten(
    settings: Settings, unwritten: Callable[[], Mapping[int, Lease]], lags: dict[int, ShardLag]
) -> NoReturn:
    """Keep `lags` and the metrics up to date for the shards that this process holds and does not write at the moment.

    Errors of the broker are ignored: the last known lag stays, because the records still wait.

    Args:
        settings: how to reach the broker.
        unwritten: returns the leases of these shards, by shard, as they are now.
        lags: the lag of each shard, which this changes.

    """
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if unwritten():
            with contextlib.suppress(Exception):
                await _look_at_unwritten(settings, unwritten, lags)


async def _look_at_unwritten(
    settings: Settings, unwritten: Callable[[], Mapping[int, Lease]], lags: dict[int, ShardLag]
) -> None:
    """Look once a second, over one connection, until all shards are written."""
    consumer = await start_client(
        settings, AIOKafkaConsumer, isolation_level="read_committed", client_id="drawdown-lag"
    )
    try:
        while shards := sorted(unwritten()):
            partitions = [TopicPartition(topic, shard) for shard in shards for topic in CONSUMED]
            async with asyncio.timeout(ANSWER_SECONDS):
                ends = await consumer.end_offsets(partitions)
            for shard, lease in unwritten().items():  # Asked again, because some may be written or released by now.
                if shard in shards:
                    _note(lease, tuple(ends[TopicPartition(topic, shard)] for topic in CONSUMED), lags)
            await asyncio.sleep(LOOK_SECONDS)
    finally:
        await close_within(stop_client(consumer))


def _note(lease: Lease, ends: tuple[int, ...], lags: dict[int, ShardLag]) -> None:
    decided = (lease.spend_offset, lease.command_offset)
    lag = lags.setdefault(lease.shard, ShardLag())
    lag.look(monotonic(), ends, decided)
    _tell(lease, ends, decided, lag)


def _tell(lease: Lease, ends: tuple[int, ...], decided: tuple[int, ...], lag: ShardLag) -> None:
    for topic, end, offset in zip(CONSUMED, ends, decided, strict=True):
        metrics.LAG.labels(lease.shard, topic).set(max(0, end - offset))
    metrics.LAG_SECONDS.labels(lease.shard).set(lag.seconds(monotonic()))
