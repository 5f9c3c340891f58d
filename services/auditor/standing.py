"""How things stood at one moment: leases, checkpoints and read models, read in one short transaction.

The ledger itself is read later and at leisure, up to the positions noted here: what it held then it holds for ever.
"""

from dataclasses import dataclass, field
from typing import Any

import asyncpg

from services.auditor.difference import expect
from services.auditor.tables import TABLES, Rows, read_table
from shared.ledger.times import from_datetime

FOLLOWERS = ("balance", "incentives", "signals")


@dataclass(slots=True)
class Head:
    """The lease row of a shard, and how far each follower had folded it. Times in µs."""

    shard: int
    position: int
    ledger_time: int
    frontier: bytes
    epoch: int
    outcome_sequence: int
    quarantine_sequence: int
    checkpoints: dict[str, tuple[int, int | None]] = field(default_factory=dict)


@dataclass(slots=True)
class Standing:
    """All shards at one moment, the read models' rows by table, and which shard each ad account was opened in."""

    heads: list[Head]
    rows: dict[str, Rows]
    accounts: dict[str, tuple[int, str]]


async def heads_of(connection: asyncpg.Connection) -> list[Head]:
    """The shards as they stand. Run it in the transaction that reads what is compared with them."""
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


async def read_standing(connection: asyncpg.Connection) -> Standing:
    """All that is compared with the ledger, as of one moment. Raises DifferenceError where it contradicts itself."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        heads = await heads_of(connection)
        for head in heads:
            await check_ends(connection, head)
        rows = {table.name: await read_table(connection, table) for table in TABLES}
        accounts = await connection.fetch("SELECT ad_account_id, shard, business_center_id FROM ledger.ad_accounts")
    return Standing(heads, rows, {row[0]: (row[1], row[2]) for row in accounts})


async def check_ends(connection: asyncpg.Connection, head: Head) -> None:
    """The tables end where the lease says."""
    for what, table, column, end in (
        ("entries end", "entries", "position", head.position),
        ("batches end", "batches", "last_position", head.position),
        ("outcomes end", "outcomes", "sequence", head.outcome_sequence),
        ("quarantine ends", "quarantine", "sequence", head.quarantine_sequence),
    ):
        last: int = await connection.fetchval(
            f"SELECT coalesce(max({column}), 0) FROM ledger.{table} WHERE shard = $1",  # noqa: S608
            head.shard,
        )
        expect(last == end, f"shard {head.shard}: the {what} at {last}, the lease says {end}")
    for follower, (position, _) in head.checkpoints.items():
        expect(
            position <= head.position,
            f"shard {head.shard}: the checkpoint of {follower} is at {position}, the ledger ends at {head.position}",
        )


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
