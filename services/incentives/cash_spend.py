"""The cash spend of a deal, from the read model that `fold.sql` keeps by ad account and quarter of an hour.

Cash spend is the spend that cash and credit paid, net of reversals (domain page, section 7.1). Days are proleptic
ordinals in the deal's time zone. They come from our own calendar, because the database may have another release of the
time zones, and because its days differ if a clock is set back over midnight.
"""

from datetime import date, datetime

import asyncpg

from services.incentives.deals import Deal
from shared.rules.instants import to_datetime


async def read_shards(connection: asyncpg.Connection, deal: Deal) -> list[int]:
    """Return the shards whose entries hold the spend of the deal's ad accounts."""
    rows = await connection.fetch(
        "SELECT DISTINCT shard FROM balance.ad_accounts WHERE ad_account_id = ANY($1)", deal.ad_account_ids
    )
    return [row["shard"] for row in rows]


async def read_total(connection: asyncpg.Connection, deal: Deal) -> int:
    """Return the cash spend of the deal's period, of all its ad accounts, in micros."""
    found = await connection.fetchval(
        "SELECT coalesce(sum(amount), 0) FROM incentives.cash_spend "
        "WHERE ad_account_id = ANY($1) AND bucket >= $2 AND bucket < $3",
        deal.ad_account_ids,
        *_bounds(deal, range(deal.period.first_day, deal.period.last_day + 1)),
    )
    return int(found)


async def read_by_account(connection: asyncpg.Connection, deal: Deal, days: range) -> dict[str, int]:
    """Return the cash spend of these days by ad account, in micros. Ad accounts without cash spend are left out."""
    if not days:
        return {}
    rows = await connection.fetch(
        "SELECT ad_account_id, sum(amount) AS amount FROM incentives.cash_spend "
        "WHERE ad_account_id = ANY($1) AND bucket >= $2 AND bucket < $3 GROUP BY 1 ORDER BY 1",
        deal.ad_account_ids,
        *_bounds(deal, days),
    )
    return {row["ad_account_id"]: int(row["amount"]) for row in rows}


async def read_by_day(
    connection: asyncpg.Connection, deal: Deal, days: range, after: tuple[date, str], limit: int
) -> list[asyncpg.Record]:
    """Return cash spend by day and ad account: the first `limit` rows after a day and an ad account, in this order.

    A row has `day` (a date of the deal's zone), `ad_account_id`, `business_center_id` and `amount` in micros.
    """
    days = range(max(days.start, after[0].toordinal()), days.stop)
    if not days:
        return []
    rows: list[asyncpg.Record] = await connection.fetch(
        """
        SELECT d.day, d.ad_account_id, a.business_center_id, d.amount
        FROM (
            SELECT $2::date + width_bucket(bucket, $3::timestamptz[]) - 1 AS day, ad_account_id, sum(amount) AS amount
            FROM incentives.cash_spend WHERE ad_account_id = ANY($1) AND bucket >= $3[1] AND bucket < $4
            GROUP BY 1, 2
        ) AS d JOIN balance.ad_accounts a USING (ad_account_id)
        WHERE (d.day, d.ad_account_id) > ($5::date, $6::text) ORDER BY 1, 2 LIMIT $7
        """,
        deal.ad_account_ids,
        date.fromordinal(days.start),
        [to_datetime(deal.calendar.start(day)) for day in days],
        to_datetime(deal.calendar.start(days.stop)),
        *after,
        limit,
    )
    return rows


def _bounds(deal: Deal, days: range) -> tuple[datetime, datetime]:
    """Return the first instant of the days, and the first instant after them."""
    calendar = deal.calendar
    return to_datetime(calendar.start(days.start)), to_datetime(calendar.start(days.stop))
