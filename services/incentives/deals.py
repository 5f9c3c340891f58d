"""The deals of the read model: registered, replaced and read (domain page, section 7.1).

A `scope` names the Business Centers that a caller may see; None means all of them. A deal is in a scope if all of its
ad accounts are. A deal outside of the scope is treated as if it did not exist.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

import asyncpg
import structlog

from services.incentives.rating import Method, Period, Slab, parse_rate
from services.incentives.terms import DEAL_TERMS, DealTerms
from shared.contracts.zones import zone
from shared.rules.calendar import Zone
from shared.rules.money import parse_amount
from shared.rules.refusal import require

# A page of deals ends early if it would name more ad accounts than this, or if its lists would have more bytes.
PAGE_ACCOUNTS: Final = 10_000
PAGE_BYTES: Final = 4 * 2**20

# The caller's scope is $1. The first ad account is checked alone, because it rules out most deals of others.
_IN_SCOPE = """($1::text[] IS NULL OR CASE
    WHEN (SELECT business_center_id FROM balance.ad_accounts WHERE ad_account_id = deals.ad_account_ids[1]) = ANY($1)
    THEN NOT EXISTS (
        SELECT FROM unnest(deals.ad_account_ids) AS of_deal (ad_account_id)
        LEFT JOIN balance.ad_accounts a USING (ad_account_id) WHERE (a.business_center_id = ANY($1)) IS NOT TRUE)
    ELSE false END)"""


class UnreadableDealError(Exception):
    """Raised for a row of `incentives.deals` that could not have been registered."""


@dataclass(frozen=True, slots=True)
class Deal:
    """A deal of the read model, parsed and checked."""

    id: str
    client: str
    ad_account_ids: list[str]
    period: Period
    time_zone: str
    currency: str
    method: Method
    slabs: tuple[Slab, ...]
    registered_at: datetime
    updated_at: datetime

    @property
    def calendar(self) -> Zone:
        """Return the days of the deal's time zone."""
        return zone(self.time_zone)


@dataclass(frozen=True, slots=True)
class DealPage:
    """Stored rows in the order of their ids, for `parse_deal`. `next` is the last id, or None on the last page."""

    rows: list[asyncpg.Record]
    next: str | None


@dataclass(frozen=True, slots=True)
class Registered:
    """A deal that was just written. `is_new` is false if it replaced a deal with the same id."""

    deal: Deal
    is_new: bool


def parse_deal(row: Mapping[str, Any]) -> Deal:
    """Return the deal of a stored row.

    Raises:
        UnreadableDealError: the row breaks the terms of a deal, so `register_deal` did not write it.

    """
    terms = {name: row[name] for name in DealTerms.model_fields}
    try:
        days = {name: terms[name].isoformat() for name in ("starts_on", "ends_on")}
        checked = DEAL_TERMS.validate_python({**terms, **days, "slabs": json.loads(terms["slabs"])}, strict=True)
    except (ValueError, RecursionError):
        structlog.get_logger().error("a deal cannot be read", id=row["id"])
        raise UnreadableDealError(row["id"]) from None
    return Deal(
        id=row["id"],
        client=checked.client,
        ad_account_ids=checked.ad_account_ids,
        period=Period(row["starts_on"].toordinal(), row["ends_on"].toordinal()),
        time_zone=checked.time_zone,
        currency=checked.currency,
        method=checked.method,
        slabs=tuple(Slab(parse_amount(slab.from_), parse_rate(slab.rate)) for slab in checked.slabs),
        registered_at=row["registered_at"],
        updated_at=row["updated_at"],
    )


async def read_deal(connection: asyncpg.Connection, scope: list[str] | None, deal_id: str) -> Deal | None:
    """Return the deal with this id, or None if there is none in this scope.

    Raises:
        UnreadableDealError: the stored row is not a deal.

    """
    row = await connection.fetchrow(
        f"SELECT * FROM incentives.deals WHERE {_IN_SCOPE} AND id = $2",  # noqa: S608
        scope,
        deal_id,
    )
    return None if row is None else parse_deal(row)


async def read_page(connection: asyncpg.Connection, scope: list[str] | None, after: str, limit: int) -> DealPage:
    """Return at most `limit` deals of this scope whose ids come after `after`.

    A page is shorter if its deals would name more than `PAGE_ACCOUNTS` ad accounts or have more than `PAGE_BYTES`
    bytes, but it holds at least one deal.
    """
    rows = await connection.fetch(
        f"""
        SELECT * FROM (
            SELECT *, sum(accounts) OVER (ORDER BY id) - accounts AS accounts_before,
                sum(bytes) OVER (ORDER BY id) - bytes AS bytes_before
            FROM (
                SELECT *, cardinality(ad_account_ids) AS accounts,
                    octet_length(ad_account_ids::text) + octet_length(slabs::text) + octet_length(client) AS bytes
                FROM incentives.deals WHERE {_IN_SCOPE} AND id > $2 ORDER BY id LIMIT $3
            ) AS few
        ) AS counted WHERE accounts_before <= $4 AND bytes_before <= $5 ORDER BY id
        """,  # noqa: S608
        scope,
        after,
        limit + 1,
        PAGE_ACCOUNTS,
        PAGE_BYTES,
    )
    page = rows[: _fitting(rows[:limit])]
    return DealPage(page, page[-1]["id"] if len(page) < len(rows) else None)


def _fitting(rows: list[asyncpg.Record]) -> int:
    """Return how many of these deals fit on a page: at least one, if there is one."""
    return max(sum(map(_fits, rows)), min(1, len(rows)))


def _fits(row: asyncpg.Record) -> bool:
    accounts, size = row["accounts_before"] + row["accounts"], row["bytes_before"] + row["bytes"]
    return bool(accounts <= PAGE_ACCOUNTS and size <= PAGE_BYTES)


async def register_deal(
    connection: asyncpg.Connection, scope: list[str] | None, deal_id: str, terms: DealTerms, now: datetime
) -> Registered | None:
    """Register a deal, or replace the one with this id. Call it in a transaction.

    Returns:
        The deal that was written, or None if a deal with this id exists outside of the scope.

    Raises:
        Refused: `not_found` for an ad account that does not exist in this scope, `currency_mismatch` for one whose
            Business Center has another currency than the deal.

    """
    await _require_accounts(connection, scope, terms)
    row = await _store(connection, scope, deal_id, terms, now)
    return None if row is None else Registered(parse_deal(row), row["is_new"])


async def _require_accounts(connection: asyncpg.Connection, scope: list[str] | None, terms: DealTerms) -> None:
    rows = await connection.fetch(
        """
        SELECT a.ad_account_id, b.currency
        FROM balance.ad_accounts a JOIN balance.business_centers b USING (business_center_id)
        WHERE a.ad_account_id = ANY($1) AND ($2::text[] IS NULL OR business_center_id = ANY($2))
        """,
        terms.ad_account_ids,
        scope,
    )
    currencies = {row["ad_account_id"]: row["currency"] for row in rows}
    for ad_account_id in terms.ad_account_ids:
        require(ad_account_id in currencies, "not_found", f"there is no ad account {ad_account_id}")
        currency = currencies[ad_account_id]
        message = f"ad account {ad_account_id} has the currency {currency}, the deal {terms.currency}"
        require(currency == terms.currency, "currency_mismatch", message)


async def _store(
    connection: asyncpg.Connection, scope: list[str] | None, deal_id: str, terms: DealTerms, now: datetime
) -> asyncpg.Record | None:
    return await connection.fetchrow(
        f"""
        INSERT INTO incentives.deals (id, client, ad_account_ids, starts_on, ends_on, time_zone, currency, method,
                                      slabs, registered_at, updated_at)
        VALUES ($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11)
        ON CONFLICT (id) DO UPDATE SET
            client = excluded.client, ad_account_ids = excluded.ad_account_ids, starts_on = excluded.starts_on,
            ends_on = excluded.ends_on, time_zone = excluded.time_zone, currency = excluded.currency,
            method = excluded.method, slabs = excluded.slabs, updated_at = excluded.updated_at
            WHERE {_IN_SCOPE}
        RETURNING *, xmax = 0 AS is_new
        """,  # noqa: S608
        scope,
        deal_id,
        terms.client,
        list(dict.fromkeys(terms.ad_account_ids)),
        date.fromisoformat(terms.starts_on),
        date.fromisoformat(terms.ends_on),
        terms.time_zone,
        terms.currency,
        terms.method,
        json.dumps([slab.model_dump(by_alias=True) for slab in terms.slabs]),
        now,
    )
