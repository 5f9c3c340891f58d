"""Whatever facts and policies the writer's login stores, the API answers. What it cannot read is a 409 that says so.

The database accepts any JSON as the details of a fact, and as a policy. Each case has its own Business Center.
"""

import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import pytest

from shared.rules.vocabulary import BUDGET_KINDS, DELIVERY_KINDS
from tests.integration.api import RECORDED_AT, Api, api_at_noon
from tests.servers import Postgres
from tests.zones import INSTALLED

pytestmark = pytest.mark.embedded
LATER = "2026-03-12T11:00:00Z"
DAY = "2026-03-12"
SERIES = "series?from=2026-03-01&to=2026-03-31"
BUDGET = {
    "mode": "custom",
    "amount": 5,
    "spent": 0,
    "started_at": 1_700_000_000_000_000,
    "restarted": True,
    "day": DAY,
    "changes_today": 1,
}
FINE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(BUDGET_KINDS, BUDGET),
    "campaign_budget_set": {"mode": "daily", "amount": 5},
    **{kind: {"causes": ["ad_account_budget"]} for kind in DELIVERY_KINDS},
}
# Each of these is wrong in some places only.
WORDS = ("null", "{}", "[null]", "[[]]", '""', '"today"', "true", "-1", "0.5", "1e999", "1" * 40)
DEEP = "[" * 6_000 + "]" * 6_000
LONG_NUMBER = "1" * 5_000
NO_OBJECTS = (None, "null", "[]", '"x"', "1", "{}", '{"causes": 1}', '"\\ud800"', DEEP, LONG_NUMBER)
POSITIONS = (*WORDS, '"cash"', '"\\ud800"', DEEP, LONG_NUMBER)
# The fields of a policy besides its version, which the database compares with the row's.
WRONG: tuple[Any, ...] = (None, {}, "cash", 1, [None], [["cash"]], [{}], [1])
POLICIES: tuple[dict[str, Any], ...] = (
    {},
    {"business_center": ["cash"]},
    *({"ad_account": [], "business_center": wrong} for wrong in WRONG),
    {"ad_account": {}, "business_center": []},
)
# Each is one more field of a policy that could be read without it.
FIELDS_OF_POLICIES = {
    "deep": DEEP,
    "long-number": LONG_NUMBER,
    "long": "[" + ", ".join(["{}"] * 16_000) + "]",
}


def written(texts: dict[str, str]) -> str:
    """Return the JSON object of these fields, whose values are JSON already."""
    return "{" + ", ".join(f'"{name}": {text}' for name, text in texts.items()) + "}"


def hostile(kind: str) -> list[str | None]:
    """Return the details to try for a kind, as JSON: each field missing, and with each of `WORDS`."""
    fine = FINE[kind]
    changed = [
        "{"
        + ", ".join(f'"{name}": {word if name == field else json.dumps(value)}' for name, value in fine.items())
        + "}"
        for field, word in itertools.product(fine, WORDS)
    ]
    without = [json.dumps({name: value for name, value in fine.items() if name != field}) for field in fine]
    return [*NO_OBJECTS, *without, *changed]


@pytest.fixture(scope="module")
async def api(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    async with api_at_noon(postgres.url, tmp_path_factory.mktemp("api"), http_rate=1_000_000) as running:
        yield running


def policy_with(version: str, field: str) -> str:
    """The JSON of a policy with one more field of this JSON."""
    return written({"version": json.dumps(version), "ad_account": "[]", "business_center": "[]", "x": field})


async def write_center(api: Api, center: str, shard: int, policy: dict[str, Any] | str | None = None) -> int:
    """Open a Business Center with an ad account and a campaign, in a batch of one position. Return the position.

    A `policy` is what it says beside its version, or its whole JSON.
    """
    position: int = await api.database.fetchval(
        "UPDATE ledger.shards SET position = position + 1 WHERE shard = $1 RETURNING position", shard
    )
    opened = {"shard": shard, "time_zone": "Asia/Tokyo", "opened_at": RECORDED_AT}
    await api.insert(
        "balance.business_centers", business_center_id=center, currency="USD", finance_roles=True, **opened
    )
    await api.insert(
        "balance.ad_accounts",
        **{"business_center_id": center, "ad_account_id": center, "owned": True, **opened},
        billing="monthly_invoicing",
        buying_type="auction",
    )
    await api.insert("balance.campaigns", ad_account_id=center, campaign_id="c", mode="daily", amount=5, position=0)
    await api.insert("balance.entry_blocks", business_center_id=center, ad_account_id=center, shard=shard, block=0)
    if policy is not None:
        content = policy if isinstance(policy, str) else json.dumps({"version": center, **policy})
        await api.insert("ledger.policies", version=center, content=content)
    await api.batch(shard, position, position, center)
    await api.checkpoint("balance", shard, position)
    return position


async def write_fact(
    api: Api, center: str, position: int, kind: str, details: str | None, amount: int | None = None
) -> None:
    await api.insert(
        "ledger.entries",
        shard=0,
        position=position,
        part=0,
        business_center_id=center,
        ad_account_id=center,
        campaign_id="c" if kind.startswith("campaign") else None,
        kind=kind,
        amount=amount,
        occurred_at=RECORDED_AT,
        recorded_at=RECORDED_AT,
        details=details,
    )


def entry_path(position: int) -> str:
    """The page of the ledger with the entry at this position of shard 0."""
    return f"/v1/ledger?after=0-{position - 1}&limit=1"


def reads_of(center: str, position: int) -> tuple[str, ...]:
    """The paths whose answers need the entry at this position, of a Business Center and its account of the same id."""
    return (
        f"/v1/ad-accounts/{center}?at={LATER}",
        f"/v1/ad-accounts/{center}/campaigns/c?at={LATER}",
        f"/v1/business-centers/{center}?at={LATER}",
        entry_path(position),
    )


async def ask(api: Api, path: str) -> httpx.Response:
    return await api.client.get(path)


@pytest.mark.parametrize("kind", FINE)
async def test_the_api_survives_any_details_of_a_fact(api: Api, kind: str) -> None:
    wrong, unreadable = [], 0
    for number, details in enumerate(hostile(kind)):
        center = f"{kind}-{number}"
        position = await write_center(api, center, 0)
        await write_fact(api, center, position, kind, details)
        for path in reads_of(center, position):
            answer = await ask(api, path)
            unreadable += answer.status_code == 409
            if answer.status_code not in (200, 404, 409):
                wrong.append(f"{details} {path}: {answer.status_code} {answer.text}")
    assert wrong == []
    assert unreadable


@pytest.mark.parametrize("kind", FINE)
async def test_details_that_the_rules_write_are_read(api: Api, kind: str) -> None:
    center = f"fine-{kind}"
    details = {**FINE[kind], "command": {"type": "set_budget"}, "via": "topic"}
    await write_fact(api, center, await write_center(api, center, 0), kind, json.dumps(details))
    assert (await ask(api, f"/v1/ad-accounts/{center}?at={LATER}")).status_code == 200


async def test_a_fact_nested_as_deeply_as_the_database_allows_is_a_conflict(api: Api) -> None:
    center = "deepest"
    position = await write_center(api, center, 0)
    takes, refuses = 0, 32_768
    while refuses - takes > 1:
        levels = (takes + refuses) // 2
        try:
            await api.database.fetchval("SELECT $1::text::json IS NULL", "[" * levels + "]" * levels)
            takes = levels
        except asyncpg.StatementTooComplexError:
            refuses = levels
    for levels in range(takes, 0, -1):
        try:
            await write_fact(api, center, position, "budget_set", "[" * levels + "]" * levels)
            break
        except asyncpg.StatementTooComplexError:
            continue
    for path in (f"?at={LATER}", f"/campaigns/c?at={LATER}"):
        answer = await ask(api, f"/v1/ad-accounts/{center}{path}")
        assert answer.status_code == 409, answer.text


@pytest.mark.parametrize("kind", ["reversal", "forfeit"])
@pytest.mark.parametrize("number", range(len(POSITIONS)))
async def test_the_api_survives_any_position_of_a_spend(api: Api, kind: str, number: int) -> None:
    center = f"{kind}-{number}"
    first = await write_center(api, center, 0)
    await write_fact(api, center, first, "budget_set", json.dumps(BUDGET))
    last: int = await api.database.fetchval(
        "UPDATE ledger.shards SET position = position + 1 WHERE shard = 0 RETURNING position"
    )
    await write_fact(api, center, last, kind, written({"spend_position": POSITIONS[number]}), amount=5)
    await api.batch(0, last, last, center)
    await api.checkpoint("balance", 0, last)
    for path in reads_of(center, last):
        answer = await ask(api, path)
        assert answer.status_code in (200, 404, 409), answer.text


async def test_numbers_beyond_a_double_do_not_give_invalid_json(api: Api) -> None:
    position = await write_center(api, "infinite", 0)
    await write_fact(api, "infinite", position, "pause", '{"causes": [], "few": 1, "many": 1e999, "most": [-1e999]}')
    answer = await ask(api, entry_path(position))

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    entries = json.loads(answer.content, parse_constant=refuse)["entries"]
    assert [entry["details"] for entry in entries] == [{"causes": [], "few": 1, "many": None, "most": [None]}]


async def test_an_unreadable_fact_is_named(api: Api) -> None:
    position = await write_center(api, "named", 0)
    await write_fact(api, "named", position, "pause", "{}")
    answer = await ask(api, f"/v1/ad-accounts/named?at={LATER}")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert f"position {position} of shard 0" in answer.json()["message"]


async def statuses_of(api: Api, center: str) -> dict[str, int]:
    """The statuses of the routes that need the policy of this Business Center's shard."""
    return {
        path: (await ask(api, path)).status_code
        for path in (
            f"/v1/business-centers/{center}",
            f"/v1/business-centers/{center}?at={LATER}",
            f"/v1/business-centers/{center}/{SERIES}",
            f"/v1/ad-accounts/{center}",
            f"/v1/ad-accounts/{center}?at={LATER}",
            f"/v1/ad-accounts/{center}/{SERIES}",
        )
    }


@pytest.mark.parametrize("number", range(len(POLICIES)))
async def test_the_api_survives_any_policy(api: Api, number: int) -> None:
    center = f"policy-{number}"
    await write_center(api, center, 1, POLICIES[number])
    statuses = await statuses_of(api, center)
    assert set(statuses.values()) == {409}, statuses


@pytest.mark.parametrize("name", FIELDS_OF_POLICIES)
async def test_the_api_survives_any_json_of_a_policy(api: Api, name: str) -> None:
    center = f"json-{name}"
    await write_center(api, center, 1, policy_with(center, FIELDS_OF_POLICIES[name]))
    statuses = await statuses_of(api, center)
    assert set(statuses.values()) == {409}, statuses
    assert (await ask(api, f"/v1/ad-accounts/{center}/campaigns/c?at={LATER}")).status_code == 409
    ids = [row["business_center_id"] for row in (await api.get("/v1/business-centers", limit=1000))["business_centers"]]
    assert center not in ids
    assert (await api.get(f"/v1/business-centers/{center}/ad-accounts"))["ad_accounts"] == []


async def test_a_policy_with_an_unknown_field_is_read(api: Api) -> None:
    await write_center(api, "newer-policy", 1, policy_with("newer-policy", '{"some": ["words"]}'))
    statuses = await statuses_of(api, "newer-policy")
    assert set(statuses.values()) == {200}, statuses


async def test_a_page_omits_only_unreadable_business_centers(api: Api) -> None:
    await write_center(api, "page-good", 2)
    await write_center(api, "page-bad", 3, {})
    page = await api.get("/v1/business-centers", limit=1000)
    ids = {row["business_center_id"] for row in page["business_centers"]}
    assert "page-good" in ids
    assert "page-bad" not in ids
    assert (await api.get("/v1/business-centers/page-bad/ad-accounts"))["ad_accounts"] == []


async def test_a_zone_missing_from_the_installed_release_is_read_from_the_ledger(api: Api) -> None:
    await write_center(api, "lost-zone", 2)
    zone = "Atlantis/City"
    for table in ("business_centers", "ad_accounts"):
        await api.database.execute(
            f"UPDATE balance.{table} SET time_zone = $1 WHERE business_center_id = 'lost-zone'",
            zone,
        )
    path = "/v1/ad-accounts/lost-zone"
    assert (await ask(api, path)).status_code == 409
    for release, days in (("2030a", b"no zone"), ("2029z", INSTALLED.table["UTC"]), ("2030b", INSTALLED.table["UTC"])):
        await api.insert("ledger.time_zones", release=release, name=zone, data=days)
    for each in (path, f"{path}?at={LATER}", f"{path}/campaigns/c", f"{path}/{SERIES}"):
        assert (await ask(api, each)).status_code == 200, each
    page = await api.get("/v1/business-centers/lost-zone/ad-accounts")
    assert [row["ad_account_id"] for row in page["ad_accounts"]] == ["lost-zone"]
