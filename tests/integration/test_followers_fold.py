"""The folds give the same rows as a plain fold of the ledger, however it is cut into ranges."""

import uuid
from collections.abc import AsyncIterator
from datetime import date, timedelta
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from drawdown.deployment.migrate import migrate
from services.balance.service import fold as fold_balance
from services.incentives.service import fold as fold_incentives
from shared.ledger.follow import Range, follower_connection
from shared.runtime.settings import Settings
from tests.integration.followers_ledger import (
    NOON,
    Ledger,
    allow_erasing,
    erase,
    erase_read_models,
    micros,
    plain_fold,
    read_models,
    read_rows,
)
from tests.servers import Postgres, fresh_database

ACCOUNTS = {"acct-1": "bc-1", "acct-2": "bc-1", "acct-3": "bc-2"}
CAMPAIGNS = ("cmp-1", "cmp-2")
# What a part of a spend is paid from: kind, holder, pocket, grant.
PAYMENTS = (
    ("voucher_debit", "ad_account", "voucher", "v-1"),
    ("ad_credit_debit", "ad_account", "ad_credit", "c-1"),
    ("cash_debit", "ad_account", "cash", None),
    ("credit_debit", "ad_account", "credit", None),
    ("business_center_draw", "business_center", "voucher", "v-2"),
    ("business_center_draw", "business_center", "cash", None),
    ("business_center_draw", "business_center", "credit_line", None),
    ("overdelivery", None, None, None),
)
# Money without a spend: kind, holder, pocket, grant.
MOVES = (
    ("deposit", "business_center", "cash", None),
    ("deposit", "ad_account", "cash", None),
    ("grant", "ad_account", "voucher", "v-1"),
    ("grant", "business_center", "ad_credit", "c-1"),
    ("credit_limit_change", "business_center", "credit_line", None),
    ("credit_repayment", "business_center", "credit_line", None),
    ("transfer_in", "ad_account", "credit", None),
    ("expiry", "ad_account", "voucher", "v-1"),
)
CAUSES = ("ad_account_balance", "ad_account_budget", "business_center_balance")
BEYOND_64_BITS = 2**62
Followers = tuple[asyncpg.Connection, asyncpg.Connection]


accounts = st.sampled_from(("acct-1", "acct-1", "acct-2", "acct-3"))
campaigns = st.sampled_from(CAMPAIGNS)
amounts = st.one_of(st.integers(1, 100), st.just(BEYOND_64_BITS))
days = st.integers(0, 2)
steps = st.one_of(
    st.tuples(
        st.just("spend"),
        accounts,
        campaigns,
        days,
        st.lists(st.sampled_from(PAYMENTS), min_size=1, max_size=3),
        amounts,
    ),
    st.tuples(st.just("reversal"), st.integers(0, 50), st.booleans()),
    st.tuples(st.just("move"), accounts, st.sampled_from(MOVES), amounts),
    st.tuples(st.just("budget"), accounts, st.sampled_from(("daily", "custom", "custom")), st.booleans()),
    st.tuples(st.just("campaign_budget"), accounts, campaigns, st.sampled_from(("daily", "lifetime")), amounts),
    st.tuples(st.just("delivery"), accounts, st.one_of(st.none(), campaigns), st.sets(st.sampled_from(CAUSES))),
    st.tuples(st.just("largest_spend"), st.sampled_from(("bc-1", "bc-2")), st.one_of(st.none(), st.integers(1, 99))),
    st.tuples(st.just("automatic_allocation"), st.sampled_from(("bc-1", "bc-2"))),
)


class Writer:
    """Turns steps into the entries that they cause."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._custom: set[str] = set()
        self._automatic: set[str] = set()
        for business_center in sorted(set(ACCOUNTS.values())):
            details = {"currency": "USD", "time_zone": "UTC", "finance_roles": True}
            ledger.add("business_center_opened", business_center, details=details)
        for account, business_center in ACCOUNTS.items():
            self._open(account, business_center)

    def _open(self, account: str, business_center: str) -> None:
        left_out = "not_owned" if account == "acct-2" else None
        details = {
            "billing": "monthly_invoicing",
            "buying_type": "auction",
            "time_zone": "Asia/Tokyo",
            "owned": left_out is None,
            "automatic_allocation": False,
            "left_out": left_out,
        }
        self.ledger.add("ad_account_opened", business_center, account, details=details)

    def take(self, step: tuple[Any, ...]) -> None:
        getattr(self, f"_{step[0]}")(*step[1:])

    def _spend(self, account: str, campaign: str, day: int, parts: list[Any], amount: int) -> None:
        source, when = uuid.uuid4(), NOON + timedelta(days=day, minutes=7 * day, microseconds=1)
        for part, (kind, holder, pocket, grant) in enumerate(parts):
            self.ledger.add(
                kind, ACCOUNTS[account], account, campaign_id=campaign, part=part, source_event_id=source,
                day=date(2026, 11, 21 + day), period=date(2026, 11, 21), holder=holder, pocket=pocket, grant_id=grant,
                amount=amount if kind == "overdelivery" else -amount, occurred_at=when,
                cause="ad_account_budget" if kind == "overdelivery" else None,
            )  # fmt: skip

    def _reversal(self, which: int, expired: bool) -> None:
        """Return a part of the `which`-th money entry of a spend, if there is one; a grant's may be forfeited."""
        charged = [e for e in self.ledger.entries if e.day and e.kind not in ("reversal", "forfeit")]
        if not charged:
            return
        spend = charged[which % len(charged)]
        assert spend.amount is not None
        forfeited = expired and spend.grant_id is not None
        details = {"spend_occurred_at": micros(spend.occurred_at), "spend_position": spend.position - spend.part}
        self.ledger.add(
            "forfeit" if forfeited else "reversal", spend.business_center_id, spend.ad_account_id,
            campaign_id=spend.campaign_id, source_event_id=uuid.uuid4(), day=spend.day, period=spend.period,
            holder=None if forfeited else spend.holder, pocket=None if forfeited else spend.pocket,
            grant_id=spend.grant_id, amount=-(spend.amount // 2), reverses=spend.source_event_id, details=details,
        )  # fmt: skip

    def _move(self, account: str, move: tuple[Any, ...], amount: int) -> None:
        kind, holder, pocket, grant = move
        self.ledger.add(
            kind, ACCOUNTS[account], account if holder == "ad_account" else None, holder=holder, pocket=pocket,
            grant_id=grant, amount=-amount if kind == "expiry" else amount, details={"command": {"type": "any"}},
        )  # fmt: skip

    def _budget(self, account: str, mode: str, reset: bool) -> None:
        keeps_its_count = mode == "custom" and account in self._custom and not reset
        details = {
            "mode": mode,
            "amount": None if mode == "unlimited" else 5,
            "spent": 0,
            "started_at": micros(NOON) + self.ledger.next_position if mode == "custom" else None,
            "restarted": mode == "custom" and not keeps_its_count,
            "day": "2026-11-21",
            "changes_today": self.ledger.next_position % 10,
        }
        if keeps_its_count:  # The start of the last restart stays.
            details["started_at"] = next(
                e.details["started_at"]
                for e in reversed(self.ledger.entries)
                if e.details and e.ad_account_id == account and e.details.get("restarted")
            )
        self._custom = self._custom | {account} if mode == "custom" else self._custom - {account}
        self.ledger.add("budget_reset" if reset else "budget_set", ACCOUNTS[account], account, details=details)

    def _campaign_budget(self, account: str, campaign: str, mode: str, amount: int) -> None:
        details = {"mode": mode, "amount": amount}
        self.ledger.add("campaign_budget_set", ACCOUNTS[account], account, campaign_id=campaign, details=details)

    def _delivery(self, account: str, campaign: str | None, causes: set[str]) -> None:
        self.ledger.add(
            "pause" if causes else "resume", ACCOUNTS[account], account, campaign_id=campaign,
            cause="ad_account_budget", details={"causes": sorted(causes)},
        )  # fmt: skip

    def _largest_spend(self, business_center: str, amount: int | None) -> None:
        self.ledger.add("largest_spend_set", business_center, details={"amount": amount})

    def _automatic_allocation(self, business_center: str) -> None:
        if business_center in self._automatic:
            return
        self._automatic.add(business_center)
        left_out = [{"ad_account_id": a, "reason": "not_owned"} for a in ("acct-2",) if ACCOUNTS[a] == business_center]
        self.ledger.add(
            "automatic_allocation_enabled", business_center, details={"left_out": left_out, "participants": []}
        )


@pytest.fixture(scope="module")
async def url(postgres: Postgres) -> AsyncIterator[str]:
    async with fresh_database(postgres.url) as url:
        await migrate(Settings(database_url=url, shards=1))
        yield url


@pytest.fixture(scope="module")
async def admin(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url, server_settings={"timezone": "UTC"})
    await allow_erasing(connection)
    yield connection
    await connection.close()


@pytest.fixture(scope="module")
async def followers(url: str) -> AsyncIterator[Followers]:
    settings = Settings(database_url=url)
    async with (
        follower_connection(settings, "balance") as balance,
        follower_connection(settings, "incentives") as incentives,
    ):
        yield balance, incentives


async def fold(followers: Followers, ranges: list[Range]) -> None:
    balance, incentives = followers
    for entries in ranges:
        async with balance.transaction(), incentives.transaction():
            assert await fold_balance(balance, entries) == entries.last
            assert await fold_incentives(incentives, entries) == entries.last


@settings(
    max_examples=60,
    deadline=None,
    # Shrinking a failure writes to the database for minutes. Add Phase.shrink to examine one.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    taken=st.lists(steps, min_size=25, max_size=60),
    lengths=st.lists(st.integers(1, 12), min_size=8, max_size=40),
    first=st.sampled_from((1, 65_536 - 20)),
)
async def test_the_read_models_equal_a_plain_fold_however_the_ledger_is_split(
    admin: asyncpg.Connection, followers: Followers, taken: list[Any], lengths: list[int], first: int
) -> None:
    ledger = Ledger(first=first)
    writer = Writer(ledger)
    for step in taken:
        writer.take(step)
    await erase(admin)
    await ledger.write(admin)

    await fold(followers, ledger.ranges([]))
    at_once = await read_models(admin)
    assert await read_rows(admin) == plain_fold(ledger.entries)

    await erase_read_models(admin)
    await fold(followers, ledger.ranges(lengths))
    assert await read_models(admin) == at_once


async def test_a_sum_may_exceed_64_bits(admin: asyncpg.Connection, followers: Followers) -> None:
    ledger = Ledger()
    writer = Writer(ledger)
    for _ in range(5):
        writer.take(("spend", "acct-1", "cmp-1", 0, [PAYMENTS[2]], BEYOND_64_BITS))
    await erase(admin)
    await ledger.write(admin)

    await fold(followers, ledger.ranges([]))

    assert await admin.fetchval("SELECT billed FROM balance.ad_account_days") == 5 * BEYOND_64_BITS


async def test_an_account_opened_twice_stops_the_fold(admin: asyncpg.Connection, followers: Followers) -> None:
    ledger = Ledger()
    Writer(ledger)
    Writer(ledger)
    await erase(admin)
    await ledger.write(admin)

    with pytest.raises(asyncpg.UniqueViolationError):
        await fold(followers, ledger.ranges([]))
