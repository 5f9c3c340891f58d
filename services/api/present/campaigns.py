"""Campaigns: budget, delivery and spend, from the balance read model."""

from collections.abc import Mapping
from datetime import date
from typing import Any

import asyncpg
from fastapi import APIRouter

from services.api.answers.balances import spend_answer
from services.api.answers.budgets import Today, budget_answer
from services.api.answers.calendars import learn_zones
from services.api.answers.models import Campaign, PathId
from services.api.context import Api
from services.api.described.openapi import READ_PROBLEMS, UNREADABLE
from services.api.door.access import AnyRole
from services.api.door.errors import not_found
from services.api.past.history import campaign_at
from services.api.past.moments import At, Entity, Moment, find_ad_account, read_at
from services.api.present.ad_accounts import account_checkpoints

router = APIRouter(tags=["balances"], responses={**READ_PROBLEMS, **UNREADABLE})


@router.get(
    "/v1/ad-accounts/{ad_account_id}/campaigns/{campaign_id}",
    response_model=Campaign,
    summary="Budget, delivery and spend of a campaign",
)
async def get_campaign(
    ad_account_id: PathId, campaign_id: PathId, context: Api, caller: AnyRole, at: At = None
) -> dict[str, Any]:
    """Return one campaign, now or as the ledger stood `at` a past time. It exists from its first spend or budget on."""

    async def past(connection: asyncpg.Connection, entity: Entity, moment: Moment) -> dict[str, Any]:
        today = Today.at(entity.time_zone, moment.at_us)
        row, spend = await campaign_at(connection, entity, campaign_id, moment, today)
        return {**_answer(ad_account_id, campaign_id, row, today, spend), "as_of": moment.as_of()}

    if at is not None:
        return await read_at(context, caller, at, find_ad_account, ad_account_id, past)
    async with context.snapshot() as connection:
        checkpoints = await account_checkpoints(connection, caller, ad_account_id)
        row = await _campaign(connection, ad_account_id, campaign_id)
        if row is None:
            raise not_found("campaign")
        await learn_zones(connection, [row["time_zone"]])
        today = Today.at(row["time_zone"], checkpoints.now_us(context.clock))
        spend = await _spend(connection, ad_account_id, campaign_id, today.period("daily"))
    return {**_answer(ad_account_id, campaign_id, row, today, spend), "as_of": checkpoints.as_of()}


def _answer(
    ad_account_id: str, campaign_id: str, row: Mapping[str, Any], today: Today, spend: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the answer of a campaign without its `as_of`."""
    return {
        "ad_account_id": ad_account_id,
        "campaign_id": campaign_id,
        "business_center_id": row["business_center_id"],
        "budget": budget_answer(row, today, int(spend["billed_today" if row["mode"] == "daily" else "billed"])),
        "delivery": {
            "delivering": not row["causes"] and not row["ad_account_causes"],
            "causes": row["causes"],
            "ad_account_causes": row["ad_account_causes"],
        },
        "spend": spend_answer(spend),
    }


async def _campaign(connection: asyncpg.Connection, ad_account_id: str, campaign_id: str) -> asyncpg.Record | None:
    return await connection.fetchrow(
        """
        SELECT a.business_center_id, a.time_zone, c.mode, c.amount,
               coalesce(own.causes, '{}') AS causes, coalesce(account.causes, '{}') AS ad_account_causes
        FROM balance.campaigns c
        JOIN balance.ad_accounts a USING (ad_account_id)
        LEFT JOIN balance.pauses own ON own.ad_account_id = c.ad_account_id AND own.campaign_id = c.campaign_id
        LEFT JOIN balance.pauses account ON account.ad_account_id = c.ad_account_id AND account.campaign_id = ''
        WHERE c.ad_account_id = $1 AND c.campaign_id = $2
        """,
        ad_account_id,
        campaign_id,
    )


async def _spend(
    connection: asyncpg.Connection, ad_account_id: str, campaign_id: str, today: tuple[date, date] | None
) -> asyncpg.Record:
    assert today is not None
    return await connection.fetchrow(
        """
        SELECT coalesce(sum(billed), 0) AS billed, coalesce(sum(overdelivered), 0) AS overdelivered,
               coalesce(sum(billed) FILTER (WHERE day = $3), 0) AS billed_today
        FROM balance.campaign_days WHERE ad_account_id = $1 AND campaign_id = $2
        """,
        ad_account_id,
        campaign_id,
        today[0],
    )
