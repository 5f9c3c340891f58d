"""A ledger for the followers' tests, and the read models that follow from it, folded one entry at a time."""

import json
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg

from shared.ledger.follow import Range

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
TABLES = {
    "balance": (
        "business_centers",
        "ad_accounts",
        "automatic_allocation",
        "left_out",
        "budgets",
        "custom_budgets",
        "campaigns",
        "largest_spends",
        "pauses",
        "pockets",
        "credit_limits",
        "grants",
        "business_center_days",
        "ad_account_days",
        "campaign_days",
        "entry_blocks",
    ),
    "incentives": ("cash_spend",),
}
BLOCK = 65_536

Rows = dict[str, dict[Any, Any]]


@dataclass(frozen=True)
class Entry:
    """One row of ledger.entries. The fields are in the table's order."""

    shard: int
    position: int
    amount: int | None
    occurred_at: datetime
    recorded_at: datetime
    source_event_id: uuid.UUID | None
    part: int
    day: date | None
    period: date | None
    kind: str
    holder: str | None
    pocket: str | None
    grant_id: str | None
    business_center_id: str
    ad_account_id: str | None
    campaign_id: str | None
    cause: str | None
    reverses: uuid.UUID | None
    details: dict[str, Any] | None


COLUMNS = [field.name for field in fields(Entry)]


def micros(moment: datetime) -> int:
    """Return the microseconds since the Unix epoch."""
    return (moment - EPOCH) // timedelta(microseconds=1)


class Ledger:
    """Holds entries of one shard at the positions `first`, `first + 1`, …."""

    def __init__(self, shard: int = 0, first: int = 1) -> None:
        self.entries: list[Entry] = []
        self._shard = shard
        self._first = first

    @property
    def next_position(self) -> int:
        """Return the position of the next entry."""
        return self._first + len(self.entries)

    def add(self, kind: str, business_center: str, account: str | None = None, **others: Any) -> Entry:
        """Append an entry. Omitted fields are null, and its times are noon plus the position in minutes."""
        moment = NOON + timedelta(minutes=self.next_position - self._first)
        values: dict[str, Any] = {
            **dict.fromkeys(COLUMNS),
            "shard": self._shard,
            "position": self.next_position,
            "kind": kind,
            "business_center_id": business_center,
            "ad_account_id": account,
            "occurred_at": moment,
            "recorded_at": moment,
            "part": 0,
            **others,
        }
        entry = Entry(**values)
        self.entries.append(entry)
        return entry

    def ranges(self, lengths: Iterable[int]) -> list[Range]:
        """Cut the ledger into ranges of these lengths. The last range takes the rest."""
        cut, first, last = [], self._first, self.next_position - 1
        for length in lengths:
            if first + length <= last:
                cut.append(Range(self._shard, first, first + length - 1))
                first += length
        return [*cut, Range(self._shard, first, last)]

    async def write(self, connection: asyncpg.Connection) -> None:
        """Write the entries into an empty ledger, as one batch."""
        records = [
            tuple(
                json.dumps(value, sort_keys=True, separators=(",", ":")) if isinstance(value, dict) else value
                for value in (getattr(entry, column) for column in COLUMNS)
            )
            for entry in self.entries
        ]
        async with connection.transaction():
            await connection.copy_records_to_table("entries", schema_name="ledger", columns=COLUMNS, records=records)
            await connection.execute(
                "UPDATE ledger.shards SET position = $2 WHERE shard = $1", self._shard, self.next_position - 1
            )
            await connection.execute("SELECT pg_notify('ledger', $1)", str(self._shard))


# The tables of the ledger that a trigger protects from changes, each with the trigger.
TRIGGERS = """
    SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE tgname IN ('append_only', 'only_onward')
"""


async def allow_erasing(connection: asyncpg.Connection) -> None:
    """Allow the erasing of this test's own ledger, as only the superuser can."""
    for table, trigger in await connection.fetch(TRIGGERS):
        await connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER {trigger}")


async def erase(connection: asyncpg.Connection) -> None:
    """Empty the ledger and the read models."""
    await erase_read_models(connection)
    await connection.execute("DELETE FROM ledger.entries; DELETE FROM ledger.checkpoints")
    await connection.execute("UPDATE ledger.shards SET position = 0")


async def erase_read_models(connection: asyncpg.Connection) -> None:
    """Empty the read models, so that a fold begins again."""
    for schema, tables in TABLES.items():
        for table in tables:
            await connection.execute(f"DELETE FROM {schema}.{table}")


async def read_models(connection: asyncpg.Connection) -> dict[str, list[str]]:
    """Return every row of the read models as PostgreSQL writes it, sorted."""
    return {
        table: [row[0] for row in await connection.fetch(f"SELECT t::text FROM {schema}.{table} t ORDER BY 1")]
        for schema, tables in TABLES.items()
        for table in tables
    }


async def read_rows(connection: asyncpg.Connection) -> Rows:
    """Return the same rows by key, in the form of `plain_fold`."""
    rows: Rows = {}
    for schema, tables in TABLES.items():
        for table in tables:
            keys = await connection.fetch(
                "SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid "
                "AND a.attnum = ANY (i.indkey) WHERE i.indrelid = $1::regclass AND i.indisprimary",
                f"{schema}.{table}",
            )
            key = [each["attname"] for each in keys]
            rows[table] = {
                tuple(row[name] for name in key): {name: value for name, value in row.items() if name not in key}
                for row in await connection.fetch(f"SELECT * FROM {schema}.{table}")
            }
    return rows


def plain_fold(entries: Iterable[Entry]) -> Rows:
    """Return the read models of a ledger, by the same rules as the followers', one entry at a time."""
    rows: Rows = {table: {} for tables in TABLES.values() for table in tables}
    for entry in entries:
        _FACTS.get(entry.kind, _nothing)(rows, entry)
        if entry.amount is not None:
            _money(rows, entry, entry.amount)
        for account in {"", entry.ad_account_id or ""}:
            rows["entry_blocks"][(entry.business_center_id, account, entry.shard, entry.position // BLOCK)] = {}
    return rows


def _details(entry: Entry) -> dict[str, Any]:
    assert entry.details is not None
    return entry.details


def _nothing(rows: Rows, entry: Entry) -> None:
    pass


def _business_center_opened(rows: Rows, entry: Entry) -> None:
    rows["business_centers"][(entry.business_center_id,)] = {
        **_details(entry),
        "shard": entry.shard,
        "opened_at": entry.occurred_at,
    }


def _ad_account_opened(rows: Rows, entry: Entry) -> None:
    details = _details(entry)
    rows["ad_accounts"][(entry.ad_account_id,)] = {
        "business_center_id": entry.business_center_id,
        "shard": entry.shard,
        **{name: details[name] for name in ("billing", "buying_type", "time_zone", "owned")},
        "opened_at": entry.occurred_at,
    }
    if details["left_out"]:
        rows["left_out"][(entry.business_center_id, entry.ad_account_id)] = {"reason": details["left_out"]}


def _automatic_allocation_enabled(rows: Rows, entry: Entry) -> None:
    rows["automatic_allocation"][(entry.business_center_id,)] = {"enabled_at": entry.occurred_at}
    for account in _details(entry)["left_out"]:
        key = (entry.business_center_id, account["ad_account_id"])
        rows["left_out"].setdefault(key, {"reason": account["reason"]})


def _budget(rows: Rows, entry: Entry) -> None:
    details, key = _details(entry), (entry.ad_account_id,)
    rows["budgets"][key] = {
        "mode": details["mode"],
        "amount": details["amount"],
        "day": date.fromisoformat(details["day"]),
        "changes_today": details["changes_today"],
        "position": entry.position,
    }
    if details["mode"] != "custom":
        rows["custom_budgets"].pop(key, None)
    elif details["restarted"]:
        rows["custom_budgets"][key] = {
            "start_position": entry.position,
            "started_at": EPOCH + timedelta(microseconds=details["started_at"]),
            "spent": 0,
        }


def _campaign_budget(rows: Rows, entry: Entry) -> None:
    rows["campaigns"][(entry.ad_account_id, entry.campaign_id)] = {
        "mode": _details(entry)["mode"],
        "amount": _details(entry)["amount"],
        "position": entry.position,
    }


def _largest_spend(rows: Rows, entry: Entry) -> None:
    rows["largest_spends"][(entry.business_center_id, entry.position)] = {"amount": _details(entry)["amount"]}


def _delivery(rows: Rows, entry: Entry) -> None:
    rows["pauses"][(entry.ad_account_id, entry.campaign_id or "")] = {
        "causes": _details(entry)["causes"],
        "position": entry.position,
    }


_FACTS: dict[str, Callable[[Rows, Entry], None]] = {
    "business_center_opened": _business_center_opened,
    "ad_account_opened": _ad_account_opened,
    "automatic_allocation_enabled": _automatic_allocation_enabled,
    "budget_set": _budget,
    "budget_synced": _budget,
    "budget_reset": _budget,
    "campaign_budget_set": _campaign_budget,
    "largest_spend_set": _largest_spend,
    "pause": _delivery,
    "resume": _delivery,
}


def _money(rows: Rows, entry: Entry, amount: int) -> None:
    bc = entry.business_center_id
    if entry.pocket:
        holder = entry.ad_account_id if entry.holder == "ad_account" else ""
        _sum(rows["pockets"], (bc, holder, entry.pocket), amount=amount)
        if entry.grant_id:
            _sum(rows["grants"], (bc, holder, entry.pocket, entry.grant_id), remaining=amount)
    if entry.kind == "credit_limit_change":
        _sum(rows["credit_limits"], (bc,), amount=amount)
    if entry.day:
        _spend(rows, entry, amount)


def _spend(rows: Rows, entry: Entry, amount: int) -> None:
    overdelivered = entry.kind == "overdelivery" or (entry.kind == "reversal" and entry.pocket is None)
    figures = {"billed": 0 if overdelivered else -amount, "overdelivered": amount if overdelivered else 0}
    account, campaign = entry.ad_account_id, entry.campaign_id
    _sum(rows["business_center_days"], (entry.business_center_id, entry.day), **figures)
    _sum(rows["ad_account_days"], (account, entry.day), **figures)
    _sum(rows["campaign_days"], (account, campaign, entry.day), **figures)
    rows["campaigns"].setdefault((account, campaign), {"mode": "unlimited", "amount": None, "position": 0})
    position, occurred_at = entry.position, entry.occurred_at
    if entry.kind in ("reversal", "forfeit"):
        position = _details(entry)["spend_position"]
        occurred_at = EPOCH + timedelta(microseconds=_details(entry)["spend_occurred_at"])
    custom = rows["custom_budgets"].get((account,))
    if custom and position > custom["start_position"]:
        custom["spent"] += figures["billed"]
    if entry.pocket in ("cash", "credit", "credit_line"):
        bucket = occurred_at.replace(minute=occurred_at.minute // 15 * 15, second=0, microsecond=0)
        _sum(rows["cash_spend"], (account, bucket), amount=-amount)


def _sum(table: dict[Any, Any], key: tuple[Any, ...], **figures: int) -> None:
    row = table.setdefault(key, defaultdict(int))
    for name, figure in figures.items():
        row[name] += figure
