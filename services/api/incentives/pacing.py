"""`GET /v1/deals/{id}/pacing`: how far a deal has got, live (domain page, sections 7.2 and 7.3)."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from services.api.answers.models import AsOf, Money, PathId, money
from services.api.context import Api
from services.api.described.openapi import READ_PROBLEMS, UNREADABLE_DEAL
from services.api.door.access import FinanceReader
from services.api.incentives.deals import read_deal, read_deal_checkpoints
from services.incentives import cash_spend, pacing
from services.incentives.rating import RatedBand, Rating, format_rate

router = APIRouter(tags=["deals"], responses={**READ_PROBLEMS, **UNREADABLE_DEAL})

Rate = Annotated[str, Field(examples=["0.03"])]


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
    """The figures at the period's end if cash spend continues at its run rate."""

    cash_spend: Money
    tier: int
    rate: Rate
    unlocked: Money


class Pacing(BaseModel):
    """How far a deal has got. `tier` counts from 1; 0 means none. The lines of `calculation` add up to `unlocked`."""

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


@router.get("/v1/deals/{deal_id}/pacing", response_model=Pacing, summary="Pacing of a deal")
async def get_pacing(deal_id: PathId, context: Api, caller: FinanceReader) -> dict[str, Any]:
    """Return the cash spend so far, the tier and rate it reached, what that unlocks line by line, and the forecast."""
    async with context.snapshot() as connection:
        deal = await read_deal(connection, caller, deal_id)
        checkpoints = await read_deal_checkpoints(connection, deal)
        spent = await cash_spend.read_total(connection, deal)
    today = deal.calendar.day(checkpoints.now_us(context.clock))
    return {"deal_id": deal_id, **_pacing(pacing.pace(deal, spent, today)), "as_of": checkpoints.as_of()}


def _pacing(pace: pacing.Pacing) -> dict[str, Any]:
    return {
        "cash_spend": money(pace.cash_spend_micros),
        **_rating(pace.rating),
        "calculation": [_calculation_line(band) for band in pace.rating.bands],
        "next_tier": _next_tier(pace),
        "run_rate_per_day": money(pace.run_rate_micros_per_day),
        "forecast": {"cash_spend": money(pace.forecast_cash_spend_micros), **_rating(pace.forecast)},
    }


def _rating(rating: Rating) -> dict[str, Any]:
    return {
        "tier": rating.tier,
        "rate": format_rate(rating.rate_millionths),
        "unlocked": money(rating.unlocked_micros),
    }


def _calculation_line(band: RatedBand) -> dict[str, Any]:
    return {
        "from": money(band.from_micros),
        "to": None if band.to_micros is None else money(band.to_micros),
        "spend": money(band.spend_micros),
        "rate": format_rate(band.rate_millionths),
        "amount": money(band.amount_micros),
    }


def _next_tier(pace: pacing.Pacing) -> dict[str, str] | None:
    if pace.next_tier is None:
        return None
    return {
        "from": money(pace.next_tier.from_micros),
        "rate": format_rate(pace.next_tier.rate_millionths),
        "distance": money(pace.next_tier.distance_micros),
    }
