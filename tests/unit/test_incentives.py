"""Incentives: slabs, both methods, run rate and forecast (domain page, section 7)."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.incentives.rating import (
    Method,
    Period,
    RatedBand,
    Slab,
    divide_half_even,
    forecast_cash_spend,
    format_rate,
    next_slab,
    parse_rate,
    rate_spend,
    run_rate_per_day,
)

UNIT = 1_000_000
LOWER, UPPER = Slab(50_000 * UNIT, 30_000), Slab(100_000 * UNIT, 50_000)
SLABS = (LOWER, UPPER)
JANUARY = Period(738_886, 738_916)  # 31 days

amounts = st.integers(min_value=-(10**18), max_value=10**18)
slab_lists = st.dictionaries(
    st.integers(min_value=0, max_value=10**18), st.integers(min_value=1, max_value=UNIT), min_size=1, max_size=5
).map(lambda rates: tuple(Slab(start, rates[start]) for start in sorted(rates)))


@pytest.mark.parametrize(
    ("method", "cash", "tier", "rate", "unlocked"),
    [
        ("whole_spend", 80_000, 1, 30_000, 2_400),
        ("marginal", 80_000, 1, 30_000, 900),
        ("whole_spend", 120_000, 2, 50_000, 6_000),
        ("marginal", 120_000, 2, 50_000, 2_500),
        ("whole_spend", 50_000, 1, 30_000, 1_500),
        ("marginal", 50_000, 1, 30_000, 0),
        ("whole_spend", 49_999, 0, 0, 0),
        ("marginal", 0, 0, 0, 0),
        ("whole_spend", -10, 0, 0, 0),
    ],
)
def test_a_slab_is_reached_exactly_at_its_from_amount(
    method: Method, cash: int, tier: int, rate: int, unlocked: int
) -> None:
    rating = rate_spend(SLABS, method, cash * UNIT)
    assert (rating.tier, rating.rate_millionths, rating.unlocked_micros) == (tier, rate, unlocked * UNIT)


def test_the_whole_spend_is_one_band_of_the_highest_tier_reached() -> None:
    rating = rate_spend(SLABS, "whole_spend", 120_000 * UNIT)
    assert rating.bands == (RatedBand(100_000 * UNIT, None, 120_000 * UNIT, 50_000, 6_000 * UNIT),)


def test_marginal_mode_rates_each_band_that_is_reached() -> None:
    assert rate_spend(SLABS, "marginal", 120_000 * UNIT).bands == (
        RatedBand(50_000 * UNIT, 100_000 * UNIT, 50_000 * UNIT, 30_000, 1_500 * UNIT),
        RatedBand(100_000 * UNIT, None, 20_000 * UNIT, 50_000, 1_000 * UNIT),
    )


def test_each_band_is_rounded_once_and_half_to_even() -> None:
    half = (Slab(0, 500_000), Slab(1, 500_000))
    assert [band.amount_micros for band in rate_spend(half, "marginal", 4).bands] == [0, 2]  # 0.5 and 1.5
    assert rate_spend((Slab(0, 500_000),), "whole_spend", 5).unlocked_micros == 2  # 2.5


def test_net_spend_below_zero_does_not_reach_a_slab_that_begins_at_zero() -> None:
    assert rate_spend((Slab(0, 30_000),), "marginal", -1).tier == 0
    assert rate_spend((Slab(0, 30_000),), "marginal", 0).tier == 1


@given(slab_lists, amounts)
def test_marginal_bands_add_up_to_the_spend_above_the_first_slab(slabs: tuple[Slab, ...], cash: int) -> None:
    rating = rate_spend(slabs, "marginal", cash)
    assert sum(band.spend_micros for band in rating.bands) == max(0, cash - slabs[0].from_micros)
    assert all(band.spend_micros >= 0 for band in rating.bands)


@given(slab_lists, amounts, st.sampled_from(["whole_spend", "marginal"]))
def test_each_band_is_rounded_by_half_a_micro_at_most(slabs: tuple[Slab, ...], cash: int, method: Method) -> None:
    for band in rate_spend(slabs, method, cash).bands:
        exact = Fraction(band.spend_micros * band.rate_millionths, 1_000_000)
        assert abs(band.amount_micros - exact) <= Fraction(1, 2)


@given(amounts, st.integers(min_value=1, max_value=10**9))
def test_division_agrees_with_exact_fractions(numerator: int, denominator: int) -> None:
    assert divide_half_even(numerator, denominator) == round(Fraction(numerator, denominator))


def test_the_next_slab_is_the_first_one_not_reached_and_none_at_the_top() -> None:
    assert next_slab(SLABS, -5) == LOWER
    assert next_slab(SLABS, 50_000 * UNIT) == UPPER
    assert next_slab(SLABS, 100_000 * UNIT) is None


@pytest.mark.parametrize(("day", "begun"), [(0, 0), (-1, 0), (1, 1), (31, 31), (32, 31), (4_000, 31)], ids=str)
def test_the_days_begun_are_capped_by_the_length_of_the_period(day: int, begun: int) -> None:
    assert JANUARY.days_begun(JANUARY.first_day + day - 1) == begun


def test_the_run_rate_and_the_forecast_depend_on_the_days_begun() -> None:
    tenth = JANUARY.first_day + 9
    assert run_rate_per_day(1_000 * UNIT, JANUARY, tenth) == 100 * UNIT
    assert forecast_cash_spend(1_000 * UNIT, JANUARY, tenth) == 3_100 * UNIT


def test_the_run_rate_is_zero_before_the_period_and_the_forecast_after_it_is_the_spend() -> None:
    assert run_rate_per_day(7, JANUARY, JANUARY.first_day - 1) == 0
    assert forecast_cash_spend(7, JANUARY, JANUARY.first_day - 1) == 7
    assert forecast_cash_spend(1_000, JANUARY, JANUARY.last_day + 5) == 1_000


def test_net_reversals_give_a_negative_forecast() -> None:
    assert run_rate_per_day(-31, JANUARY, JANUARY.last_day) == -1
    assert forecast_cash_spend(-10, JANUARY, JANUARY.first_day) == -310


@pytest.mark.parametrize(
    ("text", "millionths"), [("0.03", 30_000), ("1", 1_000_000), ("1.0", 1_000_000), ("0.000001", 1)]
)
def test_rates_are_decimal_fractions(text: str, millionths: int) -> None:
    assert parse_rate(text) == millionths


@pytest.mark.parametrize(
    "text", ["0", "0.0", "1.000001", "-0.1", "0.0000001", ".5", "5", "3%", "", "1e-2", "0.03\n", "\uff10.03", "NaN"]
)
def test_rates_that_are_not_decimal_fractions_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="should be"):
        parse_rate(text)


@pytest.mark.parametrize(("millionths", "text"), [(30_000, "0.03"), (0, "0"), (1_000_000, "1"), (1, "0.000001")])
def test_rates_are_written_without_needless_zeros(millionths: int, text: str) -> None:
    assert format_rate(millionths) == text


def test_halves_are_rounded_to_the_even_neighbour() -> None:
    assert [divide_half_even(number, 2) for number in range(-5, 10, 2)] == [-2, -2, 0, 0, 2, 2, 4, 4]
