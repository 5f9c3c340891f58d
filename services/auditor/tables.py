"""The read models' tables as the auditor compares them: rows by key, in the units of the ledger.

Amounts are micros, days proleptic ordinals and times microseconds since the Unix epoch, so that both sides are numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import asyncpg

from services.auditor.difference import DifferenceError
from shared.contracts.fields import format_time
from shared.rules.calendar import date_text
from shared.rules.money import format_micros

Rows = dict[tuple[Any, ...], tuple[Any, ...]]

_AMOUNTS = frozenset({"amount", "spent", "remaining", "limit_change", "billed", "overdelivered"})
_TIMES = frozenset({"opened_at", "enabled_at", "started_at", "bucket", "quarter"})


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a read model, its key and its other columns.

    `follower` names the follower at whose checkpoint the audit compares the table, or is "closings" for tables that
    the audit compares at each closing of the books.
    """

    name: str
    follower: str
    key: tuple[str, ...]
    values: tuple[str, ...] = ()


TABLES = (
    Table(
        "balance.business_centers",
        "balance",
        ("business_center_id",),
        ("shard", "currency", "time_zone", "finance_roles", "opened_at"),
    ),
    Table(
        "balance.ad_accounts",
        "balance",
        ("ad_account_id",),
        ("business_center_id", "shard", "billing", "buying_type", "time_zone", "owned", "opened_at"),
    ),
    Table("balance.automatic_allocation", "balance", ("business_center_id",), ("enabled_at",)),
    Table("balance.left_out", "balance", ("business_center_id", "ad_account_id"), ("reason",)),
    Table("balance.largest_spends", "balance", ("business_center_id", "position"), ("amount",)),
    Table("balance.budgets", "balance", ("ad_account_id",), ("mode", "amount", "day", "changes_today", "position")),
    Table("balance.custom_budgets", "balance", ("ad_account_id",), ("start_position", "started_at", "spent")),
    Table("balance.campaigns", "balance", ("ad_account_id", "campaign_id"), ("mode", "amount", "position")),
    Table("balance.pauses", "balance", ("ad_account_id", "campaign_id"), ("causes", "position")),
    Table("balance.pockets", "balance", ("business_center_id", "ad_account_id", "pocket"), ("amount",)),
    Table("balance.credit_limits", "balance", ("business_center_id",), ("amount",)),
    Table("balance.grants", "balance", ("business_center_id", "ad_account_id", "pocket", "grant_id"), ("remaining",)),
    Table("balance.business_center_days", "balance", ("business_center_id", "day"), ("billed", "overdelivered")),
    Table("balance.ad_account_days", "balance", ("ad_account_id", "day"), ("billed", "overdelivered")),
    Table("balance.campaign_days", "balance", ("ad_account_id", "campaign_id", "day"), ("billed", "overdelivered")),
    Table("balance.entry_blocks", "balance", ("business_center_id", "ad_account_id", "shard", "block")),
    Table("balance.closings", "closings", ("shard", "position")),
    Table(
        "balance.pocket_movements",
        "closings",
        ("shard", "closing", "business_center_id", "ad_account_id", "pocket", "quarter"),
        ("amount", "limit_change"),
    ),
    Table(
        "balance.business_center_spend",
        "closings",
        ("shard", "closing", "business_center_id"),
        ("billed", "overdelivered"),
    ),
    Table(
        "balance.ad_account_spend",
        "closings",
        ("shard", "closing", "ad_account_id", "day"),
        ("billed", "overdelivered"),
    ),
    Table(
        "balance.campaign_spend",
        "closings",
        ("shard", "closing", "ad_account_id", "campaign_id", "day"),
        ("billed", "overdelivered"),
    ),
    Table(
        "balance.budget_closings",
        "closings",
        ("shard", "closing", "ad_account_id"),
        ("mode", "amount", "day", "changes_today", "start_position", "started_at", "spent"),
    ),
    Table(
        "balance.campaign_budget_closings",
        "closings",
        ("shard", "closing", "ad_account_id", "campaign_id"),
        ("mode", "amount"),
    ),
    Table("balance.pause_closings", "closings", ("shard", "closing", "ad_account_id", "campaign_id"), ("causes",)),
    Table("incentives.cash_spend", "incentives", ("ad_account_id", "bucket"), ("amount",)),
    Table("signals.latest", "signals", ("shard", "ad_account_id", "campaign_id"), ("position",)),
)


async def read_table(connection: asyncpg.Connection, table: Table) -> Rows:
    """Return all rows of a table by key. Call it in a transaction."""
    columns = ", ".join(_expression(column) for column in (*table.key, *table.values))
    width = len(table.key)
    rows: Rows = {}
    query = f"SELECT {columns} FROM {table.name}"  # noqa: S608 (names of TABLES)
    async for row in connection.cursor(query, prefetch=5_000):
        values = tuple(tuple(value) if isinstance(value, list) else value for value in row)
        rows[values[:width]] = values[width:]
    return rows


def _expression(column: str) -> str:
    if column in _TIMES:
        return f"(extract(epoch FROM {column}) * 1000000)::bigint"
    if column == "day":
        return "day - date '0001-01-01' + 1"
    return column


def compare(table: Table, expected: Rows, held: Rows, as_of: str) -> int:
    """Remove the expected rows from those held, and return their number. Raise DifferenceError if one differs.

    `as_of` says at which position of which shard, in the words of the error.
    """
    for key, values in expected.items():
        found = held.pop(key, None)
        if found != values:
            shown = "has no such row" if found is None else f"holds {say(table.values, found)}"
            raise DifferenceError(
                f"{table.name} {say(table.key, key)}, {as_of}: the read model {shown},"
                f" but the ledger gives {say(table.values, values)}"
            )
    return len(expected)


def expect_none_left(held: dict[str, Rows]) -> None:
    """Raise DifferenceError if a row is left after the expected rows of all shards were removed."""
    for table in TABLES:
        for key, values in held[table.name].items():
            raise DifferenceError(
                f"{table.name} {say(table.key, key)}: the read model holds {say(table.values, values) or 'the row'},"
                f" but the ledger gives no such row"
            )


def say(columns: tuple[str, ...], values: tuple[Any, ...]) -> str:
    """Return columns and their values in words."""
    return ", ".join(_said(columns, values))


def _said(columns: tuple[str, ...], values: tuple[Any, ...]) -> Iterator[str]:
    for column, value in zip(columns, values, strict=True):
        shown = value
        if column in _AMOUNTS and value is not None:
            exact = Decimal(value)
            is_whole = exact.is_finite() and exact == int(exact)
            shown = format_micros(int(exact)) if is_whole else f"{exact} micros"
        elif column in _TIMES and value is not None:
            shown = format_time(value)
        elif column == "day":
            shown = date_text(value)
        yield f"{column} {shown}"
