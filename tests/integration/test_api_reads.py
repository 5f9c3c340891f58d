"""Reads through HTTP, from read models and a ledger that the tests themselves fill."""

import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.contracts.fields import parse_time
from shared.runtime.clock import Clock
from tests.integration.api import NOON, RECORDED_AT, Api, api_at_noon, shard_of
from tests.servers import Postgres

UNIT = 1_000_000


@pytest.fixture(scope="module")
async def api(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    async with api_at_noon(postgres.url, tmp_path_factory.mktemp("api")) as running:
        yield running


async def open_business_center(api: Api, id_: str, **pockets: int) -> None:
    shard = shard_of(id_)
    await api.insert(
        "balance.business_centers",
        business_center_id=id_,
        shard=shard,
        currency="USD",
        time_zone="Asia/Tokyo",
        finance_roles=True,
        opened_at=RECORDED_AT,
    )
    await fill(api, id_, "", pockets)
    await api.checkpoint("balance", shard, 0)
    await api.checkpoint("incentives", shard, 0)


async def open_ad_account(api: Api, business_center_id: str, id_: str, **pockets: int) -> None:
    common = {"ad_account_id": id_, "business_center_id": business_center_id, "shard": shard_of(business_center_id)}
    await api.insert(
        "balance.ad_accounts",
        **common,
        billing="monthly_invoicing",
        buying_type="auction",
        time_zone="Asia/Tokyo",
        owned=True,
        opened_at=RECORDED_AT,
    )
    await api.insert("ledger.ad_accounts", **common)
    await fill(api, business_center_id, id_, pockets)


async def fill(api: Api, business_center_id: str, ad_account_id: str, pockets: dict[str, int]) -> None:
    for pocket, units in pockets.items():
        await api.insert(
            "balance.pockets",
            business_center_id=business_center_id,
            ad_account_id=ad_account_id,
            pocket=pocket,
            amount=units * UNIT,
        )


async def set_budget(api: Api, id_: str, mode: str, units: int, *, day: str, changes: int) -> None:
    await api.insert(
        "balance.budgets", ad_account_id=id_, mode=mode, amount=units * UNIT, day=day, changes_today=changes, position=1
    )


async def spend_of_day(api: Api, id_: str, day: str, billed: int, overdelivered: int = 0) -> None:
    await api.insert(
        "balance.ad_account_days",
        ad_account_id=id_,
        day=day,
        billed=billed * UNIT,
        overdelivered=overdelivered * UNIT,
    )


async def test_the_balance_of_a_business_center_omits_a_negative_credit_line(api: Api) -> None:
    await open_business_center(api, "reads-1", cash=3, voucher=4, credit_line=-5, ad_credit=9)
    await api.insert("balance.credit_limits", business_center_id="reads-1", amount=100 * UNIT)
    answer = await api.get("/v1/business-centers/reads-1")
    assert answer["balance"] == {
        "cash": "3.000000",
        "voucher": "4.000000",
        "credit_line": {"limit": "100.000000", "used": "105.000000", "available": "-5.000000"},
        "available": "7.000000",
        "ad_credit": "9.000000",
    }
    assert answer["spend"] == {"gross": "0.000000", "billed": "0.000000", "overdelivered": "0.000000"}
    assert answer["automatic_allocation"] == {"enabled": False, "enabled_at": None, "left_out": []}
    assert answer["as_of"] == {
        "recorded_at": "2026-03-12T10:00:00.000000Z",
        "shards": [{"shard": shard_of("reads-1"), "position": 0}],
    }


async def test_a_pocket_outside_the_policy_is_not_available(api: Api) -> None:
    await open_business_center(api, "policy-1", cash=3, voucher=4, credit_line=5)
    every = ["voucher", "ad_credit", "cash", "credit"]
    content = {"version": "no-vouchers", "ad_account": every, "business_center": ["cash", "credit_line"]}
    shard = shard_of("policy-1")
    await api.insert("ledger.policies", version="no-vouchers", content=content)
    batch = {"recorded_at": RECORDED_AT, "root": bytes(32), "epoch": 1, "spend_offset": 0, "command_offset": 0}
    batch |= {"rules_version": 2, "zones_release": "test"}
    last = (await api.database.fetchval("SELECT max(last_position) FROM ledger.batches")) or 0
    await api.insert(
        "ledger.batches",
        shard=shard,
        first_position=last + 1,
        last_position=last + 1,
        policy_version="no-vouchers",
        **batch,
    )
    assert (await api.get("/v1/business-centers/policy-1"))["balance"]["available"] == "8.000000"
    await api.insert(
        "ledger.policies", version="all", content={**content, "version": "all", "business_center": ["voucher", "cash"]}
    )
    await api.insert(
        "ledger.batches",
        shard=shard,
        first_position=last + 2,
        last_position=last + 2,
        policy_version="all",
        **batch,
    )
    assert (await api.get("/v1/business-centers/policy-1"))["balance"]["available"] == "7.000000"


async def test_accounts_left_out_are_named_once_automatic_allocation_is_on(api: Api) -> None:
    await open_business_center(api, "reads-2")
    await open_ad_account(api, "reads-2", "reads-2-in")
    await open_ad_account(api, "reads-2", "reads-2-out")
    await api.insert("balance.left_out", business_center_id="reads-2", ad_account_id="reads-2-out", reason="not_owned")
    assert (await api.get("/v1/business-centers/reads-2"))["automatic_allocation"]["left_out"] == []
    await api.insert("balance.automatic_allocation", business_center_id="reads-2", enabled_at=RECORDED_AT)
    assert (await api.get("/v1/business-centers/reads-2"))["automatic_allocation"] == {
        "enabled": True,
        "enabled_at": "2026-03-12T10:00:00.000000Z",
        "left_out": [{"ad_account_id": "reads-2-out", "reason": "not_owned"}],
    }
    assert (await api.get("/v1/ad-accounts/reads-2-in"))["automatic_allocation"] is True
    assert (await api.get("/v1/ad-accounts/reads-2-out"))["automatic_allocation"] is False


async def test_an_account_without_a_budget_is_unlimited_and_has_all_its_changes_left(api: Api) -> None:
    await open_business_center(api, "reads-3")
    await open_ad_account(api, "reads-3", "reads-3-a", voucher=1, ad_credit=2, cash=3, credit=4)
    answer = await api.get("/v1/ad-accounts/reads-3-a")
    assert answer["balance"]["available"] == "10.000000"
    assert answer["delivery"] == {"delivering": True, "causes": []}
    assert answer["budget"] == {
        "mode": "unlimited",
        "amount": None,
        "spent": None,
        "remaining": None,
        "period_start": None,
        "changes_today": 0,
        "changes_remaining": 10,
    }


async def test_a_daily_budget_counts_the_day_of_the_account(api: Api) -> None:
    await open_business_center(api, "reads-4")
    await open_ad_account(api, "reads-4", "reads-4-a")
    await set_budget(api, "reads-4-a", "daily", 100, day="2026-03-12", changes=3)
    await spend_of_day(api, "reads-4-a", "2026-03-11", 95)
    await spend_of_day(api, "reads-4-a", "2026-03-12", 40, 2)
    answer = await api.get("/v1/ad-accounts/reads-4-a")
    assert answer["budget"] == {
        "mode": "daily",
        "amount": "100.000000",
        "spent": "40.000000",
        "remaining": "60.000000",
        "period_start": "2026-03-11T15:00:00.000000Z",
        "changes_today": 3,
        "changes_remaining": 7,
    }
    assert answer["spend"] == {"gross": "137.000000", "billed": "135.000000", "overdelivered": "2.000000"}


async def test_the_day_changes_in_the_zone_of_the_account_without_a_write(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    await open_business_center(api, "reads-5")
    await open_ad_account(api, "reads-5", "reads-5-a")
    await set_budget(api, "reads-5-a", "daily", 100, day="2026-03-12", changes=10)
    await spend_of_day(api, "reads-5-a", "2026-03-12", 100)
    monkeypatch.setattr(Clock, "now_us", lambda _: parse_time("2026-03-12T15:00:00Z") - 1)
    budget = (await api.get("/v1/ad-accounts/reads-5-a"))["budget"]
    assert (budget["remaining"], budget["changes_remaining"]) == ("0.000000", 0)
    monkeypatch.setattr(Clock, "now_us", lambda _: parse_time("2026-03-12T15:00:00Z"))
    budget = (await api.get("/v1/ad-accounts/reads-5-a"))["budget"]
    assert (budget["spent"], budget["remaining"]) == ("0.000000", "100.000000")
    assert (budget["changes_today"], budget["changes_remaining"]) == (0, 10)
    assert budget["period_start"] == "2026-03-12T15:00:00.000000Z"


async def test_a_clock_behind_the_ledger_does_not_return_to_the_previous_day(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    await open_business_center(api, "reads-6")
    await open_ad_account(api, "reads-6", "reads-6-a")
    await set_budget(api, "reads-6-a", "daily", 100, day="2026-03-12", changes=1)
    await spend_of_day(api, "reads-6-a", "2026-03-12", 7)
    monkeypatch.setattr(Clock, "now_us", lambda _: parse_time("2026-03-11T14:59:59Z"))
    budget = (await api.get("/v1/ad-accounts/reads-6-a"))["budget"]
    assert (budget["spent"], budget["changes_today"]) == ("7.000000", 1)


async def test_a_monthly_budget_counts_the_whole_month_and_nothing_else(api: Api) -> None:
    await open_business_center(api, "reads-7")
    await open_ad_account(api, "reads-7", "reads-7-a")
    await set_budget(api, "reads-7-a", "monthly", 50, day="2026-03-01", changes=2)
    for day, billed in {"2026-02-28": 1000, "2026-03-01": 20, "2026-03-31": 40, "2026-04-01": 1000}.items():
        await spend_of_day(api, "reads-7-a", day, billed)
    budget = (await api.get("/v1/ad-accounts/reads-7-a"))["budget"]
    assert (budget["spent"], budget["remaining"]) == ("60.000000", "0.000000")
    assert budget["period_start"] == "2026-02-28T15:00:00.000000Z"
    assert budget["changes_today"] == 0


async def test_a_custom_budget_counts_from_its_start(api: Api) -> None:
    await open_business_center(api, "reads-8")
    await open_ad_account(api, "reads-8", "reads-8-a")
    await set_budget(api, "reads-8-a", "custom", 50, day="2026-03-01", changes=2)
    await spend_of_day(api, "reads-8-a", "2026-03-12", 1000)
    await api.insert(
        "balance.custom_budgets",
        ad_account_id="reads-8-a",
        start_position=1,
        started_at="2026-03-05T00:00:00Z",
        spent=12 * UNIT,
    )
    budget = (await api.get("/v1/ad-accounts/reads-8-a"))["budget"]
    assert (budget["spent"], budget["remaining"]) == ("12.000000", "38.000000")
    assert budget["period_start"] == "2026-03-05T00:00:00.000000Z"


@pytest.mark.parametrize(
    ("mode", "spent", "period_start"),
    [("daily", "5.000000", "2026-03-11T15:00:00.000000Z"), ("lifetime", "25.000000", None)],
)
async def test_a_campaign_delivers_while_neither_it_nor_its_account_is_paused(
    api: Api, mode: str, spent: str, period_start: str | None
) -> None:
    account = f"reads-9-{mode}"
    await open_business_center(api, f"reads-9-{mode}")
    await open_ad_account(api, f"reads-9-{mode}", account)
    await api.insert("balance.campaigns", ad_account_id=account, campaign_id="c", mode=mode, amount=30 * UNIT)
    for day, billed in {"2026-03-11": 20, "2026-03-12": 5}.items():
        await api.insert(
            "balance.campaign_days",
            ad_account_id=account,
            campaign_id="c",
            day=day,
            billed=billed * UNIT,
            overdelivered=0,
        )
    path = f"/v1/ad-accounts/{account}/campaigns/c"
    assert (await api.get(path))["delivery"]["delivering"] is True
    await api.insert("balance.pauses", ad_account_id=account, campaign_id="", causes=["ad_account_balance"], position=1)
    answer = await api.get(path)
    assert answer["delivery"] == {"delivering": False, "causes": [], "ad_account_causes": ["ad_account_balance"]}
    assert (answer["budget"]["spent"], answer["budget"]["period_start"]) == (spent, period_start)
    assert answer["spend"]["gross"] == "25.000000"
    await api.get(f"/v1/ad-accounts/{account}/campaigns/nobody", 404)


async def test_lists_are_paged_by_id(api: Api) -> None:
    await open_business_center(api, "paged")
    for number in range(5):
        await open_ad_account(api, "paged", f"paged-{number}", cash=number)
    page = await api.get("/v1/business-centers/paged/ad-accounts", limit=3)
    assert [each["balance"]["cash"] for each in page["ad_accounts"]] == ["0.000000", "1.000000", "2.000000"]
    rest = await api.get("/v1/business-centers/paged/ad-accounts", limit=3, after=page["next"])
    assert [each["ad_account_id"] for each in rest["ad_accounts"]] == ["paged-3", "paged-4"]
    assert rest["next"] is None
    everything = await api.get("/v1/business-centers", limit=1000)
    ids = [each["business_center_id"] for each in everything["business_centers"]]
    assert "paged" in ids
    assert ids == sorted(ids)


# --- The ledger ---

BLOCK_3 = 3 * 65_536  # its first position
OTHERS = [2, 200_000, 300_000]
MINE = [1, 3, BLOCK_3, 200_001, 299_999, 300_001]
SOURCE = "0193aaaa-0000-7000-8000-{:012d}"


async def append(api: Api, business_center_id: str, position: int, ad_account_id: str | None, **fields: Any) -> None:
    await api.insert(
        "ledger.entries",
        **{
            "shard": shard_of(business_center_id),
            "position": position,
            "amount": -15 * UNIT // 10,
            "occurred_at": RECORDED_AT,
            "recorded_at": RECORDED_AT,
            "source_event_id": SOURCE.format(position),
            "part": 0,
            "day": "2026-03-12",
            "period": "2026-03-12",
            "kind": "cash_debit",
            "holder": "ad_account",
            "pocket": "cash",
            "business_center_id": business_center_id,
            "ad_account_id": ad_account_id,
            "campaign_id": "c",
            **fields,
        },
    )
    await api.database.execute(
        "UPDATE ledger.shards SET position = greatest(position, $2) WHERE shard = $1",
        shard_of(business_center_id),
        position,
    )


def positions(answer: dict[str, Any]) -> list[int]:
    return [entry["position"] for entry in answer["entries"]]


@pytest.fixture(scope="module")
async def ledger(api: Api) -> Api:
    """Write two Business Centers of one shard, with entries in the blocks 0, 3 and 4. The read model has read only a
    part of block 4.
    """
    mine, other = business_centers_of_one_shard(2)
    assert (mine, shard_of(other)) == ("ledger-0", shard_of("ledger-0"))
    await open_ad_account(api, mine, "ledger-a")
    await open_ad_account(api, other, "ledger-b")
    for position in (1, 2, 3, BLOCK_3, 200_000, 200_001, 299_999, 300_000, 300_001):
        id_, account = (other, "ledger-b") if position in OTHERS else (mine, "ledger-a")
        await append(api, id_, position, account)
    for block, (id_, account) in itertools.product((0, 3, 4), ((mine, "ledger-a"), (other, "ledger-b"))):
        for key in ("", account):
            await api.insert(
                "balance.entry_blocks", business_center_id=id_, ad_account_id=key, shard=shard_of(id_), block=block
            )
    await api.checkpoint("balance", shard_of(mine), 300_000)
    return api


def business_centers_of_one_shard(count: int) -> list[str]:
    ids = [f"ledger-{number}" for number in range(100)]
    return [id_ for id_ in ids if shard_of(id_) == shard_of(ids[0])][:count]


async def test_entries_of_a_business_center_are_found_in_blocks_and_after_the_last_block(ledger: Api) -> None:
    mine, other = business_centers_of_one_shard(2)
    assert positions(await ledger.get("/v1/ledger", business_center_id=mine)) == MINE
    assert positions(await ledger.get("/v1/ledger", business_center_id=other)) == OTHERS
    assert positions(await ledger.get("/v1/ledger", ad_account_id="ledger-a")) == MINE
    assert positions(await ledger.get("/v1/ledger", business_center_id=mine, ad_account_id="ledger-b")) == []
    assert positions(await ledger.get("/v1/ledger", ad_account_id="nobody")) == []
    assert positions(await ledger.get("/v1/ledger", business_center_id="nobody")) == []


async def test_pages_have_no_gaps_or_repetitions(ledger: Api) -> None:
    mine = business_centers_of_one_shard(1)[0]
    found: list[int] = []
    query: dict[str, Any] = {"business_center_id": mine, "limit": 1}
    while True:
        page = await ledger.get("/v1/ledger", **query)
        found += positions(page)
        if page["next"] is None:
            break
        query["after"] = page["next"]
    assert found == MINE


async def test_after_may_also_be_a_plain_position(ledger: Api) -> None:
    mine = business_centers_of_one_shard(1)[0]
    assert positions(await ledger.get("/v1/ledger", business_center_id=mine, after=3)) == MINE[2:]
    assert positions(await ledger.get("/v1/ledger", after=10**18)) == []


async def test_a_page_ends_early_instead_of_searching_a_whole_long_ledger(
    ledger: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.api.past.ledger.BLOCKS_AT_MOST", 1)
    first = await ledger.get("/v1/ledger", ad_account_id="ledger-a")
    assert positions(first) == [1, 3]
    second = await ledger.get("/v1/ledger", ad_account_id="ledger-a", after=first["next"])
    assert positions(second) == [BLOCK_3, 200_001]


async def test_unfiltered_pages_go_from_shard_to_shard(ledger: Api) -> None:
    mine = business_centers_of_one_shard(1)[0]
    elsewhere = next(f"far-{number}" for number in range(100) if shard_of(f"far-{number}") != shard_of(mine))
    for position in (1, 2):
        await append(ledger, elsewhere, position, None)
    everything = [(entry["shard"], entry["position"]) for entry in (await ledger.get("/v1/ledger"))["entries"]]
    assert {shard for shard, _ in everything} == {shard_of(mine), shard_of(elsewhere)}
    assert everything == sorted(everything)
    found = []
    query: dict[str, Any] = {"limit": 1}
    while True:
        page = await ledger.get("/v1/ledger", **query)
        found += [(entry["shard"], entry["position"]) for entry in page["entries"]]
        if page["next"] is None:
            break
        query["after"] = page["next"]
    assert found == everything


async def test_the_entries_of_an_event_or_command_are_found_by_its_id(ledger: Api) -> None:
    event, mine = SOURCE.format(777), business_centers_of_one_shard(1)[0]
    await append(ledger, mine, 400_000, "ledger-a", source_event_id=event)
    await append(
        ledger,
        mine,
        400_001,
        "ledger-a",
        source_event_id=event,
        part=1,
        day=None,
        period=None,
        kind="pause",
        amount=None,
        cause="ad_account_balance",
        details={"causes": ["ad_account_balance"]},
    )
    await append(ledger, mine, 400_002, "ledger-a")
    answer = await ledger.get("/v1/ledger", source_event_id=event.upper())
    assert positions(answer) == [400_000, 400_001]
    debit, pause = answer["entries"]
    assert (debit["amount"], debit["day"], debit["causes"]) == ("-1.500000", "2026-03-12", None)
    assert (pause["amount"], pause["cause"], pause["causes"]) == (None, "ad_account_balance", ["ad_account_balance"])
    assert positions(await ledger.get("/v1/ledger", source_event_id=event, limit=1)) == [400_000]

    command_id = SOURCE.format(778)
    details = {"amount": 5 * UNIT, "mode": "custom", "spent": 0, "started_at": NOON, "command": {"amount": "5"}}
    await append(
        ledger,
        mine,
        400_003,
        "ledger-a",
        source_event_id=command_id,
        day=None,
        kind="budget_set",
        amount=None,
        details=details,
    )
    await ledger.insert(
        "ledger.outcomes",
        shard=shard_of(mine),
        sequence=1,
        command_id=command_id,
        first=True,
        business_center_id=mine,
        type="set_budget",
        content={},
        status="accepted",
        message="done",
        first_position=400_003,
        position=400_003,
        recorded_at=RECORDED_AT,
        rules_version=2,
        zones_release="test",
    )
    entry = (await ledger.get("/v1/ledger", source_event_id=command_id))["entries"][0]
    assert entry["details"]["amount"] == "5.000000"
    assert entry["details"]["started_at"] == "2026-03-12T12:00:00.000000Z"
    assert (await ledger.get("/v1/ledger", source_event_id=SOURCE.format(999)))["entries"] == []


# --- Deals ---


def terms(*accounts: str, **changes: Any) -> dict[str, Any]:
    return {
        "client": "Acme",
        "ad_account_ids": list(accounts),
        "starts_on": "2026-03-01",
        "ends_on": "2026-03-31",
        "time_zone": "Asia/Tokyo",
        "currency": "USD",
        "slabs": [{"from": "50000", "rate": "0.03"}, {"from": "100000", "rate": "0.05"}],
        **changes,
    }


@pytest.fixture(scope="module")
async def deal_accounts(api: Api) -> Api:
    await open_business_center(api, "deal-bc")
    await open_ad_account(api, "deal-bc", "deal-a")
    await open_ad_account(api, "deal-bc", "deal-b")
    cash = [
        ("deal-a", "2026-02-28T14:45:00Z", 1_000_000),  # the last quarter of an hour before the period, in Tokyo
        ("deal-a", "2026-02-28T15:00:00Z", 30_000),
        ("deal-b", "2026-03-12T11:45:00Z", 50_000),
        ("deal-b", "2026-03-31T15:00:00Z", 1_000_000),  # the first one after the period
    ]
    for account, bucket, units in cash:
        await api.insert("incentives.cash_spend", ad_account_id=account, bucket=bucket, amount=units * UNIT)
    return api


async def test_a_deal_is_registered_replaced_and_read(deal_accounts: Api) -> None:
    api = deal_accounts
    new = await api.client.put("/v1/deals/d-1", json=terms("deal-a", "deal-b"))
    assert new.status_code == 201
    assert new.json()["method"] == "whole_spend"
    assert new.json()["slabs"][0] == {"from": "50000.000000", "rate": "0.03"}
    replaced = await api.client.put("/v1/deals/d-1", json=terms("deal-a", client="Acme & Söhne"))
    assert replaced.status_code == 200
    assert await api.get("/v1/deals/d-1") == replaced.json()
    assert replaced.json()["client"] == "Acme & Söhne"
    assert replaced.json() in (await api.get("/v1/deals"))["deals"]


@pytest.mark.parametrize(("method", "unlocked"), [("whole_spend", "2400.000000"), ("marginal", "900.000000")])
async def test_pacing_agrees_with_the_worked_example(deal_accounts: Api, method: str, unlocked: str) -> None:
    await deal_accounts.client.put("/v1/deals/d-2", json=terms("deal-a", "deal-b", method=method))
    pacing = await deal_accounts.get("/v1/deals/d-2/pacing")
    assert pacing["cash_spend"] == "80000.000000"
    assert (pacing["tier"], pacing["rate"], pacing["unlocked"]) == (1, "0.03", unlocked)
    assert pacing["next_tier"] == {"from": "100000.000000", "rate": "0.05", "distance": "20000.000000"}
    assert pacing["run_rate_per_day"] == "6666.666667"  # 80,000 divided by the 12 days begun
    assert pacing["forecast"]["cash_spend"] == "206666.666667"
    assert (pacing["forecast"]["tier"], pacing["forecast"]["rate"]) == (2, "0.05")
    [line] = pacing["calculation"]
    assert (line["from"], line["to"], line["rate"], line["amount"]) == (
        "50000.000000",
        "100000.000000",
        "0.03",
        unlocked,
    )
    assert pacing["as_of"]["shards"] == [{"shard": shard_of("deal-bc"), "position": 0}]


async def test_net_spend_below_zero_reaches_no_tier(deal_accounts: Api) -> None:
    await open_ad_account(deal_accounts, "deal-bc", "deal-c")
    await deal_accounts.insert(
        "incentives.cash_spend", ad_account_id="deal-c", bucket="2026-03-10T00:00:00Z", amount=-5
    )
    await deal_accounts.client.put("/v1/deals/d-3", json=terms("deal-c", slabs=[{"from": "0", "rate": "1"}]))
    pacing = await deal_accounts.get("/v1/deals/d-3/pacing")
    assert (pacing["cash_spend"], pacing["tier"], pacing["unlocked"]) == ("-0.000005", 0, "0.000000")
    assert (pacing["rate"], pacing["calculation"]) == ("0", [])
    assert pacing["next_tier"]["distance"] == "0.000005"


@pytest.mark.parametrize(
    "wrong",
    [
        "slabs = '[{}]'",
        "slabs = '{\"a\": 1}'",
        'slabs = \'[{"from": 5, "rate": "1"}]\'',
        'slabs = \'[{"from": "NaN", "rate": "1"}]\'',
        "slabs = ('[' || repeat('[', 5000) || repeat(']', 5000) || ']')::json",
        "slabs = '[]'",
        "time_zone = 'Mars/Phobos'",
        "currency = 'dollars'",
        "client = ''",
        "ad_account_ids = '{}'",
        "ad_account_ids = '{deal-a,NULL}'",
        "ad_account_ids = '{{deal-a},{deal-b}}'",
        "ends_on = '1990-01-01'",
        "starts_on = '1965-01-01'",
    ],
)
async def test_an_unreadable_deal_does_not_hide_the_others(deal_accounts: Api, wrong: str) -> None:
    api = deal_accounts
    for name in ("d-bad", "d-good"):
        await api.client.put(f"/v1/deals/{name}", json=terms("deal-a"))
    await api.database.execute(f"UPDATE incentives.deals SET {wrong} WHERE id = 'd-bad'")
    for path in ("", "/pacing", "/spend-detail"):
        answer = await api.get(f"/v1/deals/d-bad{path}", 409)
        assert answer["code"] == "conflict"
    ids = [deal["id"] for deal in (await api.get("/v1/deals"))["deals"]]
    assert "d-good" in ids
    assert "d-bad" not in ids
    assert (await api.client.put("/v1/deals/d-bad", json=terms("deal-a"))).status_code == 200
    assert (await api.get("/v1/deals/d-bad"))["id"] == "d-bad"


async def test_a_deal_needs_accounts_that_exist_in_its_currency(deal_accounts: Api) -> None:
    for wrong, code in [
        (terms("deal-a", "nobody"), "not_found"),
        (terms("deal-a", currency="EUR"), "currency_mismatch"),
    ]:
        response = await deal_accounts.client.put("/v1/deals/d-4", json=wrong)
        assert (response.status_code, response.json()["code"]) == (422, code)
    await deal_accounts.get("/v1/deals/d-4", 404)
    await deal_accounts.get("/v1/deals/d-4/pacing", 404)


async def test_an_entry_with_unreadable_details_does_not_hide_its_page(api: Api) -> None:
    far = '{"started_at": ' + "9" * 30 + "}"
    details = ("[" * 4_000 + "]" * 4_000, "[]", "7", '{"amount": 1' + "0" * 5_000 + "}", far, "{}")
    await open_business_center(api, "details-2")
    for position, kept in enumerate(details, 310_000):
        await append(api, "details-2", position, "details-a", kind="pause", pocket=None, amount=None, details=kept)
    answer = await api.get("/v1/ledger", business_center_id="details-2")
    assert positions(answer) == list(range(310_000, 310_006))
    assert [entry["details"] for entry in answer["entries"]] == [None, None, None, None, None, {}]
    assert {entry["causes"] for entry in answer["entries"]} == {None}
