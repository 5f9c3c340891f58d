"""The lease of a shard: who may write it, and how far it has got.

The epoch is the fence. Every batch moves the row by compare-and-set on it, so whoever lost the shard can write
nothing more, whatever they still believe. An owner is dead when its database session is gone (a killed process:
at once) or when it has not renewed for `LEASE_SECONDS` (a stopped one).
"""

from dataclasses import dataclass
from typing import Any

import asyncpg

from shared.ledger.merkle import CompactRange
from shared.ledger.times import from_datetime

LEASE_SECONDS = 3.0
RELEASED_CHANNEL = "released"


class LeaseLostError(Exception):
    """Another process owns the shard now: drop its state and write nothing."""


@dataclass(slots=True)
class Lease:
    """The lease row as its owner knows it. `ledger_time` is in µs; `tree` covers the entries 1 … position."""

    shard: int
    epoch: int
    position: int
    ledger_time: int
    tree: CompactRange
    incarnation: str | None
    spend_offset: int
    command_offset: int
    outcome_sequence: int
    quarantine_sequence: int

    def reached(self) -> tuple[int, int, int]:
        """How far it has got: something of it is another after every batch."""
        return self.position, self.spend_offset, self.command_offset


def _lease_of(row: Any) -> Lease:
    return Lease(
        shard=row["shard"],
        epoch=row["epoch"],
        position=row["position"],
        ledger_time=from_datetime(row["ledger_time"]),
        tree=CompactRange(row["position"], row["frontier"]),
        incarnation=row["incarnation"],
        spend_offset=row["spend_offset"],
        command_offset=row["command_offset"],
        outcome_sequence=row["outcome_sequence"],
        quarantine_sequence=row["quarantine_sequence"],
    )


async def again(connection: asyncpg.Connection, lease: Lease) -> Lease:
    """The lease as the ledger has it now. Raises LeaseLostError where another process has taken the shard."""
    row = await connection.fetchrow(
        "SELECT * FROM ledger.shards WHERE shard = $1 AND epoch = $2", lease.shard, lease.epoch
    )
    if row is None:
        raise LeaseLostError(f"shard {lease.shard} is owned by another process: epoch {lease.epoch} has passed")
    return _lease_of(row)


async def announce(connection: asyncpg.Connection, owner: str) -> int:
    """Say that this process is alive; answer how many are."""
    await connection.execute(
        "INSERT INTO ledger.allocators VALUES ($1, clock_timestamp())"
        " ON CONFLICT (owner) DO UPDATE SET renewed_at = clock_timestamp()",
        owner,
    )
    await connection.execute("UPDATE ledger.shards SET renewed_at = clock_timestamp() WHERE owner = $1", owner)
    alive = await connection.fetchval(
        "SELECT count(*) FROM ledger.allocators WHERE renewed_at > clock_timestamp() - make_interval(secs => $1)"
        " AND EXISTS (SELECT FROM pg_stat_activity WHERE application_name LIKE 'drawdown allocation lease %'"
        "             AND right(application_name, 8) = right(owner, 8))",
        LEASE_SECONDS,
    )
    return int(alive)


async def withdraw(connection: asyncpg.Connection, owner: str) -> None:
    """This process ends: it counts no more."""
    await connection.execute(
        "DELETE FROM ledger.allocators WHERE owner = $1 OR renewed_at < clock_timestamp() - interval '1 hour'", owner
    )


async def claim(connection: asyncpg.Connection, owner: str, most: int) -> list[Lease]:
    """Take at most so many shards that nobody owns, or whose owner is dead; each gets a new epoch.

    The connection's session stands for the owner: it must stay open as long as the owner lives, under an application
    name that ends with the last eight characters of the owner's.
    """
    rows = await connection.fetch(
        """
        UPDATE ledger.shards SET epoch = epoch + 1, owner = $1, owner_pid = pg_backend_pid(),
            renewed_at = clock_timestamp()
        WHERE shard IN (
            SELECT shard FROM ledger.shards s
            WHERE owner IS NULL OR owner <> $1 AND (
                renewed_at < clock_timestamp() - make_interval(secs => $2)
                OR NOT EXISTS (SELECT FROM pg_stat_activity a
                               WHERE a.pid = s.owner_pid AND right(a.application_name, 8) = right(s.owner, 8)))
            ORDER BY shard LIMIT $3 FOR UPDATE SKIP LOCKED)
        RETURNING *
        """,
        owner,
        LEASE_SECONDS,
        most,
    )
    return [_lease_of(row) for row in rows]


async def end_stale_owners(connection: asyncpg.Connection) -> None:
    """End the database sessions of owners that do not renew: a stopped process may hold a shard's locks."""
    await connection.execute(
        "SELECT ledger.end_sessions(owner) FROM"
        " (SELECT DISTINCT owner FROM ledger.shards WHERE owner IS NOT NULL"
        "  AND renewed_at < clock_timestamp() - make_interval(secs => $1)) AS stale",
        LEASE_SECONDS,
    )


async def owned(connection: asyncpg.Connection, owner: str) -> dict[int, int]:
    """The shards of this owner with their epochs."""
    rows = await connection.fetch("SELECT shard, epoch FROM ledger.shards WHERE owner = $1", owner)
    return {row["shard"]: row["epoch"] for row in rows}


async def release(connection: asyncpg.Connection, lease: Lease) -> None:
    """Give the shard up, and wake those who could take it."""
    await connection.execute(
        "WITH released AS (UPDATE ledger.shards SET owner = NULL, owner_pid = NULL WHERE shard = $1 AND epoch = $2"
        " RETURNING shard) SELECT pg_notify($3, shard::text) FROM released",
        lease.shard,
        lease.epoch,
        RELEASED_CHANNEL,
    )
