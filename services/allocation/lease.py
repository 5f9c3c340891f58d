"""The lease of a shard: who may write it, and how far it has got.

The epoch is the fence. Every batch moves the row by compare-and-set on it, so a process that lost the shard can write
nothing more, whatever it still believes. An owner is dead when its database session is gone (a killed process: at
once) or when the others have seen no beat of it for `LEASE_SECONDS` (a stopped one: see `Peers`).

A beat is counted in a row of its own that no batch locks, and its commit waits for no disk: a batch may take as long
as it needs, and its owner still counts as alive.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import asyncpg

from shared.ledger.merkle import CompactRange
from shared.ledger.times import from_datetime

LEASE_SECONDS = 3.0
LONGEST_LOOK_SECONDS = 0.5
RELEASED_CHANNEL = "released"


class LeaseLostError(Exception):
    """Another process owns the shard now: drop its state and write nothing."""


@dataclass(slots=True)
class Lease:
    """The lease row as its owner knows it. `ledger_time` is in µs; `tree` covers the entries 1 … position.

    `quarantine_month`, year and month, is the last one that quarantine is known to have a part for.
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


@dataclass(frozen=True, slots=True)
class Peer:
    """A process that takes part: how often it has announced itself, and whether its lease session is open."""

    owner: str
    beat: int
    has_session: bool


class Peers:
    """The other processes, as this one has seen them beat.

    Clocks and the database's own delays decide nothing: a peer is stale once this process has looked again and again
    for `LEASE_SECONDS` and seen no new beat. While the database answers nobody, nobody looks, and nobody grows stale:
    a pause between two looks counts as `LONGEST_LOOK_SECONDS` at most.
    """

    def __init__(self) -> None:
        self._beats: dict[str, int] = {}
        self._silent_seconds: dict[str, float] = {}
        self._looked_at: float | None = None

    def look(self, peers: Iterable[Peer], now: float) -> None:
        """Take in what `announce` answered at `now`, in seconds of a monotonic clock."""
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
        """The owners whose session is open, but who do not beat: stopped, or hung."""
        return [owner for owner, seconds in self._silent_seconds.items() if seconds > LEASE_SECONDS]

    @property
    def alive(self) -> int:
        """How many processes the shards are shared out between, this one included."""
        return len(self._beats) - len(self.stale)


async def wait_for_no_disk(connection: asyncpg.Connection) -> None:
    """Let no commit of this connection wait for the disk.

    Safe for leases: a batch that is on disk has everything before it on disk too, also the claim that it rests on.
    """
    await connection.execute("SET synchronous_commit = off")


async def again(connection: asyncpg.Connection, lease: Lease) -> Lease:
    """The lease as the ledger has it now. Raises LeaseLostError where another process has taken the shard."""
    row = await connection.fetchrow(
        "SELECT * FROM ledger.shards WHERE shard = $1 AND epoch = $2", lease.shard, lease.epoch
    )
    if row is None:
        raise LeaseLostError(f"shard {lease.shard} is owned by another process: epoch {lease.epoch} has passed")
    return _lease_of(row)


async def announce(connection: asyncpg.Connection, owner: str) -> list[Peer]:
    """Say that this process is alive; answer all that have said so, this one included."""
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
    """Let this process, which ends, count no longer."""
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
    """Take at most this many shards that nobody owns, or whose owner is dead; each gets a new epoch.

    The connection's session stands for the owner: it must stay open as long as the owner lives, under an application
    name that ends with the last eight characters of the owner's. `stale` are owners that count as dead although their
    session is open. A shard whose row a batch has locked is left out. `held` are the shards that the owner writes:
    another one that names it, at an epoch that it never had, is nobody's. None: all that name it are held.
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
    """Overtake whoever owns a shard, within a transaction of the caller's: it is free then, at a new epoch.

    Waits for a batch that is being committed.
    """
    row = await connection.fetchrow(
        "UPDATE ledger.shards SET epoch = epoch + 1, owner = NULL, owner_pid = NULL, released_at = clock_timestamp()"
        " WHERE shard = $1 RETURNING *",
        shard,
    )
    return _lease_of(row)


async def end_sessions(connection: asyncpg.Connection, owners: Collection[str]) -> None:
    """End the database sessions of these owners, which count as dead: a stopped process may hold a shard's locks."""
    for owner in owners:
        await connection.execute("SELECT ledger.end_sessions($1)", owner)


async def owned(connection: asyncpg.Connection, owner: str) -> dict[int, int]:
    """The shards of this owner with their epochs."""
    rows = await connection.fetch("SELECT shard, epoch FROM ledger.shards WHERE owner = $1", owner)
    return {row["shard"]: row["epoch"] for row in rows}


async def release(connection: asyncpg.Connection, lease: Lease) -> None:
    """Give the shard up, and wake those who could take it."""
    await connection.execute(
        "WITH released AS (UPDATE ledger.shards SET owner = NULL, owner_pid = NULL,"
        " released_at = clock_timestamp() WHERE shard = $1 AND epoch = $2 RETURNING shard)"
        " SELECT pg_notify($3, shard::text) FROM released",
        lease.shard,
        lease.epoch,
        RELEASED_CHANNEL,
    )
