"""Sending quarantined records back to their shards, in portions that no transaction is too small for."""

import re
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
import structlog

from services.api.context import Context
from services.api.errors import invalid
from services.api.tokens import Caller
from shared.runtime.kafka import murmur2_partition

PORTION_RECORDS: Final = 1_000
PORTION_BYTES: Final = 8 * 1024 * 1024
# Behind which record to go on, and of each shard the last record that there was when the replay began.
AFTER_PATTERN: Final = r"^[0-9]{1,5}-[0-9]{1,18}:[0-9]{1,18}(\.[0-9]{1,18})*$"
_AFTER: Final = re.compile(r"([0-9]+)-([0-9]+):([0-9.]+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far the replay of a reason has got, and where it ends: what fails again is quarantined behind that."""

    shard: int
    sequence: int
    ends: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Of what `str` gave. Raises ApiError (400) for anything else."""
        match = _AFTER.fullmatch(text)
        if match is None or int(match[1]) > 2**15 - 1:
            raise invalid("after should be the `next` of another replay")
        return cls(int(match[1]), int(match[2]), tuple(map(int, match[3].split("."))))

    def __str__(self) -> str:
        return f"{self.shard}-{self.sequence}:{'.'.join(map(str, self.ends))}"

    def behind(self, row: Any) -> "Cursor":
        """Behind this row."""
        return Cursor(row["shard"], row["sequence"], self.ends)


async def replay_reason(
    context: Context, caller: Caller, reason: str, limit: int | None, after: str | None
) -> dict[str, Any]:
    """Send back all of a reason that were not yet, a portion in each transaction, until `limit` or the end."""
    cursor = await _start(context) if after is None else Cursor.parse(after)
    replayed = 0
    while limit is None or replayed < limit:
        most = PORTION_RECORDS if limit is None else min(PORTION_RECORDS, limit - replayed)
        async with context.transaction() as connection:
            rows = await _portion(connection, caller, reason, cursor, most)
            if not rows:
                return {"replayed": replayed}
            replayed += await send_back(context, connection, caller, rows)
        cursor = cursor.behind(rows[-1])
    return {"replayed": replayed, "next": str(cursor)}


async def send_back(
    context: Context, connection: asyncpg.Connection, caller: Caller, rows: list[asyncpg.Record]
) -> int:
    """Hand the records to their shards' owners, note that it was done, and wake the owners at the commit."""
    targets = [_target(row, context.shards) for row in rows]
    shards = [row["shard"] for row in rows]
    sequences = [row["sequence"] for row in rows]
    await connection.execute(
        "SELECT ledger.replay_quarantined($1, $2, $3, $4)", shards, sequences, targets, context.clock.now()
    )
    for shard in sorted(set(targets)):
        await connection.execute("SELECT pg_notify('forwarded', $1)", str(shard))
    structlog.get_logger().info("replaying quarantined records", count=len(rows), by=caller.id)
    return len(rows)


async def _start(context: Context) -> Cursor:
    async with context.snapshot() as connection:
        rows = await connection.fetch(
            "SELECT coalesce((SELECT max(sequence) FROM ledger.quarantine q WHERE q.shard = s.shard), 0)"
            " FROM ledger.shards s ORDER BY shard"
        )
    return Cursor(0, 0, tuple(row[0] for row in rows))


async def _portion(
    connection: asyncpg.Connection, caller: Caller, reason: str, cursor: Cursor, most: int
) -> list[asyncpg.Record]:
    """The next rows behind the cursor, few and small enough for one transaction; at least one where there is any."""
    rows: list[asyncpg.Record] = await connection.fetch(
        """
        SELECT shard, sequence, business_center_id FROM (
            SELECT *, sum(size) OVER (ORDER BY shard, sequence) - size AS bytes_before FROM (
                SELECT shard, sequence, business_center_id, coalesce(octet_length(raw), 0) AS size
                FROM ledger.quarantine q
                WHERE reason = $1 AND (shard, sequence) > ($2, $3) AND sequence <= ($4::bigint[])[shard + 1]
                    AND ($5::text[] IS NULL OR business_center_id = ANY($5)) AND NOT EXISTS (
                        SELECT FROM ledger.quarantine_replays r WHERE r.shard = q.shard AND r.sequence = q.sequence)
                ORDER BY shard, sequence LIMIT $6
            ) AS few
        ) AS sized WHERE bytes_before < $7 ORDER BY shard, sequence
        """,
        reason,
        cursor.shard,
        cursor.sequence,
        cursor.ends,
        caller.scope,
        most,
        PORTION_BYTES,
    )
    return rows


def _target(row: asyncpg.Record, shards: int) -> int:
    """The shard of the Business Center that the record names; where it names none, the one that refused it."""
    named: str | None = row["business_center_id"]
    return int(row["shard"]) if named is None else murmur2_partition(named.encode(), shards)
