"""Decoding a batch: from raw records to events, commands and faults. It needs neither memory nor the ledger."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from services.allocation.records.record_decoding import NO_VALUE, Fault, Raw, decode_command, decode_event
from shared.contracts.commands import SentCommand
from shared.contracts.signatures import NO_KEYS, CommandKeys
from shared.rules.events import Event
from shared.runtime.kafka import FINANCE_COMMANDS

# Yield to the event loop after this many records, so that the commit of the previous batch can proceed.
SLICE_RECORDS = 250


@dataclass(slots=True)
class DecodedRecords:
    """Records in order, each with its content or fault. Commands precede events; in each, forwarded ones come first."""

    commands: list[tuple[Raw, SentCommand | Fault]] = field(default_factory=list)
    events: list[tuple[Any, Event | Fault]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.commands) + len(self.events)

    def first(self, count: int) -> "DecodedRecords":
        """Return the first `count` records, or all if there are fewer."""
        if count >= len(self):
            return self
        commands = self.commands[:count]
        return DecodedRecords(commands, self.events[: count - len(commands)])

    def decided(self, commands: int, events: int) -> "DecodedRecords":
        """Return the first records of each kind, which are those that a decision has dealt with."""
        if commands + events == len(self):
            return self
        return DecodedRecords(self.commands[:commands], self.events[:events])

    def without(self, decided: "DecodedRecords") -> "DecodedRecords":
        """Return the records that are left after the decided ones, which are the first."""
        return DecodedRecords(self.commands[len(decided.commands) :], self.events[len(decided.events) :])

    def records(self) -> list[Any]:
        """Return the records as they came."""
        return [record for part in (self.commands, self.events) for record, _ in part]

    def forwarded(self) -> list[int]:
        """Return the ids of the forwarded records among them."""
        return [
            record.forwarded_id
            for part in (self.commands, self.events)
            for record, _ in takewhile(lambda item: _is_forwarded(item[0]), part)
        ]

    def faults(self) -> list[str | None]:
        """Return for each record, in order, the reason why it could not be decoded; None if it could."""
        return [
            held.reason if isinstance(held, Fault) else None
            for part in (self.commands, self.events)
            for _, held in part
        ]


async def decode(commands: list[Raw], events: list[Any], keys: CommandKeys = NO_KEYS) -> DecodedRecords:
    """Return each record with its content or fault. `events` are records of Kafka or `Raw`s, with value and headers.

    `keys` are those with which the API signs commands.
    """
    decoded = DecodedRecords()
    for start in range(0, len(commands), SLICE_RECORDS):
        some = commands[start : start + SLICE_RECORDS]
        decoded.commands += [
            (raw, raw.cut.fault if raw.cut else decode_command(raw.value, raw.headers, keys)) for raw in some
        ]
        await asyncio.sleep(0)
    for start in range(0, len(events), SLICE_RECORDS):
        part = events[start : start + SLICE_RECORDS]
        decoded.events += [
            (record, event if (event := decode_event(record.value, record.headers)) is not NO_VALUE else _why(record))
            for record in part
        ]
        await asyncio.sleep(0)
    return decoded


def _why(record: Any) -> Fault:
    """Return the fault of a record without a value, which may be one that was cut short."""
    return record.cut.fault if isinstance(record, Raw) and record.cut else NO_VALUE


def next_offset(records: Sequence[tuple[Any, Any]], before: int) -> int:
    """Return the offset after the records that came from the topic itself; `before` if there are none."""
    for record, _ in reversed(records):
        if not _is_forwarded(record):
            return int(record.offset) + 1
    return before


def _is_forwarded(record: Any) -> bool:
    return isinstance(record, Raw) and record.forwarded_id is not None


def as_raw(record: Any, topic: str, partition: int) -> Raw:
    """Return a record that the consumer gave for a partition as a `Raw`. A `Raw` is returned unchanged."""
    if isinstance(record, Raw):
        return record
    return Raw(topic, partition, record.offset, record.key, record.value, record.headers)


def is_command(topic: str) -> bool:
    """Return whether the topic carries finance commands."""
    return topic == FINANCE_COMMANDS
