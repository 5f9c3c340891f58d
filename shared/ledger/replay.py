"""Deciding the ledger again, from what the ledger itself holds.

Spends and reversals are read back from their entries, commands from their first entry, timers from time. The rules
then decide the same batches at the same ledger times under the same policies, and must come to the same bytes.
"""

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import asyncpg

from shared.contracts.commands import command_meaning
from shared.contracts.fields import parse_uuid
from shared.ledger.decoding import Reader, StoredEntry
from shared.ledger.encoding import encode_entries
from shared.ledger.lookup import read_spends
from shared.ledger.merkle import CompactRange, leaf_hash
from shared.ledger.times import from_datetime
from shared.rules.policy import Policy, policy_of
from shared.rules.shard import Event, Shard


class ReplayDiffersError(Exception):
    """Deciding again did not give what the ledger holds. The message names the first difference."""


@dataclass(slots=True)
class StoredBatch:
    """A batch row: positions first … last were appended at `recorded_at` (µs) under that policy version."""

    first: int
    last: int
    recorded_at: int
    policy_version: str
    root: bytes


async def policies(connection: asyncpg.Connection) -> dict[str, Policy]:
    """Every policy that batches may name, by version."""
    rows = await connection.fetch("SELECT version, content FROM ledger.policies")
    return {row["version"]: policy_of(row["content"]) for row in rows}


async def batches_after(
    connection: asyncpg.Connection, shard: int, position: int, last: int, most: int = 500
) -> AsyncIterator[list[StoredBatch]]:
    """The batches of a shard that lie behind `position`, up to `last`, some at a time."""
    while position < last:
        rows = await connection.fetch(
            "SELECT first_position, last_position, recorded_at, policy_version, root FROM ledger.batches"
            " WHERE shard = $1 AND last_position > $2 AND last_position <= $3 ORDER BY last_position LIMIT $4",
            shard,
            position,
            last,
            most,
        )
        if not rows:
            return
        yield [StoredBatch(row[0], row[1], from_datetime(row[2]), row[3], row[4]) for row in rows]
        position = rows[-1][1]


class Redecider:
    """Decides stored batches again, one after the other, and compares the root after each.

    The connection has `plain_types`.
    """

    def __init__(self, connection: asyncpg.Connection, rules: Shard, shard: int, tree: CompactRange) -> None:
        self._connection = connection
        self._rules = rules
        self._shard = shard
        self._tree = tree
        self._reader = Reader()
        self._policies: dict[str, Policy] = {}
        self.entries = 0
        self.inputs = 0

    async def run(self, position: int, last: int, progress: Callable[[int], None] | None = None) -> None:
        """Decide everything behind `position` up to `last`. Raises ReplayDiffersError at the first difference."""
        self._policies = await policies(self._connection)
        async for batches in batches_after(self._connection, self._shard, position, last):
            for group in _groups(batches):
                stored = await self._reader.read(self._connection, self._shard, group[0].first, group[-1].last)
                await self._decide_group(group, stored)
                if progress is not None:
                    progress(group[-1].last)

    async def _decide_group(self, group: list[StoredBatch], stored: list[StoredEntry]) -> None:
        start = 0
        for batch in group:
            end = start + batch.last - batch.first + 1
            await self._decide(batch, stored[start:end])
            start = end

    async def _decide(self, batch: StoredBatch, stored: list[StoredEntry]) -> None:
        self._check_positions(batch, stored)
        inputs = inputs_of(stored)
        reversed_ids = [event[7] for event in inputs if isinstance(event, tuple) and event[7] is not None]
        spends = await self._spends_before(batch, reversed_ids)
        policy = self._policies.get(batch.policy_version)
        if policy is None:
            raise ReplayDiffersError(f"{self._where(batch.first)}: no policy {batch.policy_version!r} is recorded")
        self._rules.begin(batch.recorded_at, policy, spends=spends)
        for item in inputs:
            self._decide_input(batch, item)
        rows = encode_entries(self._rules.entries, self._shard, batch.first, batch.recorded_at)
        self._tree.append([leaf_hash(row) for row in rows])
        self.entries += len(rows)
        self.inputs += len(inputs)
        if self._tree.root() != batch.root or len(rows) != len(stored):
            raise ReplayDiffersError(self._difference(batch, stored, rows))

    def _decide_input(self, batch: StoredBatch, item: "Event | dict[str, Any]") -> None:
        if isinstance(item, dict):
            refused = self._rules.command(command_meaning(item), parse_uuid(item["command_id"]), item)
            if refused is not None:
                raise ReplayDiffersError(
                    f"{self._where(batch.first)}: command {item['command_id']} was accepted,"
                    f" decided again it is refused: {refused.message}"
                )
            return
        center = self._rules.business_centers.get(item[1])
        outcome, detail = self._rules.event((*item[:5], center.currency if center else "", *item[6:]))
        if outcome != "charged":
            raise ReplayDiffersError(
                f"{self._where(batch.first)}: event {item[0].hex()} was charged,"
                f" decided again it is {outcome}: {detail}"
            )

    async def _spends_before(self, batch: StoredBatch, event_ids: list[bytes]) -> dict[bytes, Any]:
        """The spends that the batch reverses, as they stood before it."""
        if not event_ids:
            return {}
        return await read_spends(self._connection, self._shard, event_ids, before=batch.first)

    def _check_positions(self, batch: StoredBatch, stored: list[StoredEntry]) -> None:
        if batch.first != self._tree.size + 1:
            raise ReplayDiffersError(f"{self._where(self._tree.size + 1)}: the next batch begins at {batch.first}")
        for expected, entry in enumerate(stored, batch.first):
            if entry.position != expected:
                raise ReplayDiffersError(f"{self._where(expected)}: the entry is missing")

    def _difference(self, batch: StoredBatch, stored: list[StoredEntry], rows: list[bytes]) -> str:
        for entry, row in zip(stored, rows, strict=False):
            if entry.encoded != row:
                return (
                    f"{self._where(entry.position)}: the ledger holds {describe(entry.encoded)},"
                    f" decided again it is {describe(row)}"
                )
        if len(rows) != len(stored):
            return f"{self._where(batch.first)}: the batch holds {len(stored)} entries, decided again {len(rows)}"
        return f"{self._where(batch.last)}: the entries are those decided, but the batch's root is another"

    def _where(self, position: int) -> str:
        return f"shard {self._shard}, position {position}"


def describe(encoded: bytes) -> str:
    """An entry's canonical bytes in words."""
    reader = Reader()
    stored = reader.decode(bytes(19) + encoded + b"\xff\xff")[0]
    line, amount, *_ = stored.entry
    parts = [line.kind, line.holder, line.pocket, line.ad_account_id, line.campaign_id, line.cause]
    said = " ".join(part for part in parts if part)
    return f"{said} {amount if amount is not None else ''} ({encoded.hex()})"


def inputs_of(stored: list[StoredEntry]) -> list[Any]:
    """The spends and reversals (as events without a currency: it is the BC's) and commands (as content), in order."""
    inputs: list[Any] = []
    for item in stored:
        line, amount, occurred_at, source, part, day, _ = item.entry
        if source is None or (amount is None and part):
            continue
        if part == 0 and day is None:
            inputs.append(json.loads(line.details or "{}")["command"])
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
            inputs[-1] = (*event[:4], event[4] + abs(amount or 0), *event[5:])
    return inputs


def _groups(batches: list[StoredBatch], most_entries: int = 20_000) -> list[list[StoredBatch]]:
    """Neighbouring batches, read together as long as they are small."""
    groups: list[list[StoredBatch]] = []
    for batch in batches:
        if not groups or batch.last - groups[-1][0].first >= most_entries:
            groups.append([])
        groups[-1].append(batch)
    return groups
