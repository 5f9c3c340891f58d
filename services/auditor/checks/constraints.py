"""The constraints and triggers that keep rows where the audits look for them, and leases from going back."""

import asyncpg

from services.auditor.difference import DifferenceError, expect
from shared.runtime.read_models import READ_MODELS

WITH_BOUNDS = (
    "entries",
    "batches",
    "outcomes",
    "quarantine",
    "quarantine_replays",
    "forwarded",
    "snapshots",
    "shards",
)
WITH_SIZES = (
    "entries",
    "batches",
    "outcomes",
    "quarantine",
    "ad_accounts",
    "resting_campaigns",
    "snapshots",
    "time_zones",
    "policies",
    "shards",
    "shard_states",
    "allocators",
)
# Tables whose rows name quarantined records.
WITH_IDS = ("quarantine", "quarantine_replays", "forwarded")
# The constraints on the records that may wait for a shard.
OF_FORWARDED = ("forwarded_records", "forwarded_sizes")
# Table, trigger, a part of its definition, and what it does (in the words of the error).
_TRIGGERS = (
    ("shards", "only_onward", "new.epoch - 1", "lets leases only move forward"),
    ("time_zones", "few_zones", "refuse_many_zones", "limits the zones of a release"),
    ("checkpoints", "not_ahead", "refuse_to_run_ahead", "keeps checkpoints from running ahead of the ledger"),
)
# A column with a time or day that no validated constraint bounds. Partitions inherit the constraints of their table.
_UNBOUNDED = r"""
    SELECT c.oid::regclass::text AS name, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE c.relnamespace::regnamespace::text = ANY($1)
        AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped
        AND a.atttypid IN ('timestamptz'::regtype, 'date'::regtype)
        AND NOT EXISTS (SELECT FROM pg_constraint o WHERE o.conrelid = c.oid AND o.contype = 'c' AND o.convalidated
                        AND o.conname LIKE '%\_times' AND a.attnum = ANY(o.conkey))
    ORDER BY 1, 2 LIMIT 1
"""


async def check_times(connection: asyncpg.Connection) -> None:
    """Check that every column with a time has bounds. Raise DifferenceError.

    An audit begins with this, because Python cannot read a time beyond these bounds.
    """
    row = await connection.fetchrow(_UNBOUNDED, ["ledger", *(model.name for model in READ_MODELS)])
    if row is not None:
        raise DifferenceError(f"{row['name']}: the constraint that bounds the times of {row['attname']} is missing")


async def check_bounds(connection: asyncpg.Connection) -> int:
    """Return the number of bounds, each of which was checked for every row. Raise DifferenceError if one is missing."""
    found = await _tables_with(connection, "bounds")
    for table in WITH_BOUNDS:
        expect(table in found, f"ledger.{table}: the constraint that keeps its rows within bounds is missing")
    sized = await _tables_with(connection, "sizes")
    for table in WITH_SIZES:
        expect(table in sized, f"ledger.{table}: the constraint on the sizes of what it holds is missing")
    naming = await _tables_with(connection, "ids")
    for table in WITH_IDS:
        expect(table in naming, f"ledger.{table}: the constraint on the ids of records is missing")
    await _check_forwarded(connection)
    await _check_triggers(connection)
    return len(found)


async def _tables_with(connection: asyncpg.Connection, name: str) -> set[str]:
    """Return the ledger's tables that have the constraint `<table>_<name>`, checked for every row."""
    rows = await connection.fetch(
        "SELECT relname::text FROM pg_constraint JOIN pg_class c ON c.oid = conrelid"
        " WHERE contype = 'c' AND convalidated AND relnamespace = 'ledger'::regnamespace"
        " AND conname = relname || '_' || $1",
        name,
    )
    return {row[0] for row in rows}


async def _check_forwarded(connection: asyncpg.Connection) -> None:
    rows = await connection.fetch(
        "SELECT conname FROM pg_constraint WHERE conrelid = 'ledger.forwarded'::regclass AND contype = 'c'"
        " AND convalidated"
    )
    missing = set(OF_FORWARDED) - {row[0] for row in rows}
    expect(not missing, f"ledger.forwarded: the constraints {sorted(missing)} on what may wait are missing")


async def _check_triggers(connection: asyncpg.Connection) -> None:
    for table, trigger, definition, told in _TRIGGERS:
        enabled = await connection.fetchval(
            "SELECT tgenabled = 'A' AND pg_get_triggerdef(oid) LIKE $3 FROM pg_trigger"
            " WHERE tgrelid = $1::text::regclass AND tgname = $2",
            f"ledger.{table}",
            trigger,
            f"%{definition}%",
        )
        expect(bool(enabled), f"ledger.{table}: the trigger that {told} is missing, or not enabled ALWAYS")
