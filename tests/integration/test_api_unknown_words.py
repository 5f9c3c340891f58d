"""A ledger that a newer version wrote contains words that this version does not know. Every page shows them
nevertheless.
"""

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from tests.integration.api import RECORDED_AT, Api, command, running_api, shard_of
from tests.integration.test_api_reads import open_ad_account, open_business_center, set_budget
from tests.servers import Postgres

BC, ACCOUNT = "unknown-words", "unknown-words-a"
SHARD = shard_of(BC)


@pytest.fixture(scope="module")
async def api(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    async with running_api(postgres.url, tmp_path_factory.mktemp("api")) as running:
        # The migration of a version with another pocket or cause changes these constraints.
        await running.database.execute("ALTER TABLE balance.pockets DROP CONSTRAINT pockets_pockets")
        await open_business_center(running, BC, cash=3, points=4)
        await open_ad_account(running, BC, ACCOUNT, cash=3, points=4)
        await running.database.execute("ALTER TABLE balance.pauses DROP CONSTRAINT pauses_causes")
        await running.insert("balance.pauses", ad_account_id=ACCOUNT, campaign_id="", causes=["weather"], position=1)
        await running.insert("balance.campaigns", ad_account_id=ACCOUNT, campaign_id="c", mode="weekly", amount=7)
        await set_budget(running, ACCOUNT, "hourly", 5, day="2026-03-12", changes=1)
        await running.insert("balance.automatic_allocation", business_center_id=BC, enabled_at=RECORDED_AT)
        await running.insert("balance.left_out", business_center_id=BC, ad_account_id=ACCOUNT, reason="not_liked")
        yield running


async def quarantine(api: Api, sequence: int, reason: str) -> None:
    record: dict[str, Any] = {"detail": "why", "topic": "spend.events", "partition": SHARD, "offset": sequence}
    await api.insert(
        "ledger.quarantine", shard=SHARD, sequence=sequence, reason=reason, **record, raw=b"x", recorded_at=RECORDED_AT
    )


async def test_an_unknown_reason_is_listed_filtered_and_replayed(api: Api) -> None:
    await quarantine(api, 1, "malformed")
    await quarantine(api, 2, "cosmic_rays_2")
    page = await api.get("/v1/quarantine")
    assert [entry["reason"] for entry in page["entries"]] == ["malformed", "cosmic_rays_2"]
    page = await api.get("/v1/quarantine", reason="cosmic_rays_2")
    assert [entry["id"] for entry in page["entries"]] == [f"{SHARD}-2"]
    assert (await api.get("/v1/quarantine", reason="nobody_knows"))["entries"] == []
    response = await api.client.post("/v1/quarantine/replay", json={"reason": "cosmic_rays_2"})
    assert (response.status_code, response.json()) == (202, {"replayed": 1})


async def test_an_entry_of_an_unknown_kind_is_shown(api: Api) -> None:
    words = {"kind": "rebate", "holder": "platform", "pocket": "points", "cause": "weather"}
    await api.insert(
        "ledger.entries",
        **{"shard": SHARD, "position": 1, "amount": 5_000_000, "part": 0, "business_center_id": BC, **words},
        occurred_at=RECORDED_AT,
        recorded_at=RECORDED_AT,
        details={"mood": "good"},
    )
    await api.database.execute("UPDATE ledger.shards SET position = 1 WHERE shard = $1", SHARD)
    [entry] = (await api.get("/v1/ledger", business_center_id=BC))["entries"]
    assert {name: entry[name] for name in words} == words
    assert (entry["amount"], entry["details"]) == ("5.000000", {"mood": "good"})


async def test_unknown_causes_and_modes_of_an_account_are_shown(api: Api) -> None:
    account = await api.get(f"/v1/ad-accounts/{ACCOUNT}")
    assert account["delivery"] == {"delivering": False, "causes": ["weather"]}
    assert account["budget"]["mode"] == "hourly"
    listed = (await api.get(f"/v1/business-centers/{BC}/ad-accounts"))["ad_accounts"]
    assert [each["delivery"] for each in listed] == [account["delivery"]]
    campaign = await api.get(f"/v1/ad-accounts/{ACCOUNT}/campaigns/c")
    assert campaign["delivery"]["ad_account_causes"] == ["weather"]
    assert campaign["budget"]["mode"] == "weekly"


async def test_an_unknown_reason_for_exclusion_is_shown(api: Api) -> None:
    center = await api.get(f"/v1/business-centers/{BC}")
    assert center["automatic_allocation"]["left_out"] == [{"ad_account_id": ACCOUNT, "reason": "not_liked"}]
    assert (await api.get("/v1/business-centers"))["business_centers"][0]["balance"] == center["balance"]


async def test_an_unknown_outcome_code_is_answered(api: Api) -> None:
    sent = command("deposit_cash", BC, amount="1", command_id=str(uuid4()))
    outcome = {"status": "rejected", "code": "not_today", "message": "come back tomorrow"}
    await api.insert(
        "ledger.outcomes",
        shard=SHARD,
        sequence=1,
        command_id=sent["command_id"],
        first=True,
        content=sent,
        **{"business_center_id": BC, "type": sent["type"], **outcome, "position": 0, "recorded_at": RECORDED_AT},
        rules_version=3,
        zones_release="2030a",
    )
    response = await api.client.post("/v1/commands", json=sent)
    assert response.status_code == 422
    assert {name: response.json()[name] for name in outcome} == outcome


async def test_the_description_names_the_known_words_and_allows_others(api: Api) -> None:
    schemas = (await api.get("/openapi.json"))["components"]["schemas"]
    reason = schemas["QuarantinedRecord"]["properties"]["reason"]
    assert "enum" not in reason
    assert "internal_error" in reason["description"]
