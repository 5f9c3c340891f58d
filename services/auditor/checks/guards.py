"""Checks that the database's guards are in place: append-only triggers, unique indexes, bounds, rights and logins."""

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import asyncpg

from services.auditor.checks.constraints import check_bounds
from services.auditor.checks.logins import check_logins
from services.auditor.difference import DifferenceError, expect
from services.auditor.report import Report

APPEND_ONLY = (
    "entries",
    "batches",
    "outcomes",
    "quarantine",
    "quarantine_replays",
    "policies",
    "ad_accounts",
    "time_zones",
    "resting_campaigns",
    "operators_log",
)
# Before each statement that updates, deletes or truncates: the bits of pg_trigger.tgtype (PostgreSQL, trigger.h).
_BEFORE_UPDATE_DELETE_TRUNCATE = 2 | 8 | 16 | 32


@dataclass(frozen=True, slots=True)
class Guards:
    """How many guards of each sort are in order."""

    triggers: int
    indexes: int
    partitions: int
    bounds: int
    logins: int

    def tell(self, report: Report) -> None:
        """Add these numbers to the report."""
        report.count("append_only_tables", self.triggers, "tables that refuse every change, enabled always")
        report.count("unique_indexes", self.indexes, "unique indexes of positions and sources")
        report.count("bounds", self.bounds, "tables whose rows are kept within bounds")
        report.count("logins", self.logins, "logins of services, without rights or settings beyond their own")


async def check_guards(connection: asyncpg.Connection, shards: int) -> Guards:
    """Return how many guards are in order. Raise DifferenceError at the first that is missing, disabled or changed."""
    partitions = [f"entries_{shard}" for shard in range(shards)]
    found = await _partitions_of(connection, "entries")
    expect(found == set(partitions), f"ledger.entries has the partitions {sorted(found)}, not {sorted(partitions)}")
    await _check_function(connection)
    months = await _partitions_of(connection, "quarantine") | await _partitions_of(connection, "quarantine_replays")
    tables = (*APPEND_ONLY, *partitions, *sorted(months))
    for table in tables:
        await _check_trigger(connection, table)
    await _check_privileges(connection, tables)
    for partition in partitions:
        await _check_indexes(connection, partition)
    bounds = await check_bounds(connection)
    return Guards(len(tables), 2 * len(partitions), len(partitions), bounds, await check_logins(connection))


async def _partitions_of(connection: asyncpg.Connection, table: str) -> set[str]:
    rows = await connection.fetch(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
        " WHERE i.inhparent = to_regclass('ledger.' || $1)",
        table,
    )
    return {row[0] for row in rows}


async def _check_function(connection: asyncpg.Connection) -> None:
    """Raise DifferenceError unless the function that refuses changes has the body that the migration gave it."""
    body = await connection.fetchval("SELECT prosrc FROM pg_proc WHERE oid = 'ledger.refuse_change()'::regprocedure")
    written = (files("shared.ledger") / "schema" / "0001_guards.sql").read_text("utf-8")
    expect(
        f"FUNCTION ledger.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $${body}$$" in written,
        "the function ledger.refuse_change was changed: it no longer has the body of the migration",
    )


async def _check_trigger(connection: asyncpg.Connection, table: str) -> None:
    row = await connection.fetchrow(
        """
        SELECT tgenabled, tgtype, tgqual IS NULL AND tgattr = ''::int2vector AS always,
            tgfoid = 'ledger.refuse_change()'::regprocedure AS refuses
        FROM pg_trigger WHERE tgrelid = to_regclass('ledger.' || $1) AND tgname = 'append_only'
        """,
        table,
    )
    if row is None:
        raise DifferenceError(f"ledger.{table}: the append-only trigger is missing")
    enabled: Any = row["tgenabled"]
    expect(enabled in (b"A", "A"), f"ledger.{table}: the append-only trigger is not enabled ALWAYS")
    whole = row["tgtype"] == _BEFORE_UPDATE_DELETE_TRUNCATE and row["always"] and row["refuses"]
    expect(whole, f"ledger.{table}: the append-only trigger does not refuse every UPDATE, DELETE and TRUNCATE")


async def _check_privileges(connection: asyncpg.Connection, tables: tuple[str, ...]) -> None:
    """Raise DifferenceError if a role other than the owner was granted the right to change these tables."""
    row = await connection.fetchrow(
        """
        SELECT c.relname, a.privilege_type, a.grantee::regrole::text AS grantee
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, aclexplode(c.relacl) a
        WHERE n.nspname = 'ledger' AND c.relname = ANY($1) AND a.grantee <> c.relowner
            AND a.privilege_type IN ('UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER')
        LIMIT 1
        """,
        list(tables),
    )
    if row is not None:
        raise DifferenceError(f"ledger.{row[0]}: {row['grantee']} was granted {row['privilege_type']}")


async def _check_indexes(connection: asyncpg.Connection, partition: str) -> None:
    """Raise DifferenceError if a unique index of positions or of sources (spends and reversals) is missing."""
    rows = await connection.fetch(
        """
        SELECT pg_get_indexdef(indexrelid) FROM pg_index
        WHERE indrelid = to_regclass('ledger.' || $1) AND indisunique AND indisvalid AND indisready AND indislive
        """,
        partition,
    )
    definitions = [row[0] for row in rows]
    for what, ending in (
        ("positions", 'USING btree ("position")'),
        ("sources", "USING btree (source_event_id) WHERE ((part = 0) AND (day IS NOT NULL))"),
    ):
        expect(
            any(definition.endswith(ending) for definition in definitions),
            f"ledger.{partition}: the unique index of {what} is missing or not valid",
        )
