"""The rules of incentives: the tier and rate that cash spend reaches, what that unlocks, and the forecast.

Source: the domain page, section 7. Amounts are integer micros, rates integer millionths, days proleptic
ordinals. What each rated band earns is exact, and rounded half-even to micros once.
"""

import re
from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

Method = Literal["whole_spend", "marginal"]

RATE_SCALE = 1_000_000
_RATE = re.compile(r"(0|1)(\.[0-9]{1,6})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Slab:
    """A rate that holds from `from_micros` of cash spend on, that amount included."""

    from_micros: int
    rate_millionths: int


@dataclass(frozen=True, slots=True)
class RatedBand:
    """The spend in a band, rated: the amount is the spend times the rate. `to_micros` is None in the top band."""

    from_micros: int
    to_micros: int | None
    spend_micros: int
    rate_millionths: int
    amount_micros: int


@dataclass(frozen=True, slots=True)
class Rating:
    """The tier and rate that an amount of cash spend reaches. `tier` counts from 1; 0 means none, without bands."""

    tier: int
    rate_millionths: int
    bands: tuple[RatedBand, ...]

    @property
    def unlocked_micros(self) -> int:
        """Return the sum of the bands' amounts."""
        return sum(band.amount_micros for band in self.bands)


@dataclass(frozen=True, slots=True)
class Period:
    """The days of a deal, the first and the last included."""

    first_day: int
    last_day: int

    @property
    def days(self) -> int:
        """Return how many days the period has."""
        return self.last_day - self.first_day + 1

    def days_begun(self, today: int) -> int:
        """Return how many days have begun by the day `today` in the deal's zone: 0 before the period, all after it."""
        return min(max(today - self.first_day + 1, 0), self.days)


def parse_rate(text: str) -> int:
    """Return a decimal fraction in millionths: `"0.03"` → 30000.

    Raise ValueError unless 0 < rate <= 1, with at most six decimal places.
    """
    if not _RATE.fullmatch(text):
        raise ValueError('should be a decimal fraction such as "0.03", with at most six places')
    whole, _, fraction = text.partition(".")
    rate = int(whole) * RATE_SCALE + int(fraction.ljust(6, "0"))
    if not 0 < rate <= RATE_SCALE:
        raise ValueError("should be above 0 and at most 1")
    return rate


def format_rate(millionths: int) -> str:
    """Return the shortest decimal string of a rate: 30000 → `"0.03"`, 0 → `"0"`."""
    whole, fraction = divmod(millionths, RATE_SCALE)
    return f"{whole}.{fraction:06d}".rstrip("0").rstrip(".")


def rate_spend(slabs: tuple[Slab, ...], method: Method, cash_spend_micros: int) -> Rating:
    """Rate an amount of cash spend by slabs in ascending order (domain page, section 7.1).

    With `whole_spend` the rate that was reached applies to all of it, in one band. With `marginal` each rate applies
    inside its band, for each band reached. Net spend below zero (more reversed than spent) reaches nothing.
    """
    tier = tier_of(slabs, cash_spend_micros)
    if tier == 0:
        return Rating(0, 0, ())
    reached = range(tier) if method == "marginal" else range(tier - 1, tier)
    bands = tuple(_rated_band(slabs, number, method, cash_spend_micros) for number in reached)
    return Rating(tier, slabs[tier - 1].rate_millionths, bands)


def tier_of(slabs: tuple[Slab, ...], cash_spend_micros: int) -> int:
    """Return how many slabs are reached. A slab is reached at exactly its `from`."""
    return bisect_right(slabs, cash_spend_micros, key=lambda slab: slab.from_micros)


def next_slab(slabs: tuple[Slab, ...], cash_spend_micros: int) -> Slab | None:
    """Return the slab to be reached next, or None if the top slab is reached."""
    tier = tier_of(slabs, cash_spend_micros)
    return slabs[tier] if tier < len(slabs) else None


def run_rate_per_day(cash_spend_micros: int, period: Period, today: int) -> int:
    """Return cash spend divided by the days begun, in micros per day, or 0 before the period begins."""
    days_begun = period.days_begun(today)
    return divide_half_even(cash_spend_micros, days_begun) if days_begun else 0


def forecast_cash_spend(cash_spend_micros: int, period: Period, today: int) -> int:
    """Return the cash spend at the period's end at the present run rate, in micros. Before the period: as it is."""
    days_begun = period.days_begun(today)
    return divide_half_even(cash_spend_micros * period.days, days_begun) if days_begun else cash_spend_micros


def divide_half_even(numerator: int, denominator: int) -> int:
    """Return the integer nearest to the exact quotient, or the even one of two that are equally near.

    `denominator` must be above 0.
    """
    quotient, remainder = divmod(numerator, denominator)
    twice = 2 * remainder
    return quotient + (twice > denominator or (twice == denominator and quotient % 2 == 1))


def _rated_band(slabs: tuple[Slab, ...], number: int, method: Method, cash_spend_micros: int) -> RatedBand:
    slab = slabs[number]
    to = slabs[number + 1].from_micros if number + 1 < len(slabs) else None
    spend = cash_spend_micros
    if method == "marginal":
        spend = (spend if to is None else min(spend, to)) - slab.from_micros
    amount = divide_half_even(spend * slab.rate_millionths, RATE_SCALE)
    return RatedBand(slab.from_micros, to, spend, slab.rate_millionths, amount)
