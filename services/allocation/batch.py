"""Deciding one batch of records: from raw records to what is appended.

Decoding, looking up what the ledger knows, and deciding are separate steps, so that the next batch can be decoded
and looked up while this one is being committed.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import structlog

from services.allocation import metrics
from services.allocation.decoding import (
    Command,
    Fault,
    Raw,
    business_center_of,
    business_center_of_command,
    decode_command,
    decode_event,
)
from shared.contracts.commands import same_content
from shared.ledger.append import BatchWrite
from shared.ledger.encoding import encode_entries
from shared.ledger.lookup import find_events, read_events, read_spends
from shared.ledger.times import to_datetime
from shared.rules.corrections import ChargedSpend
from shared.rules.policy import Policy
from shared.rules.shard import CHARGED, DUPLICATE, Event, Shard
from shared.runtime.kafka import FINANCE_COMMANDS, SPEND_EVENTS, murmur2_partition

log = structlog.get_logger()

# So many records are decoded or decided before other tasks (the commit of the batch before) get their turn.
SLICE_RECORDS = 500

Outcome = tuple[str, str | None, str, int | None, int, Any]  # status, code, message, first position, position, time


@dataclass(slots=True)
class Known:
    """What the ledger already holds of a batch."""

    events: dict[bytes, Event] = field(default_factory=dict)
    spends: dict[bytes, ChargedSpend] = field(default_factory=dict)
    commands: dict[bytes, tuple[str, Outcome]] = field(default_factory=dict)
    accounts_elsewhere: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Decoded:
    """The records of a batch, in order, with what each holds. Commands come before events."""

    commands: list[tuple[Raw, Command | Fault]] = field(default_factory=list)
    events: list[tuple[Any, Event | Fault]] = field(default_factory=list)


async def decode(commands: list[Raw], events: list[Any]) -> Decoded:
    """Decode each record by itself. `events` are Kafka's records or `Raw`s: both have value and headers."""
    decoded = Decoded()
    decoded.commands = [(raw, decode_command(raw.value)) for raw in commands]
    for start in range(0, len(events), SLICE_RECORDS):
        part = events[start : start + SLICE_RECORDS]
        decoded.events += [(record, decode_event(record.value, record.headers)) for record in part]
        await asyncio.sleep(0)
    return decoded


async def look_up(connection: asyncpg.Connection, shard: int, rules: Shard, decoded: Decoded) -> Known:
    """What the ledger holds of these records: repeated ids, reversed spends, decided commands."""
    known = Known()
    events = [event for _, event in decoded.events if type(event) is tuple]
    if events:
        found = await find_events(connection, shard, [event[0] for event in events])
        if found:
            known.events = await read_events(
                connection, shard, found.values(), lambda center: rules.business_centers[center].currency
            )
        reversed_ids = [event[7] for event in events if event[7] is not None]
        if reversed_ids:
            known.spends = await read_spends(connection, shard, reversed_ids)
    commands = [command for _, command in decoded.commands if isinstance(command, Command)]
    if commands:
        known.commands = await _decided_commands(connection, shard, [command.id for command in commands])
        opened = [command.content.get("ad_account_id") for command in commands]
        known.accounts_elsewhere = {
            row["ad_account_id"]
            for row in await connection.fetch(
                "SELECT ad_account_id FROM ledger.ad_accounts WHERE ad_account_id = ANY($1) AND shard <> $2",
                [account for account in opened if account],
                shard,
            )
        }
    return known


async def _decided_commands(
    connection: asyncpg.Connection, shard: int, ids: list[bytes]
) -> dict[bytes, tuple[str, Outcome]]:
    rows = await connection.fetch(
        "SELECT command_id, content, status, code, message, first_position, position, recorded_at"
        " FROM ledger.outcomes WHERE command_id = ANY($1::uuid[]) AND shard = $2 AND first",
        ids,
        shard,
    )
    return {row[0]: (same_content(row[1]), tuple(row)[2:]) for row in rows}


class Decider:
    """Decides batches of one shard, one after the other."""

    def __init__(self, shard: int, shards: int, rules: Shard, policy: Policy) -> None:
        self._shard = shard
        self._shards = shards
        self._rules = rules
        self._policy = policy
        self._decided: dict[bytes, tuple[str, Outcome]] = {}
        self._decided_before: dict[bytes, tuple[str, Outcome]] = {}

    async def decide(self, decoded: Decoded, known: Known, now: int, write: BatchWrite) -> None:
        """Decide a batch at ledger time `now` (µs) and fill `write` with what comes of it."""
        rules = self._rules
        rules.accounts_elsewhere = known.accounts_elsewhere
        rules.begin(now, self._policy, known.events, known.spends)
        write.recorded_at = rules.now
        self._decided_before, self._decided = self._decided, {}
        for raw, command in decoded.commands:
            self._decide_command(raw, command, known, write)
        counts: dict[str, int] = {}
        for start in range(0, len(decoded.events), SLICE_RECORDS):
            self._decide_events(decoded.events[start : start + SLICE_RECORDS], write, counts)
            await asyncio.sleep(0)
        await self._encode(write)
        self._count(len(decoded.events), counts, write)

    def _decide_events(
        self, slice_: list[tuple[Any, Event | Fault]], write: BatchWrite, counts: dict[str, int]
    ) -> None:
        decide = self._rules.event
        for record, event in slice_:
            if type(event) is tuple:
                outcome, detail = decide(event)
                if outcome is not CHARGED and outcome is not DUPLICATE:
                    outcome = self._set_aside(self._as_raw(record), event, Fault(outcome, detail), write)
            else:
                assert isinstance(event, Fault)
                self._quarantine(self._as_raw(record), event, business_center_of(record.value, record.headers), write)
                outcome = "quarantined"
            if outcome is not CHARGED:
                counts[outcome] = counts.get(outcome, 0) + 1

    def _set_aside(self, raw: Raw, event: Event, fault: Fault, write: BatchWrite) -> str:
        """What cannot be charged here goes to its own shard or to quarantine."""
        if fault.reason == "unknown_business_center" and self._forward(raw, event[1], write):
            return "forwarded"
        self._quarantine(raw, fault, event[1], write)
        return "quarantined"

    def _decide_command(self, raw: Raw, command: Command | Fault, known: Known, write: BatchWrite) -> None:
        if isinstance(command, Fault):
            self._quarantine(raw, command, business_center_of_command(raw.value), write)
            return
        center = command.content["business_center_id"]
        if self._forward(raw, center, write):
            return
        meaning = same_content(command.content)
        before = self._decided.get(command.id) or self._decided_before.get(command.id) or known.commands.get(command.id)
        rules = self._rules
        position = rules.position + len(rules.entries)
        if before is None:
            refused = rules.command(command.meaning, command.id, command.content)
            last = rules.position + len(rules.entries)
            if refused is None:
                outcome: Outcome = ("accepted", None, "done", position + 1, last, to_datetime(rules.now))
                if command.content["type"] == "open_ad_account":
                    write.accounts.append((command.content["ad_account_id"], center))
            else:
                outcome = ("rejected", refused.code, refused.message, None, last, to_datetime(rules.now))
            self._decided[command.id] = (meaning, outcome)
        elif before[0] == meaning:
            outcome = before[1]
        else:
            message = "another command with this command_id was decided before"
            outcome = ("rejected", "conflict", message, None, position, to_datetime(rules.now))
        write.outcomes.append((command.id, before is None, center, command.content["type"], command.content, *outcome))
        metrics.COMMANDS.labels(self._shard, outcome[0]).inc()

    def _as_raw(self, record: Any) -> Raw:
        return as_raw(record, SPEND_EVENTS, self._shard)

    def _forward(self, raw: Raw, center: str, write: BatchWrite) -> bool:
        """Pass a record on to its BC's shard, if that is another one."""
        target = murmur2_partition(center.encode(), self._shards)
        if target == self._shard:
            return False
        write.forwarded.append((target, raw.topic, raw.partition, raw.offset, raw.key, raw.value, raw.headers_json()))
        return True

    def _quarantine(self, raw: Raw, fault: Fault, center: str | None, write: BatchWrite) -> None:
        if fault.error is not None:
            log.error(
                "a record could not be decoded for a fault of ours: it is in quarantine, replay it once this is mended",
                topic=raw.topic,
                partition=raw.partition,
                offset=raw.offset,
                error=fault.detail,
                exc_info=fault.error,
            )
        write.quarantined.append(
            (
                fault.reason,
                fault.detail,
                raw.topic,
                raw.partition,
                raw.offset,
                raw.key,
                raw.value,
                raw.headers_json(),
                center,
                to_datetime(self._rules.now),
            )
        )
        metrics.QUARANTINED.labels(fault.reason).inc()

    async def _encode(self, write: BatchWrite) -> None:
        entries = self._rules.entries
        first = self._rules.position + 1
        for start in range(0, len(entries), SLICE_RECORDS):
            write.rows += encode_entries(
                entries[start : start + SLICE_RECORDS], self._shard, first + start, self._rules.now
            )
            await asyncio.sleep(0)

    def _count(self, events: int, counts: dict[str, int], write: BatchWrite) -> None:
        counts[CHARGED] = events - sum(counts.values())
        for outcome, count in counts.items():
            metrics.EVENTS.labels(self._shard, outcome).inc(count)
        metrics.ENTRIES.labels(self._shard).inc(len(write.rows))
        for entry in self._rules.entries:
            line = entry[0]
            if entry[1] is None and line.cause is not None:
                write.changes_delivery = True
                (metrics.PAUSES if line.kind == "pause" else metrics.RESUMES).labels(line.cause).inc()


def as_raw(record: Any, topic: str, partition: int) -> Raw:
    """A record that the consumer gave for a partition, as it is kept; what is one already stays."""
    if isinstance(record, Raw):
        return record
    return Raw(topic, partition, record.offset, record.key, record.value, record.headers)


def is_command(topic: str) -> bool:
    """Does the topic carry finance commands?"""
    return topic == FINANCE_COMMANDS
