"""Deciding a batch: from decoded records and what the ledger holds about them to a `BatchWrite`.

Decoding (`batch_decoding`) and looking up (`looking_up`) are separate steps, so that the next batch can be prepared
while this one is being committed.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from operator import length_hint
from time import perf_counter
from typing import Any, TypeVar

from services.allocation import metrics
from services.allocation.failures import (
    INTERNAL_ERROR,
    BatchFailedError,
    BeginFailedError,
    RecordFailedError,
    describe,
)
from services.allocation.memory.looking_up import DecidedCommand, Known, Outcome
from services.allocation.records.batch_bounds import UNBOUNDED, Bounds
from services.allocation.records.batch_decoding import SLICE_RECORDS, DecodedRecords, as_raw
from services.allocation.records.quarantine_rows import kept_bytes, kept_columns, quarantine_row, weight
from services.allocation.records.record_decoding import Fault, Raw, center_of_command, center_of_event
from services.allocation.writing.append import BatchWrite
from shared.contracts.commands import SentCommand, meaning_hash, refused_content
from shared.ledger.encoding import encode_entries
from shared.ledger.lookup import resting_rows
from shared.rules.calendar import Zones
from shared.rules.events import BUSINESS_CENTER_ID, Event
from shared.rules.instants import to_datetime
from shared.rules.policy import Policy
from shared.rules.shard import CHARGED, DUPLICATE, Shard
from shared.runtime.kafka import SPEND_EVENTS, murmur2_partition

# Yield to the event loop after this many commands or entries, and after as many records as in decoding.
SLICE_COMMANDS = 20
SLICE_ENTRIES = 500

T = TypeVar("T")


@dataclass(slots=True)
class Decision:
    """How many commands and events a batch has decided, and the counts for Prometheus once it is in the ledger."""

    commands: int = 0
    events: int = 0
    results: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    quarantined_bytes: Counter[str] = field(default_factory=Counter)
    batches_set_aside: int = 0
    pauses: Counter[tuple[str, str]] = field(default_factory=Counter)
    entries: int = 0

    def count(self, shard: int) -> None:
        """Add to the metrics. Call this only after the commit: a batch that was undone is decided again."""
        self.results[CHARGED] = self.events - self.results.total()
        for result, count in self.results.items():
            metrics.EVENTS.labels(shard, result).inc(count)
        for status, count in self.outcomes.items():
            metrics.COMMANDS.labels(shard, status).inc(count)
        for reason, count in self.reasons.items():
            metrics.QUARANTINED.labels(reason).inc(count)
            metrics.QUARANTINED_BYTES.labels(reason).inc(self.quarantined_bytes[reason])
        metrics.BATCHES_SET_ASIDE.labels(shard).inc(self.batches_set_aside)
        for (kind, cause), count in self.pauses.items():
            (metrics.PAUSES if kind == "pause" else metrics.RESUMES).labels(cause).inc(count)
        metrics.ENTRIES.labels(shard).inc(self.entries)


class Decider:
    """Decides batches of one shard, one after the other."""

    def __init__(
        self, shard: int, shards: int, rules: Shard, policy: Policy, zones: Zones, bounds: Bounds = UNBOUNDED
    ) -> None:
        self._shard = shard
        self._shards = shards
        self._rules = rules
        self._policy = policy
        self._zones = zones
        self._recorded: set[str] = set()
        self._bounds = bounds
        self._room = bounds.bytes
        self._decided: dict[bytes, DecidedCommand] = {}
        self._decided_before: dict[bytes, DecidedCommand] = {}

    async def decide(self, decoded: DecodedRecords, known: Known, now: int, write: BatchWrite) -> Decision:
        """Decide a batch at ledger time `now` (µs) and fill `write` with the results.

        The batch may be full before all records are decided: the decision says how many were. After an error the
        memory of the rules must be dropped.

        Raises:
            BeginFailedError: a timer or a new policy failed, before any record was decided.
            RecordFailedError: the rules failed at this record.
            BatchFailedError: the entries of the batch could not be encoded.

        """
        decision = Decision()
        rules = self._rules
        rules.accounts_elsewhere = known.accounts_elsewhere
        try:
            rules.begin(now, self._policy, known.events, known.spends, known.grants, self._zones, known.resting)
        except Exception as error:
            raise BeginFailedError(describe(error)) from error
        write.recorded_at = rules.now
        write.policy_version, write.rules_version = self._policy.version, self._policy.rules
        write.zones_release = self._zones.release
        self._decided_before, self._decided = self._decided, {}
        self._room = self._bounds.bytes
        if not rules.has_due():  # Otherwise the timers that were due have filled this batch.
            await self._decide_records(decoded, known, write, decision)
        write.zones = [(name, data) for name, data in rules.batch.zones.items() if name not in self._recorded]
        self._recorded.update(rules.batch.zones)
        last = rules.position + len(rules.entries)
        write.resting = await resting_rows(rules.let_rest(), last)
        try:
            await self._encode(write)
        except Exception as error:
            raise BatchFailedError(decoded.decided(decision.commands, decision.events).records()) from error
        self._count(write, decision)
        return decision

    async def _decide_records(
        self, decoded: DecodedRecords, known: Known, write: BatchWrite, decision: Decision
    ) -> None:
        """Decide until the batch is full. Time that other tasks take meanwhile does not count."""
        commands, events, left = iter(decoded.commands), iter(decoded.events), self._bounds.seconds
        has_room = True
        while has_room and left > 0 and length_hint(commands):
            began = perf_counter()
            with _attributed(decoded.commands, commands):
                has_room = self._decide_commands(commands, known, write, decision)
            left -= perf_counter() - began
            await asyncio.sleep(0)
        while has_room and left > 0 and length_hint(events):
            began = perf_counter()
            with _attributed(decoded.events, events):
                has_room = self._decide_events(events, write, decision)
            left -= perf_counter() - began
            await asyncio.sleep(0)
        decision.commands = len(decoded.commands) - length_hint(commands)
        decision.events = len(decoded.events) - length_hint(events)

    def _decide_commands(
        self, commands: Iterator[tuple[Raw, SentCommand | Fault]], known: Known, write: BatchWrite, decision: Decision
    ) -> bool:
        """Decide the next few commands. Returns whether the batch has room for more."""
        for raw, command in islice(commands, SLICE_COMMANDS):
            self._decide_command(raw, command, known, write, decision)
            if self._room <= 0 or len(self._rules.entries) >= self._bounds.entries:
                return False
        return True

    def _decide_events(
        self, events: Iterator[tuple[Any, Event | Fault]], write: BatchWrite, decision: Decision
    ) -> bool:
        """Decide the next slice of events. Returns whether the batch has room for more."""
        decide, entries, most = self._rules.event, self._rules.entries, self._bounds.entries
        for record, event in islice(events, SLICE_RECORDS):
            if type(event) is tuple:
                outcome, detail = decide(event)
                if outcome is not CHARGED:
                    if outcome is not DUPLICATE:
                        fault = Fault(outcome, detail)
                        outcome = self._forward_or_quarantine(self._as_raw(record), event, fault, write, decision)
                    decision.results[outcome] += 1
                    if self._room <= 0:
                        return False
                if len(entries) >= most:
                    return False
            else:
                assert isinstance(event, Fault)
                center = _if_readable(event, center_of_event, record)
                self._quarantine(self._as_raw(record), event, center, write, decision)
                decision.results["quarantined"] += 1
                if self._room <= 0:
                    return False
        return True

    def _forward_or_quarantine(
        self, raw: Raw, event: Event, fault: Fault, write: BatchWrite, decision: Decision
    ) -> str:
        """Forward an event that cannot be charged here to its own shard, or quarantine it. Return which was done."""
        center = event[BUSINESS_CENTER_ID]
        if fault.reason == "unknown_business_center" and self._forward(raw, center, write):
            return "forwarded"
        self._quarantine(raw, fault, center, write, decision)
        return "quarantined"

    def _decide_command(
        self, raw: Raw, command: SentCommand | Fault, known: Known, write: BatchWrite, decision: Decision
    ) -> None:
        if isinstance(command, Fault):
            named = _if_readable(command, center_of_command, raw)
            self._quarantine(raw, command, named, write, decision)
            return
        center = command.content["business_center_id"]
        if self._forward(raw, center, write):
            return
        meaning = meaning_hash(command.content)
        before = self._decided.get(command.id) or self._decided_before.get(command.id) or known.commands.get(command.id)
        rules = self._rules
        position = rules.position + len(rules.entries)
        if before is None:
            refused = rules.command(command.command, command.id, command.content, command.via)
            last = rules.position + len(rules.entries)
            if refused is None:
                outcome = Outcome("accepted", None, "done", position + 1, last, to_datetime(rules.now), command.via)
                if command.content["type"] == "open_ad_account":
                    write.accounts.append((command.content["ad_account_id"], center))
            else:
                told = (refused.code, refused.message)
                outcome = Outcome("rejected", *told, None, last, to_datetime(rules.now), command.via)
            self._decided[command.id] = DecidedCommand(meaning, outcome)
        elif before.meaning == meaning:
            outcome = before.outcome
        else:
            told = ("conflict", "another command with this command_id was decided before")
            outcome = Outcome("rejected", *told, None, position, to_datetime(rules.now), command.via)
        self._room -= len(raw.value or b"")
        is_done = before is None and outcome.status == "accepted"  # Then an entry of the ledger holds the content too.
        content = command.content if is_done else refused_content(command.content)
        write.outcomes.append((command.id, before is None, center, content["type"], content, *outcome))
        decision.outcomes[outcome.status] += 1

    def _as_raw(self, record: Any) -> Raw:
        return as_raw(record, SPEND_EVENTS, self._shard)

    def _forward(self, raw: Raw, center: str, write: BatchWrite) -> bool:
        """Pass a record on to the shard of its Business Center. Returns False if that is this shard."""
        target = murmur2_partition(center.encode(), self._shards)
        if target == self._shard:
            return False
        self._room -= weight(raw)
        kept = kept_columns(raw, raw.value, raw.headers_json())
        write.forwarded.append((target, raw.topic, raw.partition, raw.offset, *kept))
        return True

    def _quarantine(self, raw: Raw, fault: Fault, center: str | None, write: BatchWrite, decision: Decision) -> None:
        kept = kept_bytes(raw)
        self._room -= kept
        decision.batches_set_aside += bool(raw.cut and raw.cut.is_batch)
        headers = _if_readable(fault, raw.headers_json)
        write.quarantined.append(quarantine_row(raw, fault, headers, center, self._rules.now))
        decision.reasons[fault.reason] += 1
        decision.quarantined_bytes[fault.reason] += kept

    async def _encode(self, write: BatchWrite) -> None:
        entries = self._rules.entries
        first = self._rules.position + 1
        for start in range(0, len(entries), SLICE_ENTRIES):
            write.rows += encode_entries(
                entries[start : start + SLICE_ENTRIES], self._shard, first + start, self._rules.now
            )
            await asyncio.sleep(0)

    def _count(self, write: BatchWrite, decision: Decision) -> None:
        decision.entries = len(write.rows)
        for line, amount, _, _, _, _, _ in self._rules.entries:
            if amount is None and line.cause is not None:
                decision.pauses[line.kind, line.cause] += 1
        write.changes_delivery = bool(decision.pauses)


@contextmanager
def _attributed(records: Sequence[tuple[Any, Any]], rest: Iterator[Any]) -> Iterator[None]:
    """Turn any error into a RecordFailedError that names the last record that the iterator gave."""
    try:
        yield
    except Exception as error:
        raise RecordFailedError(records[len(records) - length_hint(rest) - 1][0]) from error


def _if_readable(fault: Fault, read: Callable[..., T], *arguments: Any) -> T | None:
    """Return what `read` finds in a quarantined record. An error there gives None if the record has failed before."""
    try:
        return read(*arguments)
    except Exception:
        if fault.reason == INTERNAL_ERROR:
            return None
        raise
