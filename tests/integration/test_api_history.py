"""The past through HTTP: the answer about a past time equals the live answer at that time, whenever it is requested."""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from services.balance import service as balance
from shared.ledger.follow import advance, follower_connection
from shared.runtime.clock import Clock
from tests.integration.api import Api, running_api
from tests.integration.followers_ledger import NOON, Entry, Ledger, allow_erasing, erase, micros
from tests.integration.test_followers_fold import ACCOUNTS, CAMPAIGNS, Writer, steps
from tests.servers import Postgres

TOKYO = ZoneInfo("Asia/Tokyo")
CLOSED = (
    "closings",
    "pocket_movements",
    "business_center_spend",
    "ad_account_spend",
    "campaign_spend",
    "budget_closings",
    "campaign_budget_closings",
    "pause_closings",
)
PATHS = (
    "/v1/business-centers/bc-1",
    "/v1/business-centers/bc-2",
    *(f"/v1/ad-accounts/{account}" for account in ACCOUNTS),
    *(f"/v1/ad-accounts/{account}/campaigns/{campaign}" for account in ACCOUNTS for campaign in CAMPAIGNS),
)
POLICIES = {
    "all": ["voucher", "cash", "credit_line"],
    "no-vouchers": ["cash", "credit_line"],
}
SECOND = timedelta(seconds=1)


@dataclass
class Now:
    """The API's clock, which a test sets."""

    moment: datetime = NOON

    def us(self) -> int:
        return micros(self.moment)


@dataclass
class Past:
    """An API, a follower that closes its books often, and the live answers so far."""

    api: Api
    follower: asyncpg.Connection
    now: Now
    remembered: list[tuple[datetime, str, int, dict[str, Any]]] = field(default_factory=list)

    async def begin(self, first: int) -> None:
        await erase(self.api.database)
        for table in CLOSED:
            await self.api.database.execute(f"DELETE FROM balance.{table}")
        await self.api.database.execute("DELETE FROM ledger.batches")
        await self.api.checkpoint("balance", 0, first - 1)
        self.remembered.clear()

    async def append(self, entries: list[Entry], policy: str) -> None:
        """Write one batch and fold it."""
        ledger = Ledger(first=entries[0].position)
        ledger.entries = entries
        await ledger.write(self.api.database)
        await self.api.insert(
            "ledger.batches", shard=0, first_position=entries[0].position, last_position=entries[-1].position,
            recorded_at=entries[0].recorded_at, policy_version=policy, root=bytes(32), epoch=1, spend_offset=0,
            command_offset=0, rules_version=2, zones_release="test",
        )  # fmt: skip
        while (await advance(self.follower, balance.FOLLOWER, 0)).behind:
            pass

    async def remember(self, moment: datetime) -> None:
        """Request everything as it is at this moment, and keep the answers."""
        self.now.moment = moment
        for path in PATHS:
            response = await self.api.client.get(path)
            self.remembered.append((moment, path, response.status_code, response.json()))


@pytest.fixture(scope="module")
async def past(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Past]:
    now = Now()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Clock, "now_us", lambda _: now.us())
        async with (
            running_api(postgres.url, tmp_path_factory.mktemp("api")) as api,
            follower_connection(api.settings, "balance") as follower,
        ):
            await allow_erasing(api.database)
            for version, pockets in POLICIES.items():
                content = {"version": version, "ad_account": ["voucher", "cash"], "business_center": pockets}
                await api.insert("ledger.policies", version=version, content=content)
            yield Past(api, follower, now)


def batches(entries: list[Entry], cuts: list[tuple[int, int, str]]) -> Iterator[tuple[list[Entry], str]]:
    """Cut the entries into batches: each has this many entries, a distance in minutes from the one before, and a
    policy.
    """
    recorded_at = NOON
    rest = list(entries)
    for length, minutes, policy in [*cuts, (len(entries), 7, "all")]:
        batch, rest = rest[:length], rest[length:]
        recorded_at += timedelta(minutes=minutes, microseconds=length)
        if batch:
            yield [_recorded(entry, recorded_at) for entry in batch], policy


def _recorded(entry: Entry, recorded_at: datetime) -> Entry:
    """Return an entry as recorded in a batch of that time. The effects of a command occurred then."""
    occurred_at = entry.occurred_at if entry.day else recorded_at
    return replace(entry, recorded_at=recorded_at, occurred_at=occurred_at)


cuts = st.lists(
    st.tuples(st.integers(1, 9), st.sampled_from((0, 1, 14, 15, 180, 600)), st.sampled_from(tuple(POLICIES))),
    min_size=5,
    max_size=16,
)


@settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    taken=st.lists(steps, min_size=25, max_size=60),
    cut=cuts,
    closing=st.sampled_from((3, 8, 20, 1000)),
    first=st.sampled_from((1, 65_536 - 20)),
    late_seconds=st.integers(0, 59),
)
async def test_a_live_answer_is_given_about_that_time_ever_after(
    past: Past, taken: list[Any], cut: list[tuple[int, int, str]], closing: int, first: int, late_seconds: int
) -> None:
    ledger = Ledger(first=first)
    writer = Writer(ledger)
    for step in taken:
        writer.take(step)
    await past.begin(first)
    written: list[Entry] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(balance, "CLOSING_POSITIONS", closing)
        for entries, policy in batches(ledger.entries, cut):
            if written:
                moment = min(written[-1].recorded_at + late_seconds * SECOND, entries[0].recorded_at - SECOND / 10**6)
                if moment >= written[-1].recorded_at:
                    await past.remember(moment)
            await past.append(entries, policy)
            written += entries
    await past.remember(written[-1].recorded_at)

    past.now.moment = written[-1].recorded_at + timedelta(days=3)
    for moment, path, status, answer in past.remembered:
        response = await past.api.client.get(path, params={"at": moment.isoformat()})
        assert response.status_code == status, (moment, path, response.text)
        assert status == 404 or response.json() == answer, (moment, path)
    await assert_series(past, written)


def days(first: str, last: str) -> dict[str, Any]:
    """Return the days of a series as its parameters."""
    return {"from": first, "to": last}


async def assert_series(past: Past, entries: list[Entry]) -> None:
    """Assert that each day of the series has the balance at its last instant, and the ledger's spend of that day."""
    cases: list[tuple[str, tzinfo, list[Entry]]] = [
        ("/v1/ad-accounts/acct-1", TOKYO, [entry for entry in entries if entry.ad_account_id == "acct-1"]),
        ("/v1/business-centers/bc-1", UTC, [entry for entry in entries if entry.business_center_id == "bc-1"]),
    ]
    for path, zone, mine in cases:
        series = await past.api.get(f"{path}/series", **days("2026-11-01", "2027-03-01"))
        first, today = (moment.astimezone(zone).date() for moment in (mine[0].recorded_at, past.now.moment))
        assert [row["day"] for row in series["days"]] == [
            (first + timedelta(days=number)).isoformat() for number in range((today - first).days + 1)
        ]
        spend = spend_by_day(mine)
        for row in series["days"]:
            assert row["spend"] == figures(*spend[row["day"]])
            tomorrow = datetime.combine(date.fromisoformat(row["day"]) + timedelta(days=1), datetime.min.time(), zone)
            end = min(tomorrow - timedelta(microseconds=1), past.now.moment)
            then = await past.api.get(path, at=end.astimezone(UTC).isoformat())
            assert row["balance"] == then["balance"], (path, row["day"])


def spend_by_day(entries: list[Entry]) -> dict[str, list[int]]:
    """Return what was billed and overdelivered, in micros, by the day of the spend."""
    sums: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for entry in entries:
        if entry.day and entry.amount is not None:
            overdelivered = entry.kind == "overdelivery" or (entry.kind == "reversal" and entry.pocket is None)
            sums[entry.day.isoformat()][overdelivered] += entry.amount if overdelivered else -entry.amount
    return sums


def figures(billed: int, overdelivered: int) -> dict[str, str]:
    """Return the figures in the form of the answers."""
    amounts = {"gross": billed + overdelivered, "billed": billed, "overdelivered": overdelivered}
    return {name: decimal(amount) for name, amount in amounts.items()}


def decimal(micros_: int) -> str:
    return f"{'-' if micros_ < 0 else ''}{abs(micros_) // 10**6}.{abs(micros_) % 10**6:06d}"


# --- Requests that cannot be answered ---


@pytest.fixture
async def opened(past: Past) -> Past:
    """Open two Business Centers with their accounts in one batch at noon, and nothing else."""
    await past.begin(1)
    ledger = Ledger()
    Writer(ledger)
    await past.append([_recorded(entry, NOON) for entry in ledger.entries], "all")
    past.now.moment = NOON + timedelta(hours=1)
    return past


async def test_a_time_in_the_future_is_400_and_the_present_is_not(opened: Past) -> None:
    for path in PATHS[:3]:
        await opened.api.get(path, at="2026-11-21T13:00:00Z")
        answer = await opened.api.get(path, 400, at="2026-11-21T13:00:00.000001Z")
        assert answer == {"code": "invalid", "message": "at is in the future"}


async def test_an_entity_is_not_found_before_it_was_opened(opened: Past) -> None:
    for path in PATHS[:3]:
        await opened.api.get(path, at="2026-11-21T12:00:00Z")
        await opened.api.get(path, at="2026-11-21T21:00:00+09:00")
        for before in ("2026-11-21T11:59:59.999999Z", "1969-01-01T00:00:00Z", "0001-01-01T00:00:00Z"):
            assert (await opened.api.get(path, 404, at=before))["code"] == "not_found"
    await opened.api.get("/v1/ad-accounts/nobody", 404, at="2026-11-21T12:00:00Z")
    await opened.api.get("/v1/ad-accounts/acct-1/campaigns/nobody", 404, at="2026-11-21T12:00:00Z")


@pytest.mark.parametrize(
    "at",
    ["", "now", "2026-11-21", "2026-11-21T12:00:00", "2026-02-30T00:00:00Z", "\x00", "1", "0001-01-01T00:00:00+23:59"],
)
async def test_text_that_is_not_a_time_is_400(opened: Past, at: str) -> None:
    for path in PATHS[:3]:
        answer = await opened.api.get(path, 400, at=at)
        assert (set(answer), answer["code"]) == ({"code", "message"}, "invalid")
        assert "at" in answer["message"]


async def test_as_of_names_the_last_batch_up_to_that_time(opened: Past) -> None:
    answer = await opened.api.get("/v1/business-centers/bc-1", at="2026-11-21T12:30:00Z")
    assert answer["as_of"] == {
        "recorded_at": "2026-11-21T12:00:00.000000Z",
        "shards": [{"shard": 0, "position": 5}],
    }


async def test_a_read_model_that_is_behind_is_waited_for(opened: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.api.past.moments.READ_TIMEOUT_SECONDS", 0.3)
    await opened.api.checkpoint("balance", 0, 4)
    answer = await opened.api.get("/v1/business-centers/bc-1", 503, at="2026-11-21T12:30:00Z")
    assert answer["code"] == "unavailable"


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ({}, "from"),
        ({"from": "2026-11-01"}, "to"),
        ({"from": "2026-11-02", "to": "2026-11-01"}, "to"),
        ({"from": "2026-11-31", "to": "2026-12-01"}, "from"),
        ({"from": "x", "to": "2026-12-01"}, "from"),
        ({"from": "2025-01-01", "to": "2026-02-05"}, "400"),
    ],
)
async def test_an_invalid_series_is_400(opened: Past, query: dict[str, Any], named: str) -> None:
    for path in ("/v1/ad-accounts/acct-1", "/v1/business-centers/bc-1"):
        answer = await opened.api.get(f"{path}/series", 400, **query)
        assert named in answer["message"]


async def test_a_series_has_up_to_400_days_and_only_existing_ones(opened: Past) -> None:
    path = "/v1/ad-accounts/acct-1/series"
    answer = await opened.api.get(path, **days("2025-11-21", "2026-12-25"))
    assert [row["day"] for row in answer["days"]] == ["2026-11-21"]
    assert (await opened.api.get(path, **days("2026-01-01", "2026-01-02")))["days"] == []
    await opened.api.get("/v1/ad-accounts/nobody/series", 404, **days("2026-01-01", "2026-01-02"))
