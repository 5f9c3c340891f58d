"""Appending a batch: one transaction with all of its results, or nothing.

Entries, outcomes, quarantine, forwarded records, consumed offsets and the lease change together. PostgreSQL is the only
authority: a result that is not in this transaction does not exist.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from services.allocation.lease import Lease, LeaseLostError
from shared.ledger.channels import DELIVERY_CHANNEL, LEDGER_CHANNEL
from shared.ledger.encoding import COPY_HEADER, COPY_TRAILER, FIELDS, place_of
from shared.ledger.lookup import RestingRow
from shared.ledger.merkle import leaf_hashes
from shared.ledger.zones import UNRECORDED, record_zones
from shared.rules.instants import to_datetime
from shared.rules.versions import CURRENT

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
    "via",
    "rules_version",
    "zones_release",
    "policy_version",
)
# A kept record: either its own bytes, or shard and sequence of the quarantined record that it replays.
_RECORD_COLUMNS = ("topic", "partition", "offset", "key", "raw", "headers", "replay_shard", "replay_sequence")
QUARANTINE_COLUMNS = (
    "shard",
    "sequence",
    "reason",
    "detail",
    *_RECORD_COLUMNS,
    "business_center_id",
    "recorded_at",
    "raw_bytes",
    "raw_sha256",
)
LEASE_LOST = "DD001"
FORWARDED_COLUMNS = ("shard", *_RECORD_COLUMNS)
# Rows become parameters this many at a time, because other shards wait meanwhile.
_RESTING_AT_ONCE = 500
# A campaign that was brought back and not changed has its row already.
_INSERT_RESTING = (
    "INSERT INTO ledger.resting_campaigns SELECT $1, * FROM unnest($2::text[], $3::text[], $4::bigint[], $5::json[])"
    " ON CONFLICT DO NOTHING"
)


@dataclass(slots=True)
class BatchWrite:
    """All that a batch appends. `rows` are canonical bytes; the other lists hold records without shard and sequence.

    `recorded_at` is in µs. `forwarded` are records for other shards, `taken` the ids of forwarded records that this
    batch has dealt with. `policy_version`, `rules_version` and `zones_release` name the policy, rules and time zones
    that decided it. `zones` are those of the release that may not be recorded yet, `resting` the campaigns that leave
    memory after the batch.
    """

    recorded_at: int
    policy_version: str
    spend_offset: int
    command_offset: int
    rules_version: int = CURRENT
    zones_release: str = UNRECORDED
    rows: list[bytes] = field(default_factory=list)
    outcomes: list[tuple[Any, ...]] = field(default_factory=list)
    quarantined: list[tuple[Any, ...]] = field(default_factory=list)
    forwarded: list[tuple[Any, ...]] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    accounts: list[tuple[str, str]] = field(default_factory=list)
    zones: list[tuple[str, bytes]] = field(default_factory=list)
    resting: list[RestingRow] = field(default_factory=list)
    changes_delivery: bool = False
    snapshot: tuple[int, int, bytes] | None = None

    @property
    def is_empty(self) -> bool:
        """Return whether it appends nothing. It may still move the offsets."""
        lists = (self.rows, self.outcomes, self.quarantined, self.forwarded, self.taken, self.zones, self.resting)
        return not any(lists)


async def append(connection: asyncpg.Connection, lease: Lease, write: BatchWrite) -> None:
    """Append a batch and move the lease.

    Raises LeaseLostError, and writes nothing, if the caller no longer owns the shard.
    """
    if write.rows:
        _assert_rows_follow(lease, write.rows)
        lease.tree.append(leaf_hashes(write.rows))
    try:
        await connection.execute("BEGIN;" + _move_lease(lease, write))
        if write.rows:
            await _copy(connection, lease, write)
        await _append_other_rows(connection, lease, write)
        await connection.execute(
            (_close_batch(lease, write) + "COMMIT;" + _wake(lease, write)) if write.rows else "COMMIT"
        )
    except asyncpg.PostgresError as error:
        if error.sqlstate == LEASE_LOST:
            raise LeaseLostError(str(error)) from error
        raise
    finally:
        if not connection.is_closed() and connection.is_in_transaction():
            await connection.execute("ROLLBACK")
    _advance_lease(lease, write)


def _assert_rows_follow(lease: Lease, rows: list[bytes]) -> None:
    """Assert that the rows begin after the lease's position: the rules and the lease count positions separately."""
    places = place_of(rows[0]), place_of(rows[-1])
    expected = (lease.shard, lease.position + 1), (lease.shard, lease.position + len(rows))
    assert places == expected, f"entries {places} where {expected} come next"


async def append_aside(connection: asyncpg.Connection, lease: Lease, write: BatchWrite) -> None:
    """Append a batch without entries and move the lease, inside the caller's transaction. Raises like `append`."""
    assert not write.rows
    try:
        await connection.execute(_move_lease(lease, write))
        await _append_other_rows(connection, lease, write)
    except asyncpg.PostgresError as error:
        if error.sqlstate == LEASE_LOST:
            raise LeaseLostError(str(error)) from error
        raise


def _move_lease(lease: Lease, write: BatchWrite) -> str:
    """Return the statement as text, so that it goes in one round trip with BEGIN: many batches are small."""
    values = (
        lease.epoch,
        lease.position,
        lease.spend_offset,
        lease.command_offset,
        lease.position + len(write.rows),
        write.recorded_at,
        lease.tree.frontier(),
        write.spend_offset,
        write.command_offset,
        lease.outcome_sequence + len(write.outcomes),
        lease.quarantine_sequence + len(write.quarantined),
        lease.incarnation,
    )
    return f"SELECT ledger.move_lease({lease.shard}::smallint, {', '.join(map(_literal, values))});"


def _close_batch(lease: Lease, write: BatchWrite) -> str:
    first, last = lease.position + 1, lease.position + len(write.rows)
    root = lease.tree.root()
    return (
        f"INSERT INTO ledger.batches VALUES ({lease.shard}, {first}, {last}, ledger.moment({write.recorded_at}),"
        f" {_literal(write.policy_version)}, {_literal(root)}, {lease.epoch},"
        f" {write.spend_offset}, {write.command_offset}, {write.rules_version}, {_literal(write.zones_release)});"
    )


def _wake(lease: Lease, write: BatchWrite) -> str:
    """Return the statements that wake followers, in a transaction of their own that does not wait for the disk.

    A transaction that notifies holds a server-wide lock until it is on disk, so batches of all shards would queue.
    """
    channels = (LEDGER_CHANNEL, DELIVERY_CHANNEL) if write.changes_delivery else (LEDGER_CHANNEL,)
    notify = "".join(f"NOTIFY {channel}, '{lease.shard}';" for channel in channels)
    return f"BEGIN; SET LOCAL synchronous_commit = off; {notify} COMMIT"


def _literal(value: int | bytes | str | None) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"'\\x{value.hex()}'"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value)


async def _copy(connection: asyncpg.Connection, lease: Lease, write: BatchWrite) -> None:
    rows = b"".join((COPY_HEADER, *write.rows, COPY_TRAILER))
    await connection.copy_to_table(
        f"entries_{lease.shard}",
        schema_name="ledger",
        columns=FIELDS,
        source=memoryview(rows),  # asyncpg takes bytes for a path
        format="binary",
    )


async def _append_other_rows(connection: asyncpg.Connection, lease: Lease, write: BatchWrite) -> None:
    shard = lease.shard
    if write.zones:
        await record_zones(connection, write.zones_release, write.zones)
    if write.accounts:
        await connection.executemany(
            "INSERT INTO ledger.ad_accounts (ad_account_id, shard, business_center_id) VALUES ($1, $2, $3)",
            # All shards insert in one order, so that two of them with the same ids never wait for each other.
            [(account, shard, center) for account, center in sorted(write.accounts)],
        )
    if write.outcomes:
        decided_under = (write.rules_version, write.zones_release, write.policy_version)
        rows = [(shard, lease.outcome_sequence + n, *rest, *decided_under) for n, rest in enumerate(write.outcomes, 1)]
        await connection.copy_records_to_table("outcomes", schema_name="ledger", columns=OUTCOME_COLUMNS, records=rows)
        await connection.execute("SELECT pg_notify('outcomes', $1)", str(shard))
    if write.quarantined:
        await _quarantine(connection, lease, write)
    if write.forwarded:
        await _forward(connection, write.forwarded)
    if write.resting:
        await keep_resting(connection, shard, write.resting)
    if write.taken:
        await connection.execute("DELETE FROM ledger.forwarded WHERE shard = $1 AND id = ANY($2)", shard, write.taken)
    if write.snapshot:
        await connection.execute(
            "INSERT INTO ledger.snapshots VALUES ($1, $2, $3, $4)"
            " ON CONFLICT (shard) DO UPDATE SET position = $2, format = $3, state = $4",
            shard,
            *write.snapshot,
        )


async def _quarantine(connection: asyncpg.Connection, lease: Lease, write: BatchWrite) -> None:
    rows = [(lease.shard, lease.quarantine_sequence + n, *rest) for n, rest in enumerate(write.quarantined, 1)]
    if lease.quarantine_month != _month_of(write):
        await connection.execute("SELECT ledger.make_quarantine_part($1)", to_datetime(write.recorded_at))
    await connection.copy_records_to_table("quarantine", schema_name="ledger", columns=QUARANTINE_COLUMNS, records=rows)


async def _forward(connection: asyncpg.Connection, records: list[tuple[Any, ...]]) -> None:
    await connection.copy_records_to_table(
        "forwarded", schema_name="ledger", columns=FORWARDED_COLUMNS, records=records
    )
    for target in sorted({row[0] for row in records}):
        await connection.execute("SELECT pg_notify('forwarded', $1)", str(target))


async def keep_resting(connection: asyncpg.Connection, shard: int, rows: Sequence[RestingRow]) -> None:
    """Keep the campaigns that leave memory. Their rows follow from the entries up to the position that they name."""
    for start in range(0, len(rows), _RESTING_AT_ONCE):
        some = rows[start : start + _RESTING_AT_ONCE]
        await connection.execute(_INSERT_RESTING, shard, *map(list, zip(*some, strict=True)))


def _month_of(write: BatchWrite) -> tuple[int, int]:
    """Return year and month: the quarantine table has one partition a month."""
    moment = to_datetime(write.recorded_at)
    return moment.year, moment.month


def _advance_lease(lease: Lease, write: BatchWrite) -> None:
    lease.position += len(write.rows)
    lease.ledger_time = write.recorded_at
    lease.spend_offset = write.spend_offset
    lease.command_offset = write.command_offset
    lease.outcome_sequence += len(write.outcomes)
    lease.quarantine_sequence += len(write.quarantined)
    if write.quarantined:
        lease.quarantine_month = _month_of(write)
