"""Reads the figures of Business Centers, ad accounts and campaigns as the ledger stood at a past time."""

from collections import Counter
from datetime import date
from typing import Any

import asyncpg

from services.api.answers.budgets import Today
from services.api.answers.pieces import unhurried
from services.api.door.errors import not_found, unreadable
from services.api.past.facts import BudgetDetails, CampaignBudgetDetails, DeliveryDetails, Fact
from services.api.past.moments import Entity, Moment, facts_since_closing, money_since_closing, sum_spend
from shared.rules.instants import to_datetime
from shared.rules.memory_bounds import MOST_AD_ACCOUNTS

_NO_BUDGET: dict[str, Any] = {
    "mode": None,
    "amount": None,
    "day": None,
    "changes_today": None,
    "start_position": None,
    "started_at": None,
    "spent": None,
}


async def pockets_at(
    connection: asyncpg.Connection, entity: Entity, moment: Moment, money: list[Any]
) -> tuple[Counter[str], int]:
    """Return the entity's own pockets and its credit limit, in micros.

    `money` has the rows of `money_since_closing`, here and below.
    """
    rows = await connection.fetch(
        """
        SELECT m.pocket, sum(m.amount) AS amount, sum(m.limit_change) AS limit_change
        FROM balance.closings c JOIN balance.pocket_movements m ON m.shard = c.shard AND m.closing = c.position
        WHERE c.shard = $1 AND c.position <= $2 AND m.business_center_id = $3 AND m.ad_account_id = $4
        GROUP BY m.pocket
        """,
        moment.shard,
        moment.closed,
        entity.business_center_id,
        entity.ad_account_id,
    )
    pockets = Counter({row["pocket"]: int(row["amount"]) for row in rows})
    limit = sum(int(row["limit_change"]) for row in rows)
    holder = "ad_account" if entity.ad_account_id else "business_center"
    for row in money:
        if row["holder"] == holder and row["pocket"] is not None:
            pockets[row["pocket"]] += int(row["amount"])
            limit += int(row["amount"]) if row["limit_changed"] else 0
    return pockets, limit


async def business_center_spend_at(
    connection: asyncpg.Connection, entity: Entity, moment: Moment, money: list[Any]
) -> dict[str, int]:
    """Return what a Business Center's spend billed and overdelivered, in micros."""
    row = await connection.fetchrow(
        """
        SELECT coalesce(sum(s.billed), 0) AS billed, coalesce(sum(s.overdelivered), 0) AS overdelivered
        FROM balance.closings c JOIN balance.business_center_spend s ON s.shard = c.shard AND s.closing = c.position
        WHERE c.shard = $1 AND c.position <= $2 AND s.business_center_id = $3
        """,
        moment.shard,
        moment.closed,
        entity.business_center_id,
    )
    return _add(row, money)


async def ad_account_spend_at(
    connection: asyncpg.Connection,
    entity: Entity,
    moment: Moment,
    money: list[Any],
    period: tuple[date, date] | None,
) -> tuple[dict[str, int], int]:
    """Return what an account's spend billed and overdelivered, and what the days of `period` billed, in micros.

    Without a period the latter is 0. `money` was read with the same period.
    """
    row = await connection.fetchrow(
        """
        SELECT coalesce(sum(s.billed), 0) AS billed, coalesce(sum(s.overdelivered), 0) AS overdelivered,
               coalesce(sum(s.billed) FILTER (WHERE s.day BETWEEN $4 AND $5), 0) AS in_period
        FROM balance.closings c JOIN balance.ad_account_spend s ON s.shard = c.shard AND s.closing = c.position
        WHERE c.shard = $1 AND c.position <= $2 AND s.ad_account_id = $3
        """,
        moment.shard,
        moment.closed,
        entity.ad_account_id,
        *(period or (None, None)),
    )
    return _add(row, money), int(row["in_period"]) + _billed_in_period(money)


async def campaign_spend_at(
    connection: asyncpg.Connection, entity: Entity, campaign_id: str, moment: Moment, today: date
) -> dict[str, int] | None:
    """Return what a campaign's spend billed, overdelivered, and billed `today`, in micros; None if it never spent."""
    money = await money_since_closing(connection, entity, moment, campaign_id=campaign_id, period=(today, today))
    row = await connection.fetchrow(
        """
        SELECT count(*) AS rows, coalesce(sum(s.billed), 0) AS billed,
               coalesce(sum(s.overdelivered), 0) AS overdelivered,
               coalesce(sum(s.billed) FILTER (WHERE s.day = $5), 0) AS billed_today
        FROM balance.closings c JOIN balance.campaign_spend s ON s.shard = c.shard AND s.closing = c.position
        WHERE c.shard = $1 AND c.position <= $2 AND s.ad_account_id = $3 AND s.campaign_id = $4
        """,
        moment.shard,
        moment.closed,
        entity.ad_account_id,
        campaign_id,
        today,
    )
    if not row["rows"] and not any(each["is_spend"] for each in money):
        return None
    return {**_add(row, money), "billed_today": int(row["billed_today"]) + _billed_in_period(money)}


async def budget_at(
    connection: asyncpg.Connection, entity: Entity, moment: Moment, today: Today, facts: list[Fact]
) -> tuple[dict[str, Any], list[asyncpg.Record]]:
    """Return an account's budget, and the money since the last closing, with the budget's period of `today`.

    The budget's `spent` is what a custom budget has counted, in micros. `facts` are those of `facts_since_closing`,
    here and below.
    """
    budget = await _closed_budget(connection, entity, moment)
    for fact in facts:
        if isinstance(fact.details, BudgetDetails):
            _set_budget(budget, fact.position, fact.details)
    period = today.period(budget["mode"] or "unlimited")
    money = await money_since_closing(connection, entity, moment, custom_start=budget["start_position"], period=period)
    counted = [row for row in money if row["counted"] and row["is_spend"] and not row["overdelivery"]]
    budget["spent"] = int(budget["spent"] or 0) - sum(int(row["amount"]) for row in counted)
    return budget, money


async def campaign_budget_at(
    connection: asyncpg.Connection, entity: Entity, campaign_id: str, moment: Moment, facts: list[Fact]
) -> dict[str, Any] | None:
    """Return mode and amount of a campaign's budget; None if it was never set."""
    found = await connection.fetchrow(
        """
        SELECT b.mode, b.amount
        FROM balance.closings c
        JOIN balance.campaign_budget_closings b ON b.shard = c.shard AND b.closing = c.position
        WHERE c.shard = $1 AND c.position <= $2 AND b.ad_account_id = $3 AND b.campaign_id = $4
        ORDER BY c.position DESC LIMIT 1
        """,
        moment.shard,
        moment.closed,
        entity.ad_account_id,
        campaign_id,
    )
    budget = None if found is None else dict(found)
    for fact in facts:
        if type(fact.details) is CampaignBudgetDetails and fact.campaign_id == campaign_id:
            budget = {"mode": fact.details.mode, "amount": fact.details.amount}
    return budget


async def causes_at(
    connection: asyncpg.Connection, entity: Entity, campaign_id: str, moment: Moment, facts: list[Fact]
) -> list[str]:
    """Return the pause causes of a campaign itself, or of the account if `campaign_id` is empty."""
    causes = await connection.fetchval(
        """
        SELECT p.causes
        FROM balance.closings c JOIN balance.pause_closings p ON p.shard = c.shard AND p.closing = c.position
        WHERE c.shard = $1 AND c.position <= $2 AND p.ad_account_id = $3 AND p.campaign_id = $4
        ORDER BY c.position DESC LIMIT 1
        """,
        moment.shard,
        moment.closed,
        entity.ad_account_id,
        campaign_id,
    )
    for fact in facts:
        if isinstance(fact.details, DeliveryDetails) and (fact.campaign_id or "") == campaign_id:
            causes = fact.details.causes
    return causes or []


async def business_center_facts_at(
    connection: asyncpg.Connection, entity: Entity, moment: Moment
) -> tuple[asyncpg.Record, list[dict[str, str]]]:
    """Return the facts of a Business Center, and the ad accounts left out of automatic allocation.

    The facts are currency, zone, the instant from which it allocates automatically, and the bound for one spend.

    Raises:
        ApiError: 409 if more ad accounts are left out than a Business Center may have.

    """
    row = await connection.fetchrow(
        """
        SELECT b.business_center_id, b.shard, b.currency, b.time_zone, a.enabled_at,
               (SELECT s.amount FROM balance.largest_spends s WHERE s.business_center_id = b.business_center_id
                AND s.position <= $3 ORDER BY s.position DESC LIMIT 1) AS largest_spend
        FROM balance.business_centers b
        LEFT JOIN balance.automatic_allocation a ON a.business_center_id = b.business_center_id AND a.enabled_at <= $2
        WHERE b.business_center_id = $1
        """,
        entity.business_center_id,
        moment.recorded_at,
        moment.position,
    )
    left_out = await connection.fetch(
        """
        SELECT l.ad_account_id, l.reason
        FROM balance.left_out l JOIN balance.ad_accounts a USING (ad_account_id)
        WHERE l.business_center_id = $1 AND a.opened_at <= $2 ORDER BY l.ad_account_id LIMIT $3
        """,
        entity.business_center_id,
        moment.recorded_at,
        MOST_AD_ACCOUNTS + 1,
    )
    if len(left_out) > MOST_AD_ACCOUNTS:
        raise unreadable("the ad accounts that it leaves out of automatic allocation")
    return row, [dict(each) async for each in unhurried(left_out)]


async def ad_account_facts_at(connection: asyncpg.Connection, entity: Entity, moment: Moment) -> asyncpg.Record:
    """Return an account's own fields, and whether it took part in automatic allocation."""
    return await connection.fetchrow(
        """
        SELECT a.ad_account_id, a.business_center_id, a.billing, a.buying_type, a.time_zone,
               e.enabled_at IS NOT NULL AND l.reason IS NULL AS automatic_allocation
        FROM balance.ad_accounts a
        LEFT JOIN balance.automatic_allocation e
            ON e.business_center_id = a.business_center_id AND e.enabled_at <= $2
        LEFT JOIN balance.left_out l
            ON l.business_center_id = a.business_center_id AND l.ad_account_id = a.ad_account_id
        WHERE a.ad_account_id = $1
        """,
        entity.ad_account_id,
        moment.recorded_at,
    )


async def campaign_at(
    connection: asyncpg.Connection, entity: Entity, campaign_id: str, moment: Moment, today: Today
) -> tuple[dict[str, Any], dict[str, int]]:
    """Return a campaign's budget and causes, and its figures of spend.

    Raises:
        ApiError: 404 if there was no such campaign at that time.

    """
    period = today.period("daily")
    assert period is not None
    facts = await facts_since_closing(connection, entity, moment, campaign_id)
    budget = await campaign_budget_at(connection, entity, campaign_id, moment, facts)
    spend = await campaign_spend_at(connection, entity, campaign_id, moment, period[0])
    if budget is None and spend is None:
        raise not_found("campaign at that time")
    row = {
        **(budget or {"mode": "unlimited", "amount": None}),
        "business_center_id": entity.business_center_id,
        "causes": await causes_at(connection, entity, campaign_id, moment, facts),
        "ad_account_causes": await causes_at(connection, entity, "", moment, facts),
    }
    return row, spend or {"billed": 0, "overdelivered": 0, "billed_today": 0}


async def _closed_budget(connection: asyncpg.Connection, entity: Entity, moment: Moment) -> dict[str, Any]:
    found = await connection.fetchrow(
        """
        SELECT b.mode, b.amount, b.day, b.changes_today, b.start_position, b.started_at, b.spent
        FROM balance.closings c JOIN balance.budget_closings b ON b.shard = c.shard AND b.closing = c.position
        WHERE c.shard = $1 AND c.position <= $2 AND b.ad_account_id = $3
        ORDER BY c.position DESC LIMIT 1
        """,
        moment.shard,
        moment.closed,
        entity.ad_account_id,
    )
    return dict(_NO_BUDGET if found is None else found)


def _set_budget(budget: dict[str, Any], position: int, details: BudgetDetails) -> None:
    """Apply a budget fact. A custom budget that is set again keeps what it has counted (domain page, section 4.5)."""
    budget.update(mode=details.mode, amount=details.amount, day=details.day, changes_today=details.changes_today)
    if details.mode != "custom":
        budget.update(start_position=None, started_at=None, spent=None)
    elif details.restarted:
        started_at = None if details.started_at is None else to_datetime(details.started_at)
        budget.update(start_position=position, started_at=started_at, spent=None)


def _add(closed: asyncpg.Record, money: list[Any]) -> dict[str, int]:
    billed, overdelivered = sum_spend(money)
    return {
        "billed": int(closed["billed"]) + billed,
        "overdelivered": int(closed["overdelivered"]) + overdelivered,
    }


def _billed_in_period(money: list[Any]) -> int:
    return sum_spend([row for row in money if row["in_period"]])[0]
