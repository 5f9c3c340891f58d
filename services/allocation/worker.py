"""The loop of one shard: take records, decide them, append them.

While a batch is being committed, the next one is decoded, looked up and decided. So memory is at most one batch ahead
of the ledger. After any failure `service` drops the memory and loads the ledger again.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final, NamedTuple

import asyncpg
import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import OffsetOutOfRangeError

from services.allocation import metrics
from services.allocation.clock_guard import LARGEST_DIFFERENCE_US, ClockGuard
from services.allocation.deciding import Decider, Decision
from services.allocation.failures import (
    AccountTakenError,
    BatchFailedError,
    Failures,
    PlaceTakenError,
    RecordFailedError,
    describe,
    is_of_the_records,
    is_taken_account,
    is_taken_place,
)
from services.allocation.lease import Lease
from services.allocation.memory import snapshots
from services.allocation.memory.limits import CampaignMemory
from services.allocation.memory.looking_up import look_up, within_memory
from services.allocation.memory.snapshots import Loaded
from services.allocation.records import batch_bounds
from services.allocation.records.batch_decoding import DecodedRecords, as_raw, decode, is_command, next_offset
from services.allocation.records.consuming import OffsetsDoNotFitError
from services.allocation.records.quarantine_rows import is_too_large, short_record, unreadable_record
from services.allocation.records.record_decoding import Raw
from services.allocation.shard_states import ShardState
from services.allocation.writing import account_locks
from services.allocation.writing.append import BatchWrite, append
from shared.contracts.fields import format_time
from shared.contracts.signatures import CommandKeys
from shared.ledger.headers import read_headers
from shared.ledger.zones import zones_to_write_with
from shared.rules.policy import Policy
from shared.runtime.clock import Clock
from shared.runtime.kafka import FINANCE_COMMANDS, SPEND_EVENTS
from shared.runtime.postgres import is_lost

log = structlog.get_logger()

LONGEST_WAIT_SECONDS = 1.0
FORWARDED_SECONDS = 5.0  # the longest time between two looks for forwarded records: a notification may be lost
DISAGREEING_SECONDS = 0.25  # the time between two comparisons of clocks that disagree


@dataclass(frozen=True, slots=True)
class OfTheProcess:
    """What all workers of a process share. `shards` is the number of shards of the ledger."""

    policy: Policy
    shards: int
    clock: Clock
    guard: ClockGuard
    memory: CampaignMemory
    keys: CommandKeys


class Connections(NamedTuple):
    """The connections of one worker: to the shard's partitions, and to the ledger for reads and for its batches."""

    consumer: AIOKafkaConsumer
    reading: asyncpg.Connection
    writing: asyncpg.Connection


class Worker:
    """Writes one shard as long as this process owns it."""

    def __init__(
        self,
        lease: Lease,
        loaded: Loaded,
        process: OfTheProcess,
        connections: Connections,
        outcomes_written: asyncio.Event,
        failures: Failures,
        state: ShardState,
    ) -> None:
        self.lease = lease
        self._rules = loaded.rules
        self._policy = process.policy
        zones = zones_to_write_with(self._rules.tables)
        self._decider = Decider(lease.shard, process.shards, self._rules, self._policy, zones, batch_bounds.BOUNDS)
        self._consumer, self._reading, self._writing = connections
        self._clock = process.clock
        self._guard = process.guard
        self._outcomes_written = outcomes_written
        self._failures = failures
        self._state = state
        self._memory = process.memory
        self._keys = process.keys
        self._spends = TopicPartition(SPEND_EVENTS, lease.shard)
        self._commands = TopicPartition(FINANCE_COMMANDS, lease.shard)
        # The next offset of each topic: first the one to take in, then the one to decide.
        self._next = {self._spends: lease.spend_offset, self._commands: lease.command_offset}
        self._spend_offset, self._command_offset = lease.spend_offset, lease.command_offset
        # Records that were taken in and not yet decided. Nothing more is taken in until this is empty.
        self._backlog = DecodedRecords()
        self._taking: set[int] = set()
        self._wake = asyncio.Event()
        self._wake.set()
        self._looked_at = perf_counter()
        self._stopping = False
        self._ahead = ""
        self._fetching: asyncio.Task[Any] | None = None
        self._has_fetched = False
        self._woken: asyncio.Task[Any] | None = None
        self._commit: asyncio.Task[None] | None = None
        self._snapshot: asyncio.Task[snapshots.Snapshot] | None = None
        self._has_locks = False
        # Counted from the snapshot. Otherwise a shard that is loaded again and again would have ever more to decide
        # again.
        self._kept_at = loaded.kept_at
        self._kept_objects = snapshots.objects_in(self._rules)

    def wake(self) -> None:
        """Make the worker read the table of forwarded records now."""
        self._wake.set()

    @property
    def fetched(self) -> tuple[int, ...]:
        """Return the offsets after the last spend and the last command that were fetched."""
        return self._next[self._spends], self._next[self._commands]

    async def ends(self) -> tuple[int, ...]:
        """Return the end offsets of the topics of spends and of commands, as the broker knows them now."""
        partitions = (self._spends, self._commands)
        ends = await self._consumer.end_offsets(partitions)
        # The embedded broker counts only up to the start of its last batch; a fetch may have seen a later end.
        known = (max(ends[partition], self._consumer.highwater(partition) or 0) for partition in partitions)
        return tuple([await self._last_record(*each) for each in zip(partitions, known, strict=True)])

    async def _last_record(self, partition: TopicPartition, end: int) -> int:
        """Return the end, or the offset after the last record if only ends of transactions follow it."""
        position = await self._consumer.position(partition)
        return self._next[partition] if position >= end else end

    def stop(self) -> None:
        """Let `run` finish the batch under way, keep a snapshot and return."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Write until stopped. After an error the memory may be ahead of the ledger and must be dropped."""
        # A shard that has failed counts as written only after a batch, or once there is nothing to decide. Otherwise
        # its state would be another at each try, and nobody would see since when it has not been written.
        if self._state.name == "loading":
            self._state.set("writing", self._ahead)
            self._tell_if_ahead(self._clock.now_us())
        try:
            while not self._stopping:
                if not self._backlog:
                    await self._take_in()
                await self._process()
            await self._finish()
        except Exception:
            await self._committed()  # Its error goes first, because later batches were decided on top of it.
            raise
        finally:
            await self._leave()

    # ---- Taking in ----------------------------------------------------------------------------------------------

    async def _take_in(self) -> None:
        """Wait until there are records or a timer is due, and decode the records."""
        self._fetching = self._fetching or asyncio.create_task(self._fetch())
        self._woken = self._woken or asyncio.create_task(self._wake.wait())
        if perf_counter() - self._looked_at > FORWARDED_SECONDS:
            self._wake.set()
        waiting: set[asyncio.Task[Any]] = {self._fetching, self._woken}
        waiting |= {task for task in (self._commit, self._snapshot) if task is not None}
        await asyncio.wait(waiting, timeout=self._patience(), return_when=asyncio.FIRST_COMPLETED)
        if self._commit is not None and self._commit.done():
            await self._committed()
        await self._keep_snapshot_if_made()
        forwarded: list[Raw] = []
        if self._woken.done():
            self._woken = None
            self._wake.clear()
            forwarded = await self._read_forwarded()
        records: dict[TopicPartition, list[Any]] = {}
        if self._fetching.done():
            records, self._fetching = self._fetching.result(), None
            if not (records or forwarded or self._is_due()):
                self._state.set("writing", self._ahead)
                if self._is_snapshot_due(is_idle=True):
                    self._fetching = asyncio.create_task(self._fetch())
                    await self._begin_snapshot(self._is_idle)
        await self._decode(records, forwarded)

    async def _fetch(self) -> dict[TopicPartition, list[Any]]:
        try:
            records: dict[TopicPartition, list[Any]] = await self._consumer.getmany(
                timeout_ms=int(LONGEST_WAIT_SECONDS * 1000), max_records=batch_bounds.BOUNDS.records
            )
        except OffsetOutOfRangeError as error:
            raise OffsetsDoNotFitError(
                f"shard {self.lease.shard}: Kafka does not have the offsets that come next ({error}): the topic was"
                " created again; 'drawdown offsets adopt' starts from its beginning"
            ) from error
        self._has_fetched = bool(records)
        return records

    def _is_idle(self) -> bool:
        return not (self._has_fetched or self._wake.is_set() or self._is_due() or self._stopping)

    def _patience(self) -> float:
        """Return for how many seconds to wait for records before a timer is due."""
        due = self._rules.next_due()
        if due is None:
            return LONGEST_WAIT_SECONDS
        return min(LONGEST_WAIT_SECONDS, max(0.0, (due - self._clock.now_us()) / 1e6))

    def _is_due(self) -> bool:
        due = self._rules.next_due()
        return due is not None and due <= self._clock.now_us()

    async def _read_forwarded(self) -> list[Raw]:
        """Return the first of the forwarded records, up to a number and a size. The next call reads more."""
        self._looked_at = perf_counter()
        rows = await self._reading.fetch(
            _FORWARDED, self.lease.shard, list(self._taking), batch_bounds.BOUNDS.records, batch_bounds.BOUNDS.bytes
        )
        if rows:
            self._wake.set()
        return [_forwarded(row) for row in rows]

    async def _decode(self, records: dict[TopicPartition, list[Any]], forwarded: list[Raw]) -> None:
        spends, commands = records.get(self._spends, []), records.get(self._commands, [])
        if not (spends or commands or forwarded):
            return
        self._note_offsets(self._spends, spends)
        self._note_offsets(self._commands, commands)
        self._backlog = await decode(
            [raw for raw in forwarded if is_command(raw.topic)]
            + [as_raw(record, *self._commands) for record in commands],
            [raw for raw in forwarded if not is_command(raw.topic)] + spends,
            self._keys,
        )
        self._failures.mark(self._backlog)

    def _note_offsets(self, partition: TopicPartition, records: Sequence[Any]) -> None:
        """Note which offset comes next. Raises OffsetsDoNotFitError if the offsets have gone back."""
        if not records:
            return
        expected = self._next[partition]
        if records[0].offset < expected:
            raise OffsetsDoNotFitError(f"{partition} gave offset {records[0].offset}, but {expected} comes next")
        self._next[partition] = records[-1].offset + 1

    # ---- Deciding -----------------------------------------------------------------------------------------------

    async def _process(self) -> None:
        """Decide one batch of the backlog and begin to commit it."""
        if not self._backlog and not self._is_due():
            return
        started = perf_counter()
        now = await self._time_of_batch()
        if now is None:
            return
        self._memory.share_out(self.lease.shard)
        portion = account_locks.within(within_memory(self._rules, self._failures.portion(self._backlog)))
        opened = account_locks.opened_in(portion)
        if opened:
            await self._committed()
            self._has_locks = True
            await account_locks.lock(self._writing, opened)
        write = BatchWrite(0, self._policy.version, self._spend_offset, self._command_offset)
        decision = await self._look_up_and_decide(portion, now, write)
        decided = portion.decided(decision.commands, decision.events)
        self._failures.decided(portion, decided)
        self._backlog = self._backlog.without(decided)
        write.spend_offset = self._spend_offset = next_offset(decided.events, self._spend_offset)
        write.command_offset = self._command_offset = next_offset(decided.commands, self._command_offset)
        write.taken = decided.forwarded()
        self._taking.update(write.taken)
        await self._committed()
        await self._keep_snapshot_if_made()
        self._commit = asyncio.create_task(self._append(write, decided, decision, started))
        if self._is_snapshot_due(under_way=len(write.rows)):
            await self._begin_snapshot()

    def _is_snapshot_due(self, *, is_idle: bool = False, under_way: int = 0) -> bool:
        """Return whether there are enough entries since the last snapshot, with those that are being committed."""
        entries = self.lease.position + under_way - self._kept_at
        return entries >= snapshots.entries_between(self._kept_objects, is_idle=is_idle)

    async def _time_of_batch(self) -> int | None:
        """Return the ledger time (µs) of a batch that begins now; None, after a pause, if the clocks disagree."""
        now = await self._guard.time_of_batch(self._reading)
        if now is None:
            await self._committed()
            self._state.set("waiting", self._guard.problem or "")
            await asyncio.sleep(DISAGREEING_SECONDS)
            return None
        self._tell_if_ahead(now)
        return max(now, self.lease.ledger_time)

    def _tell_if_ahead(self, now: int) -> None:
        """Report ledger time that is ahead of the clock. Both clocks were ahead once, and ledger time never goes back.

        The shard does not wait: nothing would be charged or paused until the clock has caught up, maybe for months.
        """
        ahead_us = self.lease.ledger_time - now
        metrics.AHEAD.labels(self.lease.shard).set(max(0, ahead_us) / 1e6)
        if (ahead_us > LARGEST_DIFFERENCE_US) is bool(self._ahead):
            return
        self._ahead = ""
        if ahead_us > LARGEST_DIFFERENCE_US:
            until = format_time(self.lease.ledger_time)
            self._ahead = f"ahead of the clock: every decision before {until} gets that time"
            log.error("LEDGER TIME IS AHEAD OF THE CLOCK", shard=self.lease.shard, until=until)
        if self._state.name == "writing":
            self._state.set("writing", self._ahead)

    async def _look_up_and_decide(self, portion: DecodedRecords, now: int, write: BatchWrite) -> Decision:
        with _blamed_on(portion):
            known = await look_up(self._reading, self.lease.shard, self._rules, portion)
            return await self._decider.decide(portion, known, now, write)

    async def _append(self, write: BatchWrite, decided: DecodedRecords, decision: Decision, started: float) -> None:
        lease = self.lease
        have_moved = (write.spend_offset, write.command_offset) != (lease.spend_offset, lease.command_offset)
        if write.is_empty and not have_moved:
            await self._unlock()
            self._state.set("writing", self._ahead)
            return
        try:
            with _blamed_on(decided):
                await append(self._writing, self.lease, write)
        finally:
            await self._unlock()
        self._taking.difference_update(write.taken)
        self._state.set("writing", self._ahead)
        self._failures.committed(decided)
        decision.count(self.lease.shard)
        metrics.POSITION.labels(self.lease.shard).set(self.lease.position)
        metrics.BATCH_RECORDS.observe(len(decided))
        metrics.BATCH_SECONDS.observe(perf_counter() - started)
        if write.outcomes:
            self._outcomes_written.set()

    async def _unlock(self) -> None:
        """Release the locks on the ids of new ad accounts, if this shard holds some."""
        if self._has_locks and not self._writing.is_closed():
            self._has_locks = False
            await account_locks.unlock(self._writing)

    async def _committed(self) -> None:
        """Wait until the previous batch is in the ledger. Raises the error of its commit."""
        if self._commit is not None:
            await self._commit
            self._commit = None

    # ---- Keeping the state, and leaving -------------------------------------------------------------------------

    async def _begin_snapshot(self, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Collect the state after the last batch, or give up as soon as `is_wanted` returns False.

        Nothing is decided meanwhile. A thread then makes the snapshot from that state, and the shard continues.
        """
        if self._snapshot is not None:
            return
        await self._committed()
        with self._without_snapshot():
            self._snapshot = await snapshots.dump(self._rules, self.lease.tree, is_wanted)
        if self._snapshot is not None:
            self._kept_at = self.lease.position

    async def _keep_snapshot_if_made(self) -> None:
        if self._snapshot is not None and self._snapshot.done():
            await self._keep_snapshot(self._snapshot)

    async def _keep_snapshot(self, made: asyncio.Task[snapshots.Snapshot]) -> None:
        """Keep a snapshot in a transaction of its own that the lease also guards. No batch may be under way."""
        await self._committed()
        write = BatchWrite(
            self.lease.ledger_time, self._policy.version, self.lease.spend_offset, self.lease.command_offset
        )
        with self._without_snapshot():
            kept = await made
            write.snapshot, self._kept_objects = (kept.position, kept.format, kept.state), kept.objects
            await append(self._writing, self.lease, write)
        self._snapshot = None

    @contextmanager
    def _without_snapshot(self) -> Iterator[None]:
        """Continue if a snapshot cannot be kept. It is only a cache: the next load decides more of the ledger again."""
        try:
            yield
        except Exception as error:
            if not is_of_the_records(error):
                raise
            self._kept_at = self.lease.position
            log.error(
                "the snapshot was not kept: the next load of the shard takes longer",
                shard=self.lease.shard,
                error=describe(error),
            )

    async def _finish(self) -> None:
        under_way = self._commit if self._commit is not None and not self._commit.done() else None
        await self._committed()
        if under_way is not None:
            self._tell_of(under_way)
        if self._snapshot is not None:
            await self._keep_snapshot(self._snapshot)
        if self._kept_at < self.lease.position:
            await self._begin_snapshot()
        if self._snapshot is not None:
            await self._keep_snapshot(self._snapshot)

    async def _leave(self) -> None:
        """Cancel the tasks under way, and log how a commit among them has ended."""
        tasks = [task for task in (self._fetching, self._woken, self._commit, self._snapshot) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._commit is not None:
            self._tell_of(self._commit)
        # Their errors refer to this worker. Such a cycle would stay, because `gc.freeze` hides it at the next load.
        self._fetching = self._woken = self._commit = self._snapshot = None
        self._backlog = DecodedRecords()

    def _tell_of(self, commit: asyncio.Task[None]) -> None:
        says = log.bind(shard=self.lease.shard, position=self.lease.position)
        error = None if commit.cancelled() else commit.exception()
        if commit.cancelled() or (error is not None and is_lost(error.__cause__ or error)):
            says.warning("a commit was cut off: only the ledger can tell whether it holds the batch after the position")
        elif error is not None:
            says.warning("the batch that was being committed is undone", error=describe(error.__cause__ or error))
        else:
            says.info("the batch that was being committed is in the ledger")


@contextmanager
def _blamed_on(records: DecodedRecords) -> Iterator[None]:
    """Turn an error that the records of a batch have caused into BatchFailedError. Errors of a server stay."""
    try:
        yield
    except (RecordFailedError, BatchFailedError):
        raise
    except Exception as error:
        if is_taken_account(error):
            raise AccountTakenError(describe(error)) from error
        if is_taken_place(error):
            raise PlaceTakenError(
                "the ledger holds a row in the place of the next one, which no allocation process has written: run"
                f" 'drawdown audit verify' and see docs/runbook.md; {describe(error)}"
            ) from error
        if records and is_of_the_records(error):
            raise BatchFailedError(records.records()) from error
        raise


# The size of a row counts all its columns, because a record without a value may have headers of megabytes. A row from
# before the bound existed may be larger than the bound: it is then read alone.
_FORWARDED: Final = """
    SELECT id, topic, partition, "offset", key, raw, headers::text, replay_shard, replay_sequence FROM (
        SELECT *, sum(bytes) OVER (ORDER BY id) - bytes AS bytes_before FROM (
            SELECT *, coalesce(octet_length(raw), 0) + coalesce(octet_length(key), 0)
                + coalesce(octet_length(headers::text), 0) AS bytes
            FROM ledger.waiting_records WHERE shard = $1 AND id <> ALL($2) ORDER BY id LIMIT $3) AS few
    ) AS sized WHERE bytes_before < $4 ORDER BY id
"""


def _forwarded(row: asyncpg.Record) -> Raw:
    """Return a record that waited for its shard, cut short if it is too large: older releases had no bound.

    Raises nothing. A row that cannot be read was not written by an allocation process, and goes to quarantine.
    """
    topic, partition, replay = row["topic"], row["partition"], (row["replay_shard"], row["replay_sequence"])
    place = (topic, partition, row["offset"])
    try:
        headers = read_headers(row["headers"])
    except ValueError as error:
        return unreadable_record(place, row["key"], row["raw"], f"its headers: {error}", row["id"])
    if (replay[0] is None) != (replay[1] is None):
        why = "it names only half of the record that it replays"
        return unreadable_record(place, row["key"], row["raw"], why, row["id"])
    raw = Raw(*place, row["key"], row["raw"], headers, row["id"])
    if is_too_large(raw):
        raw = short_record(raw, topic, partition, row["id"])
    if replay[0] is not None:
        raw.replay_of = replay
    return raw
