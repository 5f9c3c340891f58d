"""The lease of a shard: which process may write it, and how far it has got.

The epoch is the fence. Every batch updates the row only if the epoch is still the same (`ledger.move_lease`, which
`append` calls), so a process that has lost the shard can no longer write, whatever it believes. An owner counts as dead
when its database session is gone (at once if the process was killed) or when the others have seen no heartbeat from it
for `LEASE_SECONDS` (if it was stopped: see `Peers`).

A heartbeat updates a row of its own that no batch locks, and its commit does not wait for the disk. So an owner counts
as alive however long its batch takes.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import asyncpg

from shared.ledger.merkle import CompactRange
from shared.rules.instants import from_datetime

LEASE_SECONDS = 3.0
LONGEST_LOOK_SECONDS = 0.5
RELEASED_CHANNEL = "released"


class LeaseLostError(Exception):
    """Another process owns the shard now. Drop the state of the shard and write nothing."""


@dataclass(slots=True)
class Lease:
    """The lease row as its owner knows it. `ledger_time` is in µs; `tree` covers the entries 1 … position.

    `quarantine_month` is the last month (year, month) for which the quarantine table is known to have a partition.
    """

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
    quarantine_month: tuple[int, int] | None = None

    def reached(self) -> tuple[int, int, int]:
        """Return position and offsets. At least one of them changes with every batch that decides records."""
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


@dataclass(frozen=True, slots=True)
class Peer:
    """An allocation process: how often it has announced itself, and whether its lease session is open."""

    owner: str
    beat: int
    has_session: bool


class Peers:
    """The allocation processes, as this one has seen their beats.

    Wall clocks and delays of the database decide nothing. A peer is stale if this process has kept looking for
    `LEASE_SECONDS` and seen no new beat. While the database answers no process, no peer becomes stale, because a pause
    between two looks counts as at most `LONGEST_LOOK_SECONDS`.
    """

    def __init__(self) -> None:
        self._beats: dict[str, int] = {}
        self._silent_seconds: dict[str, float] = {}
        self._looked_at: float | None = None

    def look(self, peers: Iterable[Peer], now: float) -> None:
        """Note what `announce` returned at `now`, in seconds of a monotonic clock."""
        passed = 0.0 if self._looked_at is None else min(now - self._looked_at, LONGEST_LOOK_SECONDS)
        self._looked_at = now
        beats = {peer.owner: peer.beat for peer in peers if peer.has_session}
        self._silent_seconds = {
            owner: self._silent_seconds[owner] + passed if self._beats.get(owner) == beat else 0.0
            for owner, beat in beats.items()
        }
        self._beats = beats

    @property
    def stale(self) -> list[str]:
        """Return the owners whose session is open but whose beat is missing: they were stopped, or hang."""
        return [owner for owner, seconds in self._silent_seconds.items() if seconds > LEASE_SECONDS]

    @property
    def alive(self) -> int:
        """Return how many processes share the shards, including this one."""
        return len(self._beats) - len(self.stale)


async def wait_for_no_disk(connection: asyncpg.Connection) -> None:
    """Let commits of this connection return before they are on disk.

    This is safe for leases: if a batch is on disk, everything before it is too, also the claim of its lease.
    """
    await connection.execute("SET synchronous_commit = off")


async def reload_lease(connection: asyncpg.Connection, lease: Lease) -> Lease:
    """Return the lease as the ledger has it now. Raises LeaseLostError if another process has taken the shard."""
    row = await connection.fetchrow(
        "SELECT * FROM ledger.shards WHERE shard = $1 AND epoch = $2", lease.shard, lease.epoch
    )
    if row is None:
        raise LeaseLostError(f"shard {lease.shard} is owned by another process: epoch {lease.epoch} has passed")
    return _lease_of(row)


async def announce(connection: asyncpg.Connection, owner: str) -> list[Peer]:
    """Announce that this process is alive. Returns all processes that have done so, including this one."""
    await connection.execute(
        "INSERT INTO ledger.allocators (owner, beat, renewed_at) VALUES ($1, 1, clock_timestamp())"
        " ON CONFLICT (owner) DO UPDATE SET beat = allocators.beat + 1, renewed_at = clock_timestamp()",
        owner,
    )
    rows = await connection.fetch(
        "SELECT owner, beat, EXISTS (SELECT FROM pg_stat_activity WHERE application_name LIKE"
        " 'drawdown allocation lease %' AND right(application_name, 8) = right(owner, 8)) FROM ledger.allocators"
    )
    return [Peer(*row) for row in rows]


async def withdraw(connection: asyncpg.Connection, owner: str) -> None:
    """Remove this process, which is shutting down, from the count, and also those that were silent for an hour."""
    await connection.execute(
        "DELETE FROM ledger.allocators WHERE owner = $1 OR renewed_at < clock_timestamp() - interval '1 hour'", owner
    )


async def claim(
    connection: asyncpg.Connection,
    owner: str,
    most: int,
    stale: Collection[str] = (),
    held: Collection[int] | None = None,
) -> list[Lease]:
    """Take at most `most` shards that are free or whose owner is dead. Each gets a new epoch.

    The session of the connection stands for the owner. It must stay open as long as the owner lives, with an
    application name that ends with the last eight characters of `owner`. A shard whose row a batch has locked is left
    out.

    Args:
        connection: the connection of the owner.
        owner: the name of the process.
        most: how many shards to take at most.
        stale: owners that count as dead although their session is open.
        held: the shards that the owner writes. Any other shard that names the owner, at an epoch that the process
            never had, is free. None: the owner holds all shards that name it.

    """
    rows = await connection.fetch(
        """
        UPDATE ledger.shards SET epoch = epoch + 1, owner = $1, owner_pid = pg_backend_pid(), released_at = NULL
        WHERE shard IN (
            SELECT shard FROM ledger.shards s
            WHERE owner IS NULL OR owner = $1 AND shard <> ALL($4) OR owner <> $1 AND (
                owner = ANY($2)
                OR NOT EXISTS (SELECT FROM pg_stat_activity a
                               WHERE a.pid = s.owner_pid AND right(a.application_name, 8) = right(s.owner, 8)))
            ORDER BY shard LIMIT $3 FOR UPDATE SKIP LOCKED)
        RETURNING *
        """,
        owner,
        list(stale),
        most,
        None if held is None else list(held),
    )
    return [_lease_of(row) for row in rows]


async def take_over(connection: asyncpg.Connection, shard: int) -> Lease:
    """Take a shard from its owner, inside the caller's transaction. The shard is then free, at a new epoch.

    This waits for a batch that is being committed.
    """
    row = await connection.fetchrow(
        "UPDATE ledger.shards SET epoch = epoch + 1, owner = NULL, owner_pid = NULL, released_at = clock_timestamp()"
        " WHERE shard = $1 RETURNING *",
        shard,
    )
    return _lease_of(row)


async def end_sessions(connection: asyncpg.Connection, owners: Collection[str]) -> None:
    """End the database sessions of these owners, which count as dead: a stopped process may hold locks of a shard."""
    for owner in owners:
        await connection.execute("SELECT ledger.end_sessions($1)", owner)


async def owned(connection: asyncpg.Connection, owner: str) -> dict[int, int]:
    """Return the shards of this owner with their epochs."""
    rows = await connection.fetch("SELECT shard, epoch FROM ledger.shards WHERE owner = $1", owner)
    return {row["shard"]: row["epoch"] for row in rows}


async def release(connection: asyncpg.Connection, lease: Lease) -> None:
    """Release the shard, and wake the processes that could take it."""
    await connection.execute(
        "WITH released AS (UPDATE ledger.shards SET owner = NULL, owner_pid = NULL,"
        " released_at = clock_timestamp() WHERE shard = $1 AND epoch = $2 RETURNING shard)"
        " SELECT pg_notify($3, shard::text) FROM released",
        lease.shard,
        lease.epoch,
        RELEASED_CHANNEL,
    )
