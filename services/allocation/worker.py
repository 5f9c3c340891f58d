"""The loop of one shard: take records, decide them, append them.

While a batch is being committed the next one is decoded, looked up and decided; so at most one batch is ahead of the
ledger. Whatever fails, memory is forgotten and the ledger loaded again: see `service`.
"""

import asyncio
from base64 import b64decode
from collections.abc import Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any

import asyncpg
import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import OffsetOutOfRangeError

from services.allocation import metrics, state
from services.allocation.batch import Decider, as_raw, decode, is_command, look_up
from services.allocation.decoding import Raw
from shared.ledger.append import BatchWrite, append
from shared.ledger.lease import Lease
from shared.rules.policy import Policy
from shared.rules.shard import Shard
from shared.runtime.clock import Clock
from shared.runtime.errors import CannotGoOnError
from shared.runtime.kafka import FINANCE_COMMANDS, SPEND_EVENTS

log = structlog.get_logger()

MOST_RECORDS = 5_000
LONGEST_WAIT_SECONDS = 1.0


class OffsetsDoNotFitError(CannotGoOnError):
    """The topic does not hold the records that come next: some would be skipped. The message says what to do."""


class Worker:
    """Writes one shard as long as it owns it."""

    def __init__(
        self,
        lease: Lease,
        rules: Shard,
        policy: Policy,
        shards: int,
        consumer: AIOKafkaConsumer,
        reading: asyncpg.Connection,
        writing: asyncpg.Connection,
        clock: Clock,
        outcomes_written: asyncio.Event,
    ) -> None:
        self.lease = lease
        self._rules = rules
        self._policy = policy
        self._decider = Decider(lease.shard, shards, rules, policy)
        self._consumer = consumer
        self._reading = reading
        self._writing = writing
        self._clock = clock
        self._outcomes_written = outcomes_written
        self._spends = TopicPartition(SPEND_EVENTS, lease.shard)
        self._commands = TopicPartition(FINANCE_COMMANDS, lease.shard)
        self._next = {self._spends: lease.spend_offset, self._commands: lease.command_offset}
        self._taking: set[int] = set()
        self._wake = asyncio.Event()
        self._wake.set()
        self._stopping = False
        self._commit: asyncio.Task[None] | None = None
        self._next_snapshot = lease.position + state.entries_between(rules)

    def wake(self) -> None:
        """Records wait in the table of forwarded ones."""
        self._wake.set()

    async def ends(self) -> tuple[int, ...]:
        """Where the topics of spends and of commands end now, as far as the broker counts."""
        partitions = (self._spends, self._commands)
        ends = await self._consumer.end_offsets(partitions)
        # The embedded broker counts up to the start of its last batch; a fetch may know better.
        known = (max(ends[partition], self._consumer.highwater(partition) or 0) for partition in partitions)
        return tuple([await self._last_record(*each) for each in zip(partitions, known, strict=True)])

    async def _last_record(self, partition: TopicPartition, end: int) -> int:
        """The end, or the offset behind the last record where all that follows it are ends of transactions."""
        position = await self._consumer.position(partition)
        return self._next[partition] if position >= end else end

    def stop(self) -> None:
        """Finish what is under way, keep the state, and end."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Write until stopped. Raises what went wrong; then memory may be ahead of the ledger and must be dropped."""
        fetch: asyncio.Task[Any] | None = None
        woken: asyncio.Task[Any] = asyncio.create_task(self._wake.wait())
        try:
            while not self._stopping:
                if fetch is None:
                    fetch = asyncio.create_task(self._fetch())
                waiting = {fetch, woken} if self._commit is None else {fetch, woken, self._commit}
                await asyncio.wait(waiting, timeout=self._patience(), return_when=asyncio.FIRST_COMPLETED)
                if self._commit is not None and self._commit.done():
                    await self._committed()
                forwarded: list[Raw] = []
                if woken.done():
                    self._wake.clear()
                    woken = asyncio.create_task(self._wake.wait())
                    forwarded = await self._read_forwarded()
                records: dict[TopicPartition, list[Any]] = {}
                if fetch.done():
                    records, fetch = fetch.result(), None
                await self._process(records, forwarded)
            await self._finish()
        finally:
            await _cancel(fetch, woken, self._commit)

    async def _fetch(self) -> dict[TopicPartition, list[Any]]:
        try:
            records: dict[TopicPartition, list[Any]] = await self._consumer.getmany(
                timeout_ms=int(LONGEST_WAIT_SECONDS * 1000), max_records=MOST_RECORDS
            )
        except OffsetOutOfRangeError as error:
            raise OffsetsDoNotFitError(
                f"shard {self.lease.shard}: Kafka does not have the offsets that come next ({error}): the topic was"
                " made anew; 'drawdown offsets adopt' starts from its beginning"
            ) from error
        return records

    def _patience(self) -> float:
        """How long nothing may come before something is due, in seconds."""
        due = self._rules.next_due()
        if due is None:
            return LONGEST_WAIT_SECONDS
        return min(LONGEST_WAIT_SECONDS, max(0.0, (due - self._clock.now_us()) / 1e6))

    def _is_due(self) -> bool:
        due = self._rules.next_due()
        return due is not None and due <= self._clock.now_us()

    async def _read_forwarded(self) -> list[Raw]:
        rows = await self._reading.fetch(
            'SELECT id, topic, partition, "offset", key, raw, headers FROM ledger.forwarded'
            " WHERE shard = $1 AND id <> ALL($2) ORDER BY id LIMIT $3",
            self.lease.shard,
            list(self._taking),
            MOST_RECORDS,
        )
        if len(rows) == MOST_RECORDS:
            self._wake.set()
        return [
            Raw(
                row["topic"],
                row["partition"],
                row["offset"],
                row["key"],
                row["raw"],
                _headers(row["headers"]),
                row["id"],
            )
            for row in rows
        ]

    async def _process(self, records: dict[TopicPartition, list[Any]], forwarded: list[Raw]) -> None:
        spends = records.get(self._spends, [])
        commands = records.get(self._commands, [])
        if not (spends or commands or forwarded or self._is_due()):
            return
        started = perf_counter()
        write = BatchWrite(
            recorded_at=0,
            policy_version=self._policy.version,
            spend_offset=self._after(self._spends, spends),
            command_offset=self._after(self._commands, commands),
            taken=[raw.forwarded_id for raw in forwarded if raw.forwarded_id is not None],
        )
        self._taking.update(write.taken)
        decoded = await decode(
            [raw for raw in forwarded if is_command(raw.topic)]
            + [as_raw(record, *self._commands) for record in commands],
            [raw for raw in forwarded if not is_command(raw.topic)] + spends,
        )
        known = await look_up(self._reading, self.lease.shard, self._rules, decoded)
        await self._decider.decide(decoded, known, max(self._clock.now_us(), self.lease.ledger_time), write)
        await self._committed()
        metrics.BATCH_RECORDS.observe(len(spends) + len(commands) + len(forwarded))
        self._commit = asyncio.create_task(self._append(write, started))
        if self.lease.position + len(write.rows) >= self._next_snapshot:
            await self._keep_state()

    def _after(self, partition: TopicPartition, records: Sequence[Any]) -> int:
        """The offset after these records, which must not go back."""
        expected = self._next[partition]
        if records:
            if records[0].offset < expected:
                raise OffsetsDoNotFitError(f"{partition} gave offset {records[0].offset}, {expected} comes next")
            self._next[partition] = records[-1].offset + 1
            end = self._consumer.highwater(partition)
            if end is not None:
                lag = max(0, end - self._next[partition])
                metrics.LAG.labels(self.lease.shard, partition.topic).set(lag)
        return self._next[partition]

    async def _append(self, write: BatchWrite, started: float) -> None:
        nothing = not (write.rows or write.outcomes or write.quarantined or write.forwarded or write.taken)
        if nothing and (write.spend_offset, write.command_offset) == (
            self.lease.spend_offset,
            self.lease.command_offset,
        ):
            return
        await append(self._writing, self.lease, write)
        self._taking.difference_update(write.taken)
        metrics.POSITION.labels(self.lease.shard).set(self.lease.position)
        metrics.BATCH_SECONDS.observe(perf_counter() - started)
        if write.outcomes:
            self._outcomes_written.set()

    async def _committed(self) -> None:
        """Wait until the batch before is in the ledger."""
        if self._commit is not None:
            await self._commit
            self._commit = None

    async def _keep_state(self) -> None:
        """Keep the state as of the last batch, in a transaction of its own that the lease guards too."""
        await self._committed()
        write = BatchWrite(
            self.lease.ledger_time, self._policy.version, self.lease.spend_offset, self.lease.command_offset
        )
        write.snapshot = state.dump(self._rules, self.lease.tree)
        await append(self._writing, self.lease, write)
        self._next_snapshot = self.lease.position + state.entries_between(self._rules)

    async def _finish(self) -> None:
        await self._committed()
        if self._next_snapshot - state.entries_between(self._rules) < self.lease.position:
            await self._keep_state()


def _headers(kept: list[list[str]] | None) -> list[tuple[str, bytes]]:
    return [(name, b64decode(value)) for name, value in kept or []]


async def _cancel(*tasks: asyncio.Task[Any] | None) -> None:
    for task in tasks:
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task
