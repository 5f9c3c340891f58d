"""The model alone: its books always balance, and its calendar is right."""

import random
from datetime import date
from itertools import pairwise

import pytest
from aiokafka.partitioner import murmur2 as murmur2_of_the_kafka_client

from tests.model import Model
from tests.model.days import day_of, start_of_day
from tests.model.forms import instant, micros
from tests.model.model import DAY_US
from tests.model.pauses import account_causes, campaign_causes
from tests.model.shards import murmur2
from tests.model.state import BusinessCenter
from tests.model.workload import Workload

START_US = instant("2027-03-10T12:00:00Z")


def play(seed: int, steps: int) -> tuple[Model, list[str]]:
    """Return a model after random work over about three days, and its answers."""
    model, work, pace = Model(START_US), Workload(seed), random.Random(seed)
    answers = [str(model.command(each.message, START_US).code) for each in work.opening(START_US)]
    for _ in range(steps):
        now_us = model.now + (DAY_US // 4 if pace.random() < 0.02 else 1000)
        each = work.next(now_us)
        if each.kind == "command":
            answers.append(str(model.command(each.message, now_us).code))
        else:
            answers.append(model.event(each.message, now_us))
    return model, answers


@pytest.fixture(scope="module")
def played() -> list[tuple[Model, list[str]]]:
    return [play(seed, 700) for seed in range(8)]


def test_no_pocket_goes_below_zero(played: list[tuple[Model, list[str]]]) -> None:
    for center in centers(played):
        assert center.cash >= 0
        assert all(amount >= 0 for grant in center.grants for amount in grant.lies.values())
        assert all(min(account.cash, account.credit) >= 0 for account in center.accounts.values())


def test_the_parts_of_every_spend_add_up(played: list[tuple[Model, list[str]]]) -> None:
    for model, _ in played:
        for spends in model._spends.values():
            for spend in spends.values():
                assert sum(part.amount for part in spend.parts) == spend.amount
                assert sum(part.left for part in spend.parts) == spend.amount - spend.reversed


def test_gross_spend_equals_billed_plus_overdelivered(played: list[tuple[Model, list[str]]]) -> None:
    for model, _ in played:
        left = sum(spend.amount - spend.reversed for spends in model._spends.values() for spend in spends.values())
        shown = [model.business_center(name)["spend"] for name in model.centers]
        assert sum(micros(spend["gross"]) for spend in shown) == left
        assert all(micros(each["gross"]) == micros(each["billed"]) + micros(each["overdelivered"]) for each in shown)


def test_causes_follow_from_balances_and_budgets(played: list[tuple[Model, list[str]]]) -> None:
    for model, _ in played:
        for center in model.centers.values():
            for account in center.accounts.values():
                assert account.causes == account_causes(center, account, model.now)
                for campaign in account.campaigns.values():
                    assert campaign.causes == campaign_causes(center, account, campaign, model.now)


def test_consecutive_signals_of_an_entity_differ_by_one_cause(played: list[tuple[Model, list[str]]]) -> None:
    for model, _ in played:
        stories: dict[tuple[str, str | None], list[set[str]]] = {}
        for signal in model.signals:
            story = stories.setdefault((signal["ad_account_id"], signal["campaign_id"]), [set()])
            story.append(set(signal["causes"]))
            assert signal["delivering"] == (not signal["causes"])
        for story in stories.values():
            assert all(len(before ^ after) == 1 for before, after in pairwise(story))


def test_the_workload_produces_every_answer(played: list[tuple[Model, list[str]]]) -> None:
    reasons = (
        "invalid unknown_business_center unknown_ad_account currency_mismatch too_old too_far_ahead "
        "content_conflict unknown_reversal reversal_mismatch reversal_exceeds_spend"
    )
    codes = (
        "invalid not_found permission_denied already_exists irreversible not_eligible budget_change_limit "
        "insufficient_funds conflict"
    )
    wanted = {"charged", "duplicate", *codes.split(), *(f"quarantined:{reason}" for reason in reasons.split())}
    assert wanted <= {answer for _, answers in played for answer in answers}


def test_the_workload_produces_every_kind_of_entry(played: list[tuple[Model, list[str]]]) -> None:
    kinds = (
        "voucher_debit ad_credit_debit cash_debit credit_debit business_center_draw overdelivery pause resume "
        "reversal forfeit expiry"
    )
    met = [entry["kind"] for model, _ in played for entry in model.entries]
    assert {kind: met.count(kind) > 3 for kind in kinds.split()} == dict.fromkeys(kinds.split(), True)


def test_the_same_seed_gives_the_same_work() -> None:
    assert play(3, 100)[1] == play(3, 100)[1]


def centers(played: list[tuple[Model, list[str]]]) -> list[BusinessCenter]:
    return [center for model, _ in played for center in model.centers.values()]


@pytest.mark.parametrize(
    ("zone", "day", "first_instant"),
    [
        ("UTC", "2027-03-11", "2027-03-11T00:00:00Z"),
        ("Asia/Tokyo", "2027-04-01", "2027-03-31T15:00:00Z"),
        ("Asia/Kathmandu", "2027-04-01", "2027-03-31T18:15:00Z"),
        ("America/New_York", "2027-03-14", "2027-03-14T05:00:00Z"),
        ("America/New_York", "2027-03-15", "2027-03-15T04:00:00Z"),
        ("Africa/Cairo", "2026-04-24", "2026-04-23T22:00:00Z"),  # there is no midnight: the day begins at 1 o'clock
        ("America/Havana", "2026-11-01", "2026-11-01T04:00:00Z"),  # midnight comes twice: the first one counts
        ("America/St_Johns", "2010-11-07", "2010-11-07T02:30:00Z"),  # clocks go back into yesterday
    ],
)
def test_a_day_begins_at_the_first_instant_with_its_date(zone: str, day: str, first_instant: str) -> None:
    start = instant(first_instant)
    assert start_of_day(date.fromisoformat(day), zone) == start
    assert day_of(start, zone).isoformat() == day
    assert day_of(start - 1, zone) < date.fromisoformat(day)
    assert day_of(start + 45 * 60 * 1_000_000, zone).isoformat() == day


@pytest.mark.parametrize("key", ["", "a", "bc-1", "21", "foobar", "a-little-bit-long-string", "Ωmega"])
def test_shards_agree_with_the_kafka_client(key: str) -> None:
    assert murmur2(key.encode()) == murmur2_of_the_kafka_client(key.encode()) & 0xFFFFFFFF
