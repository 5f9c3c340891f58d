"""Refused commands: what a role may never do leaves no trace, and of a long command the ledger keeps only a hash."""

import itertools
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from prometheus_client import REGISTRY

from services.auditor.cli import replay, verify
from shared.rules.vocabulary import COMMAND_TYPES
from shared.runtime.settings import Settings
from tests.acceptance.front_door import FrontDoor, until
from tests.integration.api import Api, allocation, command, running_api
from tests.integration.writing import Writing, writing
from tests.integration.writing import command as given_command
from tests.model.shards import shard_of
from tests.servers import Postgres, RunningSystem

CENTER, ACCOUNT, CREDIT = "refusing", "refusing-1", "credit-1"
MONEY = {"amount": "1"}
# For each type: fields that an administrator might send, and changes that break a rule or name nothing.
FIELDS: dict[str, list[dict[str, Any]]] = {
    "open_business_center": [
        {"currency": "USD", "time_zone": "UTC"},
        {"currency": "USD", "time_zone": "UTC", "finance_roles": False},
        {"currency": "USD", "time_zone": "Mars/Olympus"},
    ],
    "open_ad_account": [
        {"ad_account_id": "new-1", "billing": "prepay", "buying_type": "auction", "time_zone": zone}
        for zone in ("UTC", "Mars/Olympus")
    ],
    "deposit_cash": [MONEY, {"amount": "0"}, {**MONEY, "ad_account_id": ACCOUNT}, {**MONEY, "ad_account_id": "nobody"}],
    "set_credit_line": [{"limit": "5"}, {"limit": "0"}],
    "repay_credit": [MONEY, {"amount": "0.0"}, {"amount": "3"}, {"amount": "3.000001"}],
    "grant_voucher": [
        {**MONEY, "voucher_id": "v"},
        {"amount": "0", "voucher_id": "v"},
        {**MONEY, "voucher_id": "v", "expires_at": "2020-01-01T00:00:00Z"},
        {**MONEY, "voucher_id": "v", "campaign_ids": []},
        {**MONEY, "voucher_id": "v", "campaign_ids": ["c"]},
        {**MONEY, "voucher_id": "v", "campaign_ids": ["c"], "ad_account_id": "nobody"},
        {**MONEY, "voucher_id": "v", "campaign_ids": [f"c-{n}" for n in range(900)], "ad_account_id": ACCOUNT},
        {**MONEY, "voucher_id": "v", "campaign_ids": [f"c-{n:040}" for n in range(990)], "ad_account_id": ACCOUNT},
    ],
    "grant_ad_credit": [
        {**MONEY, "ad_credit_id": CREDIT},
        {**MONEY, "ad_credit_id": "x", "expires_at": "2020-01-01T00:00:00Z"},
    ],
    "allocate_ad_credit": [
        {**MONEY, "ad_credit_id": credit, "ad_account_id": account}
        for credit, account in itertools.product((CREDIT, "none"), (ACCOUNT, "nobody"))
    ],
    "transfer_balance": [
        {"amount": amount, "ad_account_id": account, "direction": "to_ad_account", "pocket": "cash"}
        for amount, account in (("1", ACCOUNT), ("0", ACCOUNT), ("1", "nobody"))
    ],
    "enable_automatic_allocation": [{}],
    "disable_automatic_allocation": [{}],
    "set_budget": [
        {"ad_account_id": ACCOUNT, "mode": "daily", "amount": "5"},
        {"ad_account_id": ACCOUNT, "mode": "daily"},
        {"ad_account_id": ACCOUNT, "mode": "unlimited", "amount": "5"},
        {"ad_account_id": "nobody", "mode": "unlimited"},
    ],
    "reset_budget": [{"ad_account_id": ACCOUNT}, {"ad_account_id": "nobody"}],
    "set_campaign_budget": [
        {"ad_account_id": ACCOUNT, "campaign_id": "c", "mode": "daily", "amount": "5"},
        {"ad_account_id": ACCOUNT, "campaign_id": "c", "mode": "lifetime"},
        {"ad_account_id": "nobody", "campaign_id": "c", "mode": "unlimited"},
    ],
    "set_largest_spend": [MONEY, {"amount": "0"}, {}],
}
# Domain page, section 4.7: what a role may not do in any Business Center.
BUDGETS = {"set_budget", "reset_budget", "set_campaign_budget"}
NEVER = {
    "finance_analyst": set(FIELDS),
    "standard": set(FIELDS) - {"set_campaign_budget"},
    "system": BUDGETS,
}
KEPT = ("business_center_id", "type", "status", "code", "message", "shard")


async def opened(door: FrontDoor) -> None:
    await door.accepted(CENTER, "open_business_center", currency="USD", time_zone="UTC")
    account = {"billing": "monthly_invoicing", "buying_type": "auction", "time_zone": "UTC"}
    await door.accepted(CENTER, "open_ad_account", ad_account_id=ACCOUNT, **account)
    await door.accepted(CENTER, "grant_ad_credit", ad_credit_id=CREDIT, amount="10")
    await door.accepted(CENTER, "set_credit_line", limit="10")
    await door.accepted(
        CENTER, "transfer_balance", ad_account_id=ACCOUNT, direction="to_ad_account", pocket="credit", amount="3"
    )


def commands() -> list[dict[str, Any]]:
    """Return every command that a role may never give, valid or not, to a Business Center that exists or does not."""
    return [
        command(type_, center, **fields, actor={"id": "eve", "role": role})
        for role, types in NEVER.items()
        for type_ in sorted(types)
        for fields in FIELDS[type_]
        for center in (CENTER, "nowhere")
    ]


async def outcomes_by_the_topic(door: FrontDoor, sent: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the outcomes that the ledger gives to these commands under other ids."""
    ids = [str(uuid4()) for _ in sent]
    for command_id, content in zip(ids, sent, strict=True):
        shard = shard_of(content["business_center_id"], door.shards)
        value = json.dumps({**content, "command_id": command_id}).encode()
        await door.publish_raw(value, None, shard, topic="finance.commands")
    database = await asyncpg.connect(door.system.database_url)

    async def outcomes() -> dict[str, Any] | None:
        rows = await database.fetch("SELECT * FROM ledger.outcomes WHERE command_id = ANY($1::uuid[])", ids)
        return {str(row["command_id"]): dict(row) for row in rows} if len(rows) == len(ids) else None

    found = await until("the outcomes", outcomes)
    await database.close()
    return [found[command_id] for command_id in ids]


async def test_a_command_refused_only_for_its_role_gets_the_answer_of_the_ledger_and_is_never_published(
    system: RunningSystem,
) -> None:
    assert sorted(FIELDS) == sorted(COMMAND_TYPES)
    async with FrontDoor(system) as door, system.client() as client:
        await opened(door)
        sent = commands()
        expected = await outcomes_by_the_topic(door, sent)
        database = await asyncpg.connect(system.database_url)
        written = "SELECT sum(outcome_sequence), sum(command_offset) FROM ledger.shards"
        before = await database.fetchrow(written)
        for content, outcome in zip(sent, expected, strict=True):
            answer = await client.post("/v1/commands", json=content)
            told = answer.json()
            assert answer.status_code == 422, content
            assert {name: told[name] for name in KEPT} == {name: outcome[name] for name in KEPT}, content
            assert told["command_id"] == content["command_id"]
            assert set(told) == {*KEPT, "command_id", "position", "recorded_at", "via"}
            assert told["via"] == "api"
        # It comes after everything that would have been published before.
        await door.accepted(CENTER, "deposit_cash", amount="1")
        after = await database.fetchrow(written)
        assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1]
        await database.close()
    assert {outcome["code"] for outcome in expected} == {"invalid", "not_found", "permission_denied"}


@pytest.fixture(scope="module")
async def api(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    async with running_api(postgres.url, tmp_path_factory.mktemp("api")) as running:
        yield running


def counted(**labels: str) -> float:
    return REGISTRY.get_sample_value("drawdown_http_commands_refused_total", labels) or 0.0


async def test_a_command_id_decided_before_keeps_its_first_outcome(api: Api) -> None:
    sent = command("deposit_cash", "bc-7", amount="1")
    refused = {**sent, "actor": {"id": "eve", "role": "standard"}}
    before = counted(role="standard", type="deposit_cash")
    async with allocation(api) as writer:
        first = (await api.client.post("/v1/commands", json=sent)).json()
        conflict = await api.client.post("/v1/commands", json=refused)
        assert (conflict.status_code, conflict.json()["code"]) == (422, "conflict")
        assert (await api.client.post("/v1/commands", json=sent)).json() == first
        assert len(writer.decided) == 1
    assert counted(role="standard", type="deposit_cash") - before == 1


async def test_a_refusal_claims_no_command_id(api: Api) -> None:
    sent = command("deposit_cash", "bc-8", amount="1", actor={"id": "eve", "role": "finance_analyst"})
    assert (await api.client.post("/v1/commands", json=sent)).json()["code"] == "not_found"
    async with allocation(api):
        decided = await api.client.post("/v1/commands", json={**sent, "actor": {"id": "ann", "role": "admin"}})
    assert decided.json()["status"] == "accepted"


# ---- What the ledger keeps ----------------------------------------------------------------------------------------


@pytest.fixture
async def writer(settings: Settings) -> AsyncIterator[Writing]:
    async with writing(settings) as writer:
        yield writer


async def test_a_long_refused_command_is_kept_as_a_hash_and_recognised_again(
    writer: Writing, capsys: pytest.CaptureFixture[str]
) -> None:
    center = await writer.opened()
    long = {"campaign_ids": [f"c-{n}" for n in range(300)], "ad_account_id": center, "amount": "1"}
    refused = given_command(center, "grant_voucher", voucher_id="v", **{**long, "amount": "0"})
    accepted = given_command(center, "grant_voucher", voucher_id="v", **long)
    short = given_command(center, "deposit_cash", amount="0")
    again = {**refused, "campaign_ids": refused["campaign_ids"][::-1], "issued_at": "2020-01-01T00:00:00Z"}
    other = {**refused, "campaign_ids": refused["campaign_ids"][1:]}
    other_of_accepted = {**accepted, "amount": "2"}
    await writer.send(refused, accepted, short, accepted, refused)
    await writer.decided()
    await writer.stop()
    writer.start()  # From here on, only the ledger knows them.
    await writer.send(again, other, accepted, other_of_accepted)
    await writer.decided()
    rows = await writer.database.fetch("SELECT * FROM ledger.outcomes ORDER BY sequence OFFSET 3")
    assert [(row["first"], row["code"]) for row in rows] == [
        *((True, "invalid"), (True, None), (True, "invalid"), (False, None), (False, "invalid")),
        *((False, "invalid"), (False, "conflict"), (False, None), (False, "conflict")),
    ]
    kept = [json.loads(row["content"]) for row in rows]
    assert (kept[1], kept[2]) == (accepted, short)
    assert all(
        set(kept[n]) == {"command_id", "type", "business_center_id", "sha256", "bytes"} for n in (0, *range(3, 9))
    )
    assert sum(len(row["content"]) for row in rows) < 4_000 + len(rows[1]["content"])
    capsys.readouterr()
    assert await verify(writer.settings) == 0
    capsys.readouterr()
    assert await replay(writer.settings, as_json=True) == 0
    checked = json.loads(capsys.readouterr().out)["checked"]
    assert (checked["commands_hashed"], checked["commands_refused"], checked["outcomes_repeated"]) == (1, 1, 6)


@pytest.mark.parametrize("content", ["{}", "[" * 4_000 + "]" * 4_000, '{"command_id": "zz"}'])
async def test_a_command_whose_id_has_an_unreadable_outcome_is_a_conflict(writer: Writing, content: str) -> None:
    center = await writer.opened()
    deposits = [given_command(center, "deposit_cash", amount="1") for _ in range(2)]
    await writer.database.execute(
        "INSERT INTO ledger.outcomes VALUES (0, 1000000, $1, true, $2, 'deposit_cash', $3, 'accepted', NULL, 'done',"
        " 1, 1, now(), 2, 'test')",
        deposits[0]["command_id"],
        center,
        content,
    )
    await writer.send(*deposits)
    await writer.decided()
    rows = await writer.database.fetch(
        "SELECT status, code FROM ledger.outcomes WHERE sequence < 1000000 ORDER BY sequence DESC LIMIT 2"
    )
    assert [tuple(row) for row in rows] == [("accepted", None), ("rejected", "conflict")]
    assert await writer.quarantined() == []
