"""`GET /v1/deals/{id}/pacing`: how far a deal has got, live (domain page, sections 7.2 and 7.3)."""

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import asyncpg
from fastapi import APIRouter
from pydantic import BaseModel, Field

from services.api.checkpoints import Checkpoints, read_checkpoints
from services.api.context import Api
from services.api.described.openapi import READ_PROBLEMS, UNREADABLE_DEAL
from services.api.door.access import FinanceReader
from services.api.models import AsOf, Money, PathId, money
from services.api.present.deals import read_deal
from shared.contracts.zones import zone
from shared.rules.calendar import Zone
from shared.rules.incentives import (
    Line,
    Period,
    Rating,
    Slab,
    forecast_cash_spend,
    format_rate,
    next_slab,
    parse_rate,
    rate_spend,
    run_rate_per_day,
)
from shared.rules.money import parse_amount

router = APIRouter(tags=["deals"], responses={**READ_PROBLEMS, **UNREADABLE_DEAL})

Rate = Annotated[str, Field(examples=["0.03"])]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class CalculationLine(BaseModel):
    """amount = spend x rate, rounded half-even once; `to` is null in the top band."""

    from_: Annotated[Money, Field(alias="from")]
    to: Money | None
    spend: Money
    rate: Rate
    amount: Money


class NextTier(BaseModel):
    """The slab to be reached next, and how much cash spend is missing."""

    from_: Annotated[Money, Field(alias="from")]
    rate: Rate
    distance: Money


class Forecast(BaseModel):
    """At the period's end, if cash spend goes on at its run rate."""

    cash_spend: Money
    tier: int
    rate: Rate
    unlocked: Money


class Pacing(BaseModel):
    """`tier` counts from 1, 0 is none. The lines of `calculation` add up to `unlocked`."""

    deal_id: str
    cash_spend: Money
    tier: int
    rate: Rate
    unlocked: Money
    calculation: list[CalculationLine]
    next_tier: NextTier | None
    run_rate_per_day: Money
    forecast: Forecast
    as_of: AsOf


@router.get("/v1/deals/{deal_id}/pacing", response_model=Pacing, summary="How far a deal has got")
async def get_pacing(deal_id: PathId, context: Api, caller: FinanceReader) -> dict[str, Any]:
    """Cash spend so far, the tier and rate it reached, what that unlocks line by line, and the forecast."""
    async with context.snapshot() as connection:
        deal = await read_deal(connection, caller, deal_id)
        checkpoints = await _checkpoints(connection, deal["ad_account_ids"])
        days = zone(deal["time_zone"])
        period = Period(deal["starts_on"].toordinal(), deal["ends_on"].toordinal())
        cash_spend = await _cash_spend(connection, deal["ad_account_ids"], days, period)
    today = days.day(checkpoints.now_us(context.clock))
    return {"deal_id": deal_id, **_pacing(deal, cash_spend, period, today), "as_of": checkpoints.as_of()}


async def _checkpoints(connection: asyncpg.Connection, ad_account_ids: list[str]) -> Checkpoints:
    rows = await connection.fetch(
        "SELECT DISTINCT shard FROM balance.ad_accounts WHERE ad_account_id = ANY($1)", ad_account_ids
    )
    return await read_checkpoints(connection, "incentives", [row["shard"] for row in rows])


async def _cash_spend(connection: asyncpg.Connection, ad_account_ids: list[str], days: Zone, period: Period) -> int:
    """Net cash spend from the first instant of the first day until the last day is over, in micros."""
    found = await connection.fetchval(
        "SELECT coalesce(sum(amount), 0) FROM incentives.cash_spend "
        "WHERE ad_account_id = ANY($1) AND bucket >= $2 AND bucket < $3",
        ad_account_ids,
        _EPOCH + timedelta(microseconds=days.start(period.first_day)),
        _EPOCH + timedelta(microseconds=days.start(period.last_day + 1)),
    )
    return int(found)


def _pacing(deal: asyncpg.Record, cash_spend: int, period: Period, today: int) -> dict[str, Any]:
    slabs = tuple(Slab(parse_amount(each["from"]), parse_rate(each["rate"])) for each in json.loads(deal["slabs"]))
    rating = rate_spend(slabs, deal["method"], cash_spend)
    forecast = forecast_cash_spend(cash_spend, period, today)
    return {
        "cash_spend": money(cash_spend),
        **_rating(rating),
        "calculation": [_line(line) for line in rating.lines],
        "next_tier": _next_tier(next_slab(slabs, cash_spend), cash_spend),
        "run_rate_per_day": money(run_rate_per_day(cash_spend, period, today)),
        "forecast": {"cash_spend": money(forecast), **_rating(rate_spend(slabs, deal["method"], forecast))},
    }


def _rating(rating: Rating) -> dict[str, Any]:
    return {
        "tier": rating.tier,
        "rate": format_rate(rating.rate_millionths),
        "unlocked": money(rating.unlocked_micros),
    }


def _line(line: Line) -> dict[str, Any]:
    return {
        "from": money(line.from_micros),
        "to": None if line.to_micros is None else money(line.to_micros),
        "spend": money(line.spend_micros),
        "rate": format_rate(line.rate_millionths),
        "amount": money(line.amount_micros),
    }


def _next_tier(slab: Slab | None, cash_spend: int) -> dict[str, str] | None:
    if slab is None:
        return None
    return {
        "from": money(slab.from_micros),
        "rate": format_rate(slab.rate_millionths),
        "distance": money(slab.from_micros - cash_spend),
    }
