"""Decides the ledger again, from what the ledger itself holds.

Spends and reversals are rebuilt from their entries and commands from their first entry. Timers follow from the time.
The rules then decide the same batches at the same ledger times, under the same policies, versions of the rules and time
zones, and must produce the same bytes.
"""

import asyncio
import json
from collections import ChainMap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import asyncpg

from shared.contracts import strict_json
from shared.contracts.commands import SentCommand, sent_command
from shared.ledger.decoding import EntryReader, RangeTooLargeError, StoredEntry
from shared.ledger.encoding import MOST_BYTES, UNBOUNDED_BYTES, encode_entries
from shared.ledger.lookup import campaigns_named, grants_of, read_grants, read_resting, read_spends
from shared.ledger.merkle import CompactRange, leaf_hashes
from shared.ledger.policies import read_contents
from shared.ledger.zones import UNRECORDED, recorded_zones
from shared.rules.calendar import Zones
from shared.rules.entries import Entry
from shared.rules.events import AMOUNT, REVERSES, Event, with_currency
from shared.rules.grants import GrantKey, RecordedGrant
from shared.rules.instants import from_datetime
from shared.rules.money import format_micros
from shared.rules.policy import Policy, policy_of
from shared.rules.resting import Recorded
from shared.rules.shard import Shard
from shared.rules.versions import BATCHES_BOUNDED, CHANGES, CURRENT
from shared.rules.ways import TOPIC
from shared.runtime.postgres import is_lost

# Yield to other tasks after this many inputs or entries, because the process writes other shards while it loads one.
SLICE = 100

# Batches are read together up to these bounds. Deciding again takes about five times the bytes of what was read.
MOST_GROUP_ENTRIES = 5_000
MOST_GROUP_BYTES = 16 * 2**20
# About twice what the bounds of a batch (`services.allocation.records.batch_bounds`) let a writer write.
MOST_BATCH_BYTES = 128 * 2**20

Stored = TypeVar("Stored")


class ReplayDiffersError(Exception):
    """Deciding again gave a different result from what the ledger holds. The message names the first difference."""


@dataclass(slots=True)
class StoredBatch:
    """A row of ledger.batches: the entries first … last, and the policy, rules and zones under which it was decided.

    `recorded_at` is its ledger time, in µs since the Unix epoch.
    """

    first: int
    last: int
    recorded_at: int
    policy_version: str
    root: bytes
    rules_version: int = CURRENT
    zones_release: str = UNRECORDED


async def policies(connection: asyncpg.Connection, versions: Iterable[str]) -> dict[str, Policy]:
    """Return the recorded policies among these versions, by version. Others are not read.

    Raise ReplayDiffersError if one of them is invalid.
    """
    contents = await read_contents(connection, versions)
    return {version: _recorded_policy(version, content) for version, content in contents.items()}


def _recorded_policy(version: str, content: str | None) -> Policy:
    if content is None:
        raise ReplayDiffersError(f"the recorded policy {version!r} is not valid: it is longer than any policy")
    try:
        return policy_of(strict_json.read(content.encode()))
    except ValueError as error:
        raise ReplayDiffersError(f"the recorded policy {version!r} is not valid: {error}") from error


async def batches_after(
    connection: asyncpg.Connection, shard: int, position: int, last: int, most: int = 500
) -> AsyncIterator[list[StoredBatch]]:
    """Yield the batches of a shard after `position` and up to `last`, at most `most` at a time."""
    while position < last:
        rows = await connection.fetch(
            "SELECT first_position, last_position, recorded_at, policy_version, root, rules_version, zones_release"
            " FROM ledger.batches WHERE shard = $1 AND last_position > $2 AND last_position <= $3"
            " ORDER BY last_position LIMIT $4",
            shard,
            position,
            last,
            most,
        )
        if not rows:
            return
        yield [StoredBatch(row[0], row[1], from_datetime(row[2]), *row[3:]) for row in map(tuple, rows)]
        position = rows[-1][1]


class Redecider:
    """Decides stored batches again, one by one, and compares bytes and root after each.

    A subclass may override `before`, `between`, `after` and `rest`, which are called for each batch. The connection has
    `plain_types`. `grants` are recorded grants that a subclass needs besides those that batches name. `zones` are the
    recorded time zones by release, if the caller has read them already.
    """

    def __init__(
        self,
        connection: asyncpg.Connection,
        rules: Shard,
        shard: int,
        tree: CompactRange,
        zones: Mapping[str, Zones] | None = None,
    ) -> None:
        self.rules = rules
        self.shard = shard
        self.tree = tree
        self.entries = 0
        self.inputs = 0
        self.grants: dict[GrantKey, RecordedGrant] = {}
        self.connection = connection
        self._reader = EntryReader()
        self.policies: dict[str, Policy] = {}
        self._zones: Mapping[str, Zones] = zones or {}

    def before(self, batch: StoredBatch) -> None:
        """Do what is due before a batch. The rules are in the state after the previous one."""

    def between(self) -> None:
        """Do what is due after the beginning of a batch, and after each of its inputs."""

    def after(self, batch: StoredBatch, stored: list[StoredEntry]) -> None:
        """Do what is due after a batch that was decided again and is the same as in the ledger."""

    async def rest(self, batch: StoredBatch) -> None:
        """Remove idle campaigns from memory after a batch, where memory is bounded."""

    async def run(
        self, position: int, last: int, progress: Callable[[int], None] | None = None, others: Iterable[str] = ()
    ) -> None:
        """Decide everything after `position` up to `last`. Raise ReplayDiffersError at the first difference.

        `progress` is called with each position reached. `others` are releases of time zones that a subclass needs
        besides those that the batches name.
        """
        self._zones = self._zones or await recorded_zones(self.connection, self.shard, position, last, others)
        # Look reversed spends up by their index, even if the table's statistics are out of date.
        await self.connection.execute("SET enable_seqscan = off; SET jit = off")
        async for batches in batches_after(self.connection, self.shard, position, last):
            await self.read_policies({batch.policy_version for batch in batches})
            async for group, stored in read_in_groups(batches, self._read, self._where):
                await self._decide_group(group, stored)
                if progress is not None:
                    progress(group[-1].last)
        if self.tree.size != last:
            raise ReplayDiffersError(f"{self._where(self.tree.size + 1)}: no batch holds it, but {last} is the last")

    async def _read(self, first: int, last: int, most_bytes: int) -> list[StoredEntry]:
        return await self._reader.read(self.connection, self.shard, first, last, most_bytes)

    async def _decide_group(self, group: list[StoredBatch], stored: list[StoredEntry]) -> None:
        start = 0
        for batch in group:
            end = start + batch.last - batch.first + 1
            await self._decide(batch, stored[start:end])
            start = end
            await asyncio.sleep(0)

    async def _decide(self, batch: StoredBatch, stored: list[StoredEntry]) -> None:
        self._check_positions(batch, stored)
        self.before(batch)
        policy = self._policy_of(batch)
        inputs: list[Any] = []
        for start in range(0, len(stored), SLICE):
            with self._guarded(batch):
                add_inputs(inputs, stored[start : start + SLICE])
            await asyncio.sleep(0)
        events = (item for item in inputs if isinstance(item, tuple))
        reversed_ids = [reverses for event in events if (reverses := event[REVERSES]) is not None]
        commands = [item.command for item in inputs if isinstance(item, SentCommand)]
        with self._guarded(batch):
            spends = await self._spends_before(batch, reversed_ids)
            named = self.rules.forgotten(grants_of(commands, spends.values()))
            grants = ChainMap(await read_grants(self.connection, self.shard, named, batch.first), self.grants)
            zones = self.zones_of(batch.zones_release)
            resting = await self.resting_before(batch, inputs)
            self.rules.begin(batch.recorded_at, policy, spends=spends, grants=grants, zones=zones, resting=resting)
            rows = await self._decide_inputs(batch, inputs)
        if rows != [entry.encoded for entry in stored]:
            raise ReplayDiffersError(self._difference(batch, stored, rows))
        for start in range(0, len(rows), SLICE):
            self.tree.append(leaf_hashes(rows[start : start + SLICE]))
            await asyncio.sleep(0)
        if self.tree.root() != batch.root:
            raise ReplayDiffersError(
                f"{self._where(batch.first)} to {batch.last}: the entries add up to the root {self.tree.root().hex()},"
                f" but the batch holds {batch.root.hex()}: an entry or the root was edited"
            )
        self.entries += len(rows)
        self.inputs += len(inputs)
        self.after(batch, stored)
        await self.rest(batch)

    async def read_policies(self, versions: set[str]) -> None:
        """Read these policies if they are recorded and not read yet. Raise ReplayDiffersError if one is invalid."""
        unread = versions - self.policies.keys()
        if unread:
            self.policies |= await policies(self.connection, unread)

    def _policy_of(self, batch: StoredBatch) -> Policy:
        where = self._where(batch.first)
        policy = self.policies.get(batch.policy_version)
        if policy is None:
            raise ReplayDiffersError(f"{where}: no policy {batch.policy_version!r} is recorded")
        if batch.rules_version not in CHANGES:
            raise ReplayDiffersError(f"{where}: {newer_rules(batch.rules_version)}")
        if batch.zones_release not in self._zones:
            raise ReplayDiffersError(f"{where}: no time zones of the release {batch.zones_release!r} are recorded")
        return replace(policy, rules=batch.rules_version)

    def zones_of(self, release: str) -> Zones:
        """Return the recorded time zones of a release; an empty set of zones if none is recorded."""
        return self._zones.get(release) or Zones(release)

    async def _decide_inputs(self, batch: StoredBatch, inputs: list[Any]) -> list[bytes]:
        """Return the canonical bytes of the entries that the rules write for these inputs."""
        self.between()
        for number, item in enumerate(inputs, 1):
            self._decide_input(batch, item)
            self.between()
            if number % SLICE == 0:
                await asyncio.sleep(0)
        return await self._encode(batch, self.rules.entries)

    async def _encode(self, batch: StoredBatch, entries: list[Entry]) -> list[bytes]:
        most = MOST_BYTES if batch.rules_version >= BATCHES_BOUNDED else UNBOUNDED_BYTES
        rows: list[bytes] = []
        for start in range(0, len(entries), SLICE):
            some = entries[start : start + SLICE]
            rows += encode_entries(some, self.shard, batch.first + start, batch.recorded_at, most)
            await asyncio.sleep(0)
        return rows

    def _decide_input(self, batch: StoredBatch, item: Event | SentCommand) -> None:
        position = batch.first + len(self.rules.entries)
        if isinstance(item, SentCommand):
            refused = self.rules.command(item.command, item.id, item.content, item.via)
            if refused is not None:
                raise ReplayDiffersError(
                    f"{self._where(position)}: command {item.content['command_id']} was accepted,"
                    f" but decided again it is refused: {refused.message}"
                )
            return
        event_id, center_id, *_ = item
        center = self.rules.business_centers.get(center_id)
        outcome, detail = self.rules.event(with_currency(item, center.currency if center else ""))
        if outcome != "charged":
            raise ReplayDiffersError(
                f"{self._where(position)}: event {event_id.hex()} was charged,"
                f" but decided again it is {outcome}: {detail}"
            )

    async def _spends_before(self, batch: StoredBatch, event_ids: list[bytes]) -> dict[bytes, Any]:
        """Return the spends that the batch reverses, as they were before it."""
        if not event_ids:
            return {}
        return await read_spends(self.connection, self.shard, event_ids, before=batch.first)

    async def resting_before(self, batch: StoredBatch, inputs: list[Any]) -> Recorded:
        """Return the campaigns that the batch names and that may be out of memory, with their state before it."""
        commands = [item.command for item in inputs if isinstance(item, SentCommand)]
        named = campaigns_named(self.rules, commands, (item for item in inputs if isinstance(item, tuple)))
        return await read_resting(self.connection, self.shard, named, before=batch.first) if named else {}

    def _check_positions(self, batch: StoredBatch, stored: list[StoredEntry]) -> None:
        if batch.first != self.tree.size + 1:
            raise ReplayDiffersError(f"{self._where(self.tree.size + 1)}: the next batch begins at {batch.first}")
        if batch.last < batch.first:
            raise ReplayDiffersError(f"{self._where(batch.first)}: the batch ends before, at {batch.last}")
        if batch.recorded_at < self.rules.now:
            raise ReplayDiffersError(f"{self._where(batch.first)}: ledger time goes back")
        for expected, entry in enumerate(stored, batch.first):
            if entry.position != expected:
                raise ReplayDiffersError(f"{self._where(expected)}: the entry is missing")
        if len(stored) != batch.last - batch.first + 1:
            raise ReplayDiffersError(f"{self._where(batch.first + len(stored))}: the entry is missing")

    @contextmanager
    def _guarded(self, batch: StoredBatch) -> Iterator[None]:
        """Turn errors of the rules into ReplayDiffersError: the rules did not write a batch that they cannot read."""
        try:
            yield
        except ReplayDiffersError:
            raise
        except Exception as error:
            if is_lost(error):
                raise
            raise ReplayDiffersError(
                f"{self._where(batch.first)} to {batch.last}: the batch cannot be decided again:"
                f" {type(error).__name__}: {error}"
            ) from error

    def _difference(self, batch: StoredBatch, stored: list[StoredEntry], rows: list[bytes]) -> str:
        for entry, row in zip(stored, rows, strict=False):
            if entry.encoded != row:
                return (
                    f"{self._where(entry.position)}: the ledger holds {describe(entry.encoded)},"
                    f" but decided again it is {describe(row)}"
                )
        if len(rows) < len(stored):
            extra = stored[len(rows)]
            held = describe(extra.encoded)
            return f"{self._where(extra.position)}: the ledger holds {held}, but deciding again gives nothing"
        return (
            f"{self._where(batch.last + 1)}: the batch ends at {batch.last},"
            f" but decided again {describe(rows[len(stored)])} follows"
        )

    def _where(self, position: int) -> str:
        return f"shard {self.shard}, position {position}"


def newer_rules(version: int) -> str:
    """Return the reason why this release cannot decide a batch of that version of the rules."""
    return f"written by newer rules (version {version}, this release knows up to {CURRENT}): use a newer release"


def describe(encoded: bytes) -> str:
    """Return an entry in words, with its canonical bytes in hexadecimal."""
    reader = EntryReader()
    stored = reader.decode(bytes(19) + encoded + b"\xff\xff")[0]
    line, amount, *_ = stored.entry
    parts = [line.kind, line.holder, line.pocket, line.ad_account_id, line.campaign_id, line.cause]
    said = " ".join(part for part in parts if part)
    return f"{said}{'' if amount is None else f' {format_micros(amount)}'} ({encoded.hex()})"


def add_inputs(inputs: list[Any], stored: list[StoredEntry]) -> None:
    """Add the inputs that wrote these entries, in order: spends and reversals as events, and commands.

    The events have no currency, because entries do not hold it: it is that of the Business Center. Entries of the first
    two versions of the rules do not hold the way by which a command came: then it is the topic. Raise LookupError,
    TypeError, ValueError or AttributeError if an entry does not hold the command that it should.
    """
    for item in stored:
        line, amount, occurred_at, source, part, day, _ = item.entry
        if source is None or (amount is None and part):
            continue
        if part == 0 and day is None:
            details = json.loads(line.details or "{}")
            inputs.append(sent_command(details["command"], details.get("via", TOPIC)))
        elif day is not None:
            if part == 0:
                details = json.loads(line.details) if line.details else {}
                reason = details.get("reason")
                inputs.append(
                    (
                        source,
                        line.business_center_id,
                        line.ad_account_id,
                        line.campaign_id,
                        0,
                        "",
                        occurred_at,
                        line.reverses,
                        reason,
                    )
                )
            event = inputs[-1]
            inputs[-1] = (*event[:AMOUNT], event[AMOUNT] + abs(amount or 0), *event[AMOUNT + 1 :])


async def read_in_groups(
    batches: list[StoredBatch], read: Callable[[int, int, int], Awaitable[list[Stored]]], where: Callable[[int], str]
) -> AsyncIterator[tuple[list[StoredBatch], list[Stored]]]:
    """Yield neighbouring batches with their entries, as many together as are read well at once.

    Args:
        batches: the batches of a shard, in order.
        read: returns the entries from a first to a last position. Raises RangeTooLargeError if they have more than the
            given number of bytes.
        where: says where a position is, for an error.

    Raises:
        ReplayDiffersError: one batch has more than `MOST_BATCH_BYTES`.

    """
    waiting = _groups(batches)[::-1]
    while waiting:
        group = waiting.pop()
        first, last = group[0].first, group[-1].last
        try:
            entries = await read(first, last, MOST_GROUP_BYTES if len(group) > 1 else MOST_BATCH_BYTES)
        except RangeTooLargeError as error:
            if len(group) == 1:
                told = f"the batch has more than {MOST_BATCH_BYTES // 2**20} MiB, which no writer writes at once"
                raise ReplayDiffersError(f"{where(first)} to {last}: {told}") from None
            most = max(1, len(group) * MOST_GROUP_BYTES // (error.size + 1))
            waiting += [group[at : at + most] for at in range(0, len(group), most)][::-1]
        else:
            yield group, entries


def _groups(batches: list[StoredBatch]) -> list[list[StoredBatch]]:
    """Return the batches in groups of neighbours of at most `MOST_GROUP_ENTRIES`, or of one larger batch."""
    groups: list[list[StoredBatch]] = []
    for batch in batches:
        if not groups or batch.last - groups[-1][0].first >= MOST_GROUP_ENTRIES:
            groups.append([])
        groups[-1].append(batch)
    return groups
