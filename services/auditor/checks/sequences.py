"""Checks that take one query each: batches and sources are complete, in order and unique in a shard."""

import asyncpg

from services.auditor.baseline import Head
from services.auditor.difference import DifferenceError, expect


async def check_batches(connection: asyncpg.Connection, head: Head) -> int:
    """Return the number of batches of a shard.

    Raise DifferenceError if positions have a gap, or if times, leases or versions of the rules go back.
    """
    row = await connection.fetchrow(
        """
        SELECT first_position, expected, recorded_at < before AS back, epoch < older AS outdated,
            rules_version < ruled AS outruled FROM (
            SELECT first_position, last_position, recorded_at, epoch, rules_version,
                coalesce(lag(last_position) OVER w, 0) + 1 AS expected,
                lag(recorded_at) OVER w AS before, lag(epoch) OVER w AS older, lag(rules_version) OVER w AS ruled
            FROM ledger.batches WHERE shard = $1 AND last_position <= $2
            WINDOW w AS (ORDER BY last_position)) b
        WHERE first_position <> expected OR last_position < first_position OR recorded_at < before OR epoch < older
            OR rules_version < ruled
        ORDER BY last_position LIMIT 1
        """,
        head.shard,
        head.position,
    )
    if row is not None:
        where = f"shard {head.shard}, position {row['expected']}"
        expect(row["first_position"] == row["expected"], f"{where}: the next batch begins at {row['first_position']}")
        expect(not row["back"], f"{where}: ledger time goes back")
        expect(not row["outdated"], f"{where}: the batch was written under an older lease than the one before")
        expect(not row["outruled"], f"{where}: the batch was decided by older rules than the one before")
        raise DifferenceError(f"{where}: the batch ends before it begins")
    count, epoch = await connection.fetchrow(
        "SELECT count(*), coalesce(max(epoch), 0) FROM ledger.batches WHERE shard = $1 AND last_position <= $2",
        head.shard,
        head.position,
    )
    told = f"a batch was written under epoch {epoch}, but the lease is at {head.epoch}"
    expect(epoch <= head.epoch, f"shard {head.shard}: {told}")
    return int(count)


async def check_sources(connection: asyncpg.Connection, head: Head) -> None:
    """Raise DifferenceError if a spend, reversal or command is in the ledger twice.

    The query reads the table itself, so that it does not depend on the unique index.
    """
    await connection.execute("RESET enable_seqscan")
    row = await connection.fetchrow(
        """
        SELECT source_event_id::text AS source, min(position) AS first, max(position) AS again
        FROM ledger.entries
        WHERE shard = $1 AND position <= $2 AND part = 0 AND source_event_id IS NOT NULL
        GROUP BY source_event_id, day IS NULL HAVING count(*) > 1 ORDER BY again LIMIT 1
        """,
        head.shard,
        head.position,
    )
    if row is not None:
        raise DifferenceError(
            f"shard {head.shard}, position {row['again']}: the source {row['source']} is in the ledger twice,"
            f" first at {row['first']}"
        )


async def check_strays(connection: asyncpg.Connection, shards: int) -> None:
    """Raise DifferenceError if a row names a shard that does not exist. `shards` is the number of shards."""
    for table in (
        *("batches", "outcomes", "quarantine", "quarantine_replays", "ad_accounts", "forwarded", "checkpoints"),
        *("resting_campaigns", "shard_states", "snapshots"),
    ):
        shard = await connection.fetchval(
            f"SELECT shard FROM ledger.{table} WHERE shard NOT BETWEEN 0 AND $1 - 1 LIMIT 1",  # noqa: S608
            shards,
        )
        expect(shard is None, f"ledger.{table} holds rows of shard {shard}, but there are {shards} shards")
