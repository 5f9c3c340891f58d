"""The live pacing of a deal: how far it has got (domain page, sections 7.2 and 7.3)."""

from dataclasses import dataclass

from services.incentives.deals import Deal
from services.incentives.rating import Rating, forecast_cash_spend, next_slab, rate_spend, run_rate_per_day


@dataclass(frozen=True, slots=True)
class NextTier:
    """The slab to be reached next, and the cash spend still needed to reach it, in micros."""

    from_micros: int
    rate_millionths: int
    distance_micros: int


@dataclass(frozen=True, slots=True)
class Pacing:
    """The rating of the cash spend so far, and the forecast of the whole period at the present run rate."""

    cash_spend_micros: int
    rating: Rating
    next_tier: NextTier | None
    run_rate_micros_per_day: int
    forecast_cash_spend_micros: int
    forecast: Rating


def pace(deal: Deal, cash_spend_micros: int, today: int) -> Pacing:
    """Return how far the deal has got.

    Args:
        deal: its slabs, method and period are used.
        cash_spend_micros: the net cash spend of the deal's period.
        today: the day in the deal's time zone, a proleptic ordinal.

    """
    forecast = forecast_cash_spend(cash_spend_micros, deal.period, today)
    return Pacing(
        cash_spend_micros=cash_spend_micros,
        rating=rate_spend(deal.slabs, deal.method, cash_spend_micros),
        next_tier=_next_tier(deal, cash_spend_micros),
        run_rate_micros_per_day=run_rate_per_day(cash_spend_micros, deal.period, today),
        forecast_cash_spend_micros=forecast,
        forecast=rate_spend(deal.slabs, deal.method, forecast),
    )


def _next_tier(deal: Deal, cash_spend_micros: int) -> NextTier | None:
    """Return the next tier, or None if the top tier is reached."""
    slab = next_slab(deal.slabs, cash_spend_micros)
    if slab is None:
        return None
    return NextTier(slab.from_micros, slab.rate_millionths, slab.from_micros - cash_spend_micros)
