"""A read of the API takes from the database an amount that the answer bounds, whatever others have stored."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from services.api.answers.policies import DEFAULT_POLICY
from services.api.door.tokens import Caller
from services.api.past import history, ledger, moments, series
from services.api.past.facts import Fact, parse_fact
from services.api.past.ledger import BLOCKS_AT_MOST, Span
from services.api.past.moments import Moment, find_ad_account, money_since_closing
from services.api.present import business_centers
from services.incentives.deals import PAGE_BYTES, read_page
from shared.rules.instants import from_datetime
from shared.rules.vocabulary import POCKETS
from tests.integration import lawful
from tests.integration.api import NOON, RECORDED_AT, Api, api_at_noon, shard_of
from tests.integration.test_hostile_facts import LATER, write_center
from tests.servers import Postgres

pytestmark = pytest.mark.embedded
FACTS = 3_000
MOST_DEAL_BYTES = 65_536  # of the slabs, in a body that registers them
# Facts of an account and its campaigns, in order, `n` at a time. The last one is at position $3.
_FACTS = """
    INSERT INTO ledger.entries (shard, position, part, business_center_id, ad_account_id, campaign_id, kind,
                                occurred_at, recorded_at, details)
    SELECT $1, $3 - $4 + n, 0, $2, $2, $5, $6, $7::text::timestamptz, $7::text::timestamptz, $8::text::json
    FROM generate_series(1, $4) AS n
"""
CUSTOM = (
    '{"mode": "custom", "amount": 5000000, "spent": 0, "started_at": 1700000000000000, "restarted": %s,'
    ' "day": "2026-03-12", "changes_today": 1}'
)
CAMPAIGN_BUDGET = '{"mode": "daily", "amount": %d000000}'
PAUSED = '{"causes": ["%s"]}'


@pytest.fixture(scope="module")
async def api(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    async with api_at_noon(postgres.url, tmp_path_factory.mktemp("api"), http_rate=1_000_000) as running:
        yield running


async def write_facts(api: Api, center: str, count: int, campaign: str | None, kind: str, details: str) -> None:
    """Write facts of a kind after all others of shard 0, in one batch."""
    position: int = await api.database.fetchval(
        "UPDATE ledger.shards SET position = position + $1 WHERE shard = 0 RETURNING position", count
    )
    await api.database.execute(_FACTS, 0, center, position, count, campaign, kind, RECORDED_AT, details)
    await api.batch(0, position - count + 1, position, center)
    await api.checkpoint("balance", 0, position)


async def test_a_read_of_the_past_parses_only_the_facts_that_decide_it(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write_center(api, "busy", 0)
    await write_facts(api, "busy", 1, None, "budget_set", CUSTOM % "true")
    await write_facts(api, "busy", FACTS, "others", "campaign_budget_set", CAMPAIGN_BUDGET % 1)
    await write_facts(api, "busy", FACTS, "c", "campaign_budget_set", CAMPAIGN_BUDGET % 2)
    await write_facts(api, "busy", 1, "c", "campaign_budget_set", CAMPAIGN_BUDGET % 3)
    await write_facts(api, "busy", FACTS, "c", "pause", PAUSED % "ad_account_balance")
    await write_facts(api, "busy", 1, "c", "pause", PAUSED % "campaign_budget")
    await write_facts(api, "busy", FACTS, "others", "pause", PAUSED % "campaign_budget")
    await write_facts(api, "busy", FACTS, None, "budget_set", CUSTOM % "false")
    await write_facts(api, "busy", FACTS, None, "pause", PAUSED % "ad_account_balance")
    await write_facts(api, "busy", 1, None, "pause", PAUSED % "ad_account_budget")
    parsed = 0

    def counting(shard: int, position: int, kind: str, campaign_id: str | None, details: str | None) -> Fact:
        nonlocal parsed
        parsed += 1
        return parse_fact(shard, position, kind, campaign_id, details)

    monkeypatch.setattr(moments, "parse_fact", counting)

    account = await api.get("/v1/ad-accounts/busy", at=LATER)
    assert (account["budget"]["mode"], account["budget"]["period_start"]) == ("custom", "2023-11-14T22:13:20.000000Z")
    assert account["delivery"]["causes"] == ["ad_account_budget"]
    campaign = await api.get("/v1/ad-accounts/busy/campaigns/c", at=LATER)
    assert (campaign["budget"]["amount"], campaign["delivery"]["causes"]) == ("3.000000", ["campaign_budget"])
    assert campaign["delivery"]["ad_account_causes"] == ["ad_account_budget"]
    assert parsed <= 10


async def test_money_of_the_past_is_summed_in_a_few_groups_for_any_number_of_days(api: Api) -> None:
    position = await write_center(api, "old", 1)
    await api.database.execute(
        """
        INSERT INTO ledger.entries (shard, position, part, amount, business_center_id, ad_account_id, campaign_id, kind,
                                    holder, pocket, day, occurred_at, recorded_at)
        SELECT 1, $1 + n, 0, -1, 'old', 'old', 'c', 'cash_debit', 'ad_account', 'cash', date '2020-01-01' + n,
               $2::text::timestamptz, $2::text::timestamptz
        FROM generate_series(1, 1000) AS n
        """,
        position,
        RECORDED_AT,
    )
    moment = Moment(NOON, 1, position + 1000, datetime.now(UTC), 0, DEFAULT_POLICY)
    async with api.context.snapshot() as connection:
        entity = await find_ad_account(connection, Caller("ann", "admin", None), "old")
        rows = await money_since_closing(connection, entity, moment)
    assert sum(row["amount"] for row in rows) == -1000
    assert len(rows) <= 2


async def test_a_page_of_entries_reads_only_the_blocks_that_it_searches(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    center, blocks = "scattered", 500
    shard = shard_of(center)
    await api.checkpoint("balance", shard, blocks * moments.BLOCK_POSITIONS)
    await api.database.execute(
        "INSERT INTO balance.entry_blocks SELECT $1, '', $2, generate_series(0, $3)", center, shard, blocks - 1
    )
    read: list[int] = []
    blocks_of = ledger._blocks

    def counting(spans: list[Span]) -> Iterator[Span]:
        read.append(len(spans))
        return blocks_of(spans)

    monkeypatch.setattr(ledger, "_blocks", counting)
    pages, after = 1, (await api.get("/v1/ledger", business_center_id=center))["next"]
    assert after == f"{shard}-{BLOCKS_AT_MOST * moments.BLOCK_POSITIONS - 1}"
    while after is not None:
        after = (await api.get("/v1/ledger", business_center_id=center, after=after))["next"]
        pages += 1
    assert pages == -(-blocks // BLOCKS_AT_MOST)
    assert max(read) <= BLOCKS_AT_MOST + 2


async def leave_out(api: Api, center: str, count: int) -> None:
    await api.insert("balance.automatic_allocation", business_center_id=center, enabled_at=RECORDED_AT)
    await api.database.execute(
        """
        WITH accounts AS (
            INSERT INTO balance.ad_accounts
            SELECT $1 || n, $1, 2, 'monthly_invoicing', 'auction', 'Asia/Tokyo', false, $3::text::timestamptz
            FROM generate_series(1, $2) AS n RETURNING ad_account_id
        )
        INSERT INTO balance.left_out SELECT $1, ad_account_id, 'not_owned' FROM accounts
        """,
        center,
        count,
        RECORDED_AT,
    )


async def test_a_business_center_with_too_many_excluded_accounts_is_a_conflict_and_not_listed(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(business_centers, "MOST_AD_ACCOUNTS", 10)
    monkeypatch.setattr(history, "MOST_AD_ACCOUNTS", 10)
    for center, count in (("left-a", 10), ("left-b", 11), ("left-c", 1)):
        await write_center(api, center, 2)
        await leave_out(api, center, count)
    assert (await api.get("/v1/business-centers/left-b", 409))["code"] == "conflict"
    assert (await api.get("/v1/business-centers/left-b", 409, at=LATER))["code"] == "conflict"
    for query in ("", f"?at={LATER}"):
        full = await api.get(f"/v1/business-centers/left-a{query}")
        assert len(full["automatic_allocation"]["left_out"]) == 10
    page = await api.get("/v1/business-centers", after="left", limit=3)
    assert [row["business_center_id"] for row in page["business_centers"]] == ["left-a"]
    assert page["next"] == "left-b"
    page = await api.get("/v1/business-centers", after="left-b", limit=1)
    assert [row["business_center_id"] for row in page["business_centers"]] == ["left-c"]


@pytest.mark.parametrize("table", ["balance.pockets", "balance.pocket_movements", "balance.grants"])
async def test_only_the_pockets_of_the_vocabulary_can_be_written(api: Api, table: str) -> None:
    oid = await api.database.fetchval("SELECT $1::text::regclass::oid", table)
    for pocket in POCKETS:
        assert await lawful.takes(api.database, oid, "pockets", {"pocket": f"'{pocket}'"}), pocket
    assert not await lawful.takes(api.database, oid, "pockets", {"pocket": "'weather'"})


async def write_deal(api: Api, deal: str, slabs: str) -> None:
    await api.insert(
        "incentives.deals",
        id=deal,
        client="Acme",
        ad_account_ids=["acct"],
        starts_on="2026-03-01",
        ends_on="2026-03-31",
        time_zone="Asia/Tokyo",
        currency="USD",
        method="marginal",
        slabs=slabs,
        registered_at=RECORDED_AT,
        updated_at=RECORDED_AT,
    )


async def test_a_page_of_deals_is_bounded_by_bytes(api: Api) -> None:
    """The deals are as large as the database allows. They are unreadable and so not on the page, but the API has read
    them.
    """
    largest = "[" + " " * (MOST_DEAL_BYTES - 2) + "]"
    for number in range(200):
        await write_deal(api, f"large-{number:03}", largest)
    with pytest.raises(asyncpg.CheckViolationError):
        await write_deal(api, "too-large", largest + " ")
    pages, after = 0, ""
    while True:
        async with api.context.snapshot() as connection:
            page = await read_page(connection, None, after, 1000)
        assert sum(len(row["slabs"]) for row in page.rows) <= PAGE_BYTES
        pages += 1
        if page.next is None:
            break
        after = page.next
    assert pages == 4


async def test_more_pockets_than_the_rules_write_are_a_conflict(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "_GROUPS_AT_MOST", 50)
    monkeypatch.setattr(series, "_MOVEMENTS_AT_MOST", 50)
    first = await write_center(api, "pockets", 3)
    position = await write_center(api, "pockets-last", 3)
    await api.database.execute(
        """
        INSERT INTO ledger.entries (shard, position, part, amount, business_center_id, ad_account_id, kind, holder,
                                    pocket, occurred_at, recorded_at)
        SELECT 3, $1 + n, 0, 1, 'pockets', 'pockets', 'deposit', 'ad_account', 'pocket-' || n,
               $2::text::timestamptz, $2::text::timestamptz
        FROM generate_series(1, 51) AS n
        """,
        position,
        RECORDED_AT,
    )
    days = {"from": "2026-03-01", "to": "2026-03-31"}
    assert (await api.client.get("/v1/ad-accounts/pockets/series", params=days)).status_code == 200
    await api.batch(3, first, position + 51, "pockets", LATER)
    await api.checkpoint("balance", 3, position + 51, LATER)
    await api.insert("balance.entry_blocks", business_center_id="pockets", ad_account_id="", shard=3, block=0)
    for path, query in (("", {"at": LATER}), ("/series", days)):
        assert (await api.client.get(f"/v1/ad-accounts/pockets{path}", params=query)).status_code == 409
    assert (await api.client.get("/v1/business-centers/pockets", params={"at": LATER})).status_code == 409


DAYS = 150
A_YEAR = {"from": "2025-06-01", "to": "2026-03-12"}


async def write_old_center(api: Api, center: str, versions: list[str]) -> None:
    """Open a Business Center in 2025 with a batch on each of `DAYS` days, under these policies in turn."""
    await write_center(api, center, 3)
    opened = "UPDATE balance.business_centers SET opened_at = '2025-06-01Z' WHERE business_center_id = $1"
    await api.database.execute(opened, center)
    for version in versions:
        policy = {"version": version, "ad_account": ["cash"], "business_center": ["cash"]}
        await api.insert("ledger.policies", version=version, content=policy)
    last: int = await api.database.fetchval(
        "UPDATE ledger.shards SET position = position + $1 WHERE shard = 3 RETURNING position", DAYS
    )
    for day in range(DAYS):
        recorded_at = str(datetime(2025, 7, 1, tzinfo=UTC) + timedelta(days=day))
        await api.batch(3, last - day, last - day, versions[day % len(versions)], recorded_at)


async def test_a_series_keeps_each_policy_once(api: Api) -> None:
    await write_old_center(api, "two-policies", ["this-policy", "that-policy"])
    noon = datetime(2025, 8, 1, 12, tzinfo=UTC)
    ends = [from_datetime(noon + timedelta(days=day)) for day in range(100)]
    async with api.context.snapshot() as connection:
        policies = await series._policies(connection, 3, series._Days([*range(100)], ends))
    assert len(policies) == 100
    assert len({id(policy) for policy in policies.values()}) == 2
    assert (await api.client.get("/v1/business-centers/two-policies/series", params=A_YEAR)).status_code == 200


async def test_a_series_under_too_many_policies_is_a_conflict(api: Api) -> None:
    await write_old_center(api, "many-policies", [f"policy-{number}" for number in range(DAYS)])
    refused = await api.get("/v1/business-centers/many-policies/series", 409, **A_YEAR)
    assert "policies" in refused["message"]
    few = {"from": "2025-07-01", "to": "2025-08-15"}
    assert (await api.client.get("/v1/business-centers/many-policies/series", params=few)).status_code == 200
