"""The leases, checkpoints and read models at one moment, read in one short transaction.

The audit reads the ledger itself later, up to the positions noted here, because entries never change.
"""

from dataclasses import dataclass, field
from typing import Any

import asyncpg

from services.auditor.difference import DifferenceError, expect
from services.auditor.tables import TABLES, Rows, read_table
from shared.ledger.checkpoints import checkpoints_of
from shared.rules.instants import from_datetime
from shared.runtime.read_models import READ_MODELS

# No batch takes a time that is further ahead of the database's clock: services/allocation/clock_guard.py.
LARGEST_LEAD_US = 60_000_000
FOLLOWERS = tuple(model.name for model in READ_MODELS)
# More claims than there can have been: one each millisecond would take three hundred centuries.
LARGEST_EPOCH = 10**15
# The bounds of the constraints. Python cannot read times beyond them.
_UNREADABLE_SHARD = """
    SELECT shard, ledger_time::text AS told FROM ledger.shards
    WHERE NOT (ledger_time >= '1970-01-01Z' AND ledger_time < '3000-01-01Z') ORDER BY 1 LIMIT 1
"""
_UNREADABLE_CHECKPOINT = """
    SELECT shard, follower, recorded_at::text AS told FROM ledger.checkpoints
    WHERE NOT (recorded_at >= '1970-01-01Z' AND recorded_at < '3000-01-01Z') ORDER BY 1, 2 LIMIT 1
"""


@dataclass(slots=True)
class Head:
    """The lease row of a shard, and each follower's checkpoint: position and its ledger time. Times are in µs."""

    shard: int
    position: int
    ledger_time: int
    frontier: bytes
    epoch: int
    outcome_sequence: int
    quarantine_sequence: int
    entries: int = 0  # number of rows, whatever their positions
    checkpoints: dict[str, tuple[int, int | None]] = field(default_factory=dict)


@dataclass(slots=True)
class Baseline:
    """All shards at one moment, the read models' rows by table, and each ad account's shard and Business Center."""

    heads: list[Head]
    rows: dict[str, Rows]
    accounts: dict[str, tuple[int, str]]


async def heads_of(connection: asyncpg.Connection) -> list[Head]:
    """Return the present head of each shard. Call it in the transaction that reads what is compared with them.

    Raise DifferenceError if one is missing, or has a time that Python cannot read.
    """
    await _check_readable(connection)
    rows = await connection.fetch(
        "SELECT shard, position, ledger_time, frontier, epoch, outcome_sequence, quarantine_sequence"
        " FROM ledger.shards ORDER BY shard"
    )
    heads = {row["shard"]: _head(row) for row in rows}
    expect([*heads] == [*range(len(heads))], f"there are rows for the shards {[*heads]}: one is missing")
    for row in await connection.fetch("SELECT follower, shard, position, recorded_at FROM ledger.checkpoints"):
        if row["follower"] in FOLLOWERS and row["shard"] in heads:
            recorded_at = row["recorded_at"]
            heads[row["shard"]].checkpoints[row["follower"]] = (
                row["position"],
                None if recorded_at is None else from_datetime(recorded_at),
            )
    return [*heads.values()]


async def _check_readable(connection: asyncpg.Connection) -> None:
    """Raise DifferenceError if Python could not read a time. The database compares it and returns it as text."""
    shard = await connection.fetchrow(_UNREADABLE_SHARD)
    if shard is not None:
        raise DifferenceError(f"shard {shard['shard']}: ledger time is {shard['told']}, not in the years 1970 to 2999")
    checkpoint = await connection.fetchrow(_UNREADABLE_CHECKPOINT)
    if checkpoint is not None:
        of = f"shard {checkpoint['shard']}: the time of {checkpoint['follower']}'s checkpoint"
        raise DifferenceError(f"{of} is {checkpoint['told']}, not in the years 1970 to 2999")


async def read_baseline(connection: asyncpg.Connection) -> Baseline:
    """Return everything that is compared with the ledger, as of one moment. Raise DifferenceError if it conflicts."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        heads = await heads_of(connection)
        for head in heads:
            await check_ends(connection, head)
        rows = {table.name: await read_table(connection, table) for table in TABLES}
        accounts = await connection.fetch("SELECT ad_account_id, shard, business_center_id FROM ledger.ad_accounts")
    return Baseline(heads, rows, {row[0]: (row[1], row[2]) for row in accounts})


async def check_ends(connection: asyncpg.Connection, head: Head) -> None:
    """Raise DifferenceError unless the shard's tables end where its lease says. Set `head.entries`."""
    told = f"shard {head.shard}: the lease is at epoch {head.epoch}, which no number of claims can reach"
    expect(head.epoch <= LARGEST_EPOCH, told)
    for what, table, column, end in (
        ("entries end", "entries", "position", head.position),
        ("batches end", "batches", "last_position", head.position),
        ("outcomes end", "outcomes", "sequence", head.outcome_sequence),
    ):
        last: int = await connection.fetchval(
            f"SELECT coalesce(max({column}), 0) FROM ledger.{table} WHERE shard = $1",  # noqa: S608
            head.shard,
        )
        expect(last == end, f"shard {head.shard}: the {what} at {last}, but the lease says {end}")
    for follower, (position, _) in head.checkpoints.items():
        expect(
            position <= head.position,
            f"shard {head.shard}: the checkpoint of {follower} is at {position},"
            f" but the ledger ends at {head.position}",
        )
    last = await connection.fetchval(
        "SELECT coalesce(max(sequence), 0) FROM ledger.quarantine WHERE shard = $1", head.shard
    )
    told = f"the quarantine ends at {last}, but the lease says {head.quarantine_sequence}"
    expect(last <= head.quarantine_sequence, f"shard {head.shard}: {told}")  # A gap may be a dropped month.
    last = await connection.fetchval(
        "SELECT coalesce(max(position), 0) FROM ledger.resting_campaigns WHERE shard = $1", head.shard
    )
    told = f"a campaign rests at position {last}, but the ledger ends at {head.position}"
    expect(last <= head.position, f"shard {head.shard}: {told}")
    await _check_beginnings(connection, head.shard)
    await _check_published(connection, head)
    head.entries = await connection.fetchval("SELECT count(*) FROM ledger.entries WHERE shard = $1", head.shard)


async def _check_beginnings(connection: asyncpg.Connection, shard: int) -> None:
    """Raise DifferenceError if a row stands below 1, where no process begins to read."""
    for table, column in (
        ("entries", "position"),
        ("batches", "first_position"),
        ("outcomes", "sequence"),
        ("quarantine", "sequence"),
    ):
        first: int = await connection.fetchval(
            f"SELECT coalesce(min({column}), 1) FROM ledger.{table} WHERE shard = $1",  # noqa: S608
            shard,
        )
        expect(first > 0, f"shard {shard}: ledger.{table} begins at {first}, where no row may be")


async def _check_published(connection: asyncpg.Connection, head: Head) -> None:
    """Raise DifferenceError if more outcomes count as published than there are."""
    told: int | None = await connection.fetchval(
        f"SELECT position FROM {checkpoints_of('outcomes')} WHERE shard = $1",  # noqa: S608
        head.shard,
    )
    expect(
        (told or 0) <= head.outcome_sequence,
        f"shard {head.shard}: outcomes are published up to {told}, but the last is {head.outcome_sequence}",
    )


async def notes_on_times(connection: asyncpg.Connection, heads: list[Head]) -> list[str]:
    """Return a note for each shard whose ledger time is ahead of the database's clock: its entries have such times."""
    now = from_datetime(await connection.fetchval("SELECT clock_timestamp()"))
    return [
        f"shard {head.shard}: ledger time is {(head.ledger_time - now) // 1_000_000:,} s ahead of the database's clock"
        for head in heads
        if head.ledger_time - now > LARGEST_LEAD_US
    ]


def _head(row: Any) -> Head:
    return Head(
        row["shard"],
        row["position"],
        from_datetime(row["ledger_time"]),
        row["frontier"],
        row["epoch"],
        row["outcome_sequence"],
        row["quarantine_sequence"],
    )
