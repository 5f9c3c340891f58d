"""Appending a batch: one transaction that holds everything that came of it, or nothing.

Entries, outcomes, quarantine, forwarded records, the consumed offsets and the lease move together. PostgreSQL is the
one authority: what is not in this transaction did not happen.
"""

from dataclasses import dataclass, field
from typing import Any

import asyncpg

from shared.ledger.encoding import COPY_HEADER, COPY_TRAILER, FIELDS
from shared.ledger.lease import Lease, LeaseLostError
from shared.ledger.merkle import leaf_hash
from shared.ledger.times import to_datetime

OUTCOME_COLUMNS = (
    "shard",
    "sequence",
    "command_id",
    "first",
    "business_center_id",
    "type",
    "content",
    "status",
    "code",
    "message",
    "first_position",
    "position",
    "recorded_at",
)
QUARANTINE_COLUMNS = (
    "shard",
    "sequence",
    "reason",
    "detail",
    "topic",
    "partition",
    "offset",
    "key",
    "raw",
    "headers",
    "business_center_id",
    "recorded_at",
)
FORWARDED_COLUMNS = ("shard", "topic", "partition", "offset", "key", "raw", "headers")


@dataclass(slots=True)
class BatchWrite:
    """What a batch appends. `rows` are canonical bytes; the other lists hold records without shard and sequence.

    `forwarded` are records for other shards, `taken` the ids of forwarded records that this batch has dealt with.
    """

    recorded_at: int
    policy_version: str
    spend_offset: int
    command_offset: int
    rows: list[bytes] = field(default_factory=list)
    outcomes: list[tuple[Any, ...]] = field(default_factory=list)
    quarantined: list[tuple[Any, ...]] = field(default_factory=list)
    forwarded: list[tuple[Any, ...]] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    accounts: list[tuple[str, str]] = field(default_factory=list)
    snapshot: tuple[int, int, bytes] | None = None


async def append(connection: asyncpg.Connection, lease: Lease, write: BatchWrite) -> None:
    """Append a batch and move the lease.

    Raises LeaseLostError, with nothing written, for who owns the shard no more.
    """
    if write.rows:
        lease.tree.append([leaf_hash(row) for row in write.rows])
    async with connection.transaction():
        await _move_lease(connection, lease, write)
        if write.rows:
            await _append_entries(connection, lease, write)
        if write.accounts:
            await connection.executemany(
                "INSERT INTO ledger.ad_accounts (ad_account_id, shard, business_center_id) VALUES ($1, $2, $3)",
                [(account, lease.shard, center) for account, center in write.accounts],
            )
        await _append_rest(connection, lease, write)
    _follow(lease, write)


async def _move_lease(connection: asyncpg.Connection, lease: Lease, write: BatchWrite) -> None:
    moved = await connection.fetchval(
        """
        UPDATE ledger.shards SET position = $4, ledger_time = $5, frontier = $6, spend_offset = $7, command_offset = $8,
            outcome_sequence = $9, quarantine_sequence = $10, incarnation = $11, renewed_at = clock_timestamp()
        WHERE shard = $1 AND epoch = $2 AND position = $3 AND spend_offset = $12 AND command_offset = $13
        RETURNING true
        """,
        lease.shard,
        lease.epoch,
        lease.position,
        lease.position + len(write.rows),
        to_datetime(write.recorded_at),
        lease.tree.frontier(),
        write.spend_offset,
        write.command_offset,
        lease.outcome_sequence + len(write.outcomes),
        lease.quarantine_sequence + len(write.quarantined),
        lease.incarnation,
        lease.spend_offset,
        lease.command_offset,
    )
    if not moved:
        raise LeaseLostError(f"shard {lease.shard} is owned by another process: epoch {lease.epoch} has passed")


async def _append_entries(connection: asyncpg.Connection, lease: Lease, write: BatchWrite) -> None:
    await connection.copy_to_table(
        f"entries_{lease.shard}",
        schema_name="ledger",
        columns=FIELDS,
        source=memoryview(b"".join((COPY_HEADER, *write.rows, COPY_TRAILER))),  # bytes would be taken for a path
        format="binary",
    )
    await connection.execute(
        "INSERT INTO ledger.batches VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        lease.shard,
        lease.position + 1,
        lease.position + len(write.rows),
        to_datetime(write.recorded_at),
        write.policy_version,
        lease.tree.root(),
        lease.epoch,
        write.spend_offset,
        write.command_offset,
    )
    await connection.execute("SELECT pg_notify('ledger', $1)", str(lease.shard))


async def _append_rest(connection: asyncpg.Connection, lease: Lease, write: BatchWrite) -> None:
    shard = lease.shard
    if write.outcomes:
        rows = [(shard, lease.outcome_sequence + n, *rest) for n, rest in enumerate(write.outcomes, 1)]
        await connection.copy_records_to_table("outcomes", schema_name="ledger", columns=OUTCOME_COLUMNS, records=rows)
        await connection.execute("SELECT pg_notify('outcomes', $1)", str(shard))
    if write.quarantined:
        rows = [(shard, lease.quarantine_sequence + n, *rest) for n, rest in enumerate(write.quarantined, 1)]
        await connection.copy_records_to_table(
            "quarantine", schema_name="ledger", columns=QUARANTINE_COLUMNS, records=rows
        )
    if write.forwarded:
        await connection.copy_records_to_table(
            "forwarded", schema_name="ledger", columns=FORWARDED_COLUMNS, records=write.forwarded
        )
        for target in sorted({row[0] for row in write.forwarded}):
            await connection.execute("SELECT pg_notify('forwarded', $1)", str(target))
    if write.taken:
        await connection.execute("DELETE FROM ledger.forwarded WHERE shard = $1 AND id = ANY($2)", shard, write.taken)
    if write.snapshot:
        await connection.execute(
            "INSERT INTO ledger.snapshots VALUES ($1, $2, $3, $4)"
            " ON CONFLICT (shard) DO UPDATE SET position = $2, format = $3, state = $4",
            shard,
            *write.snapshot,
        )


def _follow(lease: Lease, write: BatchWrite) -> None:
    lease.position += len(write.rows)
    lease.ledger_time = write.recorded_at
    lease.spend_offset = write.spend_offset
    lease.command_offset = write.command_offset
    lease.outcome_sequence += len(write.outcomes)
    lease.quarantine_sequence += len(write.quarantined)
