"""Commands through HTTP: each command has one outcome, and later reads see its effect."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.api.commands import publishing
from services.api.service import PRODUCER
from tests.integration.api import Api, allocation, command, running_api, shard_of
from tests.integration.shard_writers import shard_writer
from tests.servers import Postgres


@pytest.fixture(scope="module")
async def api(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    async with running_api(postgres.url, tmp_path_factory.mktemp("api")) as running:
        yield running


async def test_a_command_is_answered_with_its_outcome(api: Api) -> None:
    sent = command("deposit_cash", "bc-1", amount="1.5")
    async with allocation(api):
        response = await api.client.post("/v1/commands", json=sent)
    outcome = response.json()
    assert response.status_code == 200
    assert outcome["command_id"] == sent["command_id"]
    assert (outcome["status"], outcome["code"], outcome["type"]) == ("accepted", None, "deposit_cash")
    assert outcome["shard"] == shard_of("bc-1")


async def test_a_command_sent_again_gets_its_first_outcome_and_is_not_published_again(api: Api) -> None:
    sent = command("deposit_cash", "bc-2", amount="1.5")
    async with allocation(api) as writer:
        first = await api.client.post("/v1/commands", json=sent)
        otherwise_written = {**sent, "amount": "1.500", "command_id": sent["command_id"].upper()}
        again = await api.client.post("/v1/commands", json=otherwise_written)
        assert again.json() == first.json()
        assert sum(content["command_id"] == sent["command_id"] for content in writer.decided) == 1


async def test_the_same_command_id_with_other_content_is_a_conflict(api: Api) -> None:
    sent = command("deposit_cash", "bc-3", amount="1.5")
    async with allocation(api):
        await api.client.post("/v1/commands", json=sent)
        other, first_again = await asyncio.gather(
            api.client.post("/v1/commands", json={**sent, "amount": "2"}),
            api.client.post("/v1/commands", json=sent),
        )
    assert (other.status_code, other.json()["code"]) == (422, "conflict")
    assert (first_again.status_code, first_again.json()["status"]) == (200, "accepted")


async def test_two_simultaneous_commands_with_one_id_each_get_their_own_answer(api: Api) -> None:
    sent = command("deposit_cash", "bc-5", amount="1.5")
    both = [sent, {**sent, "amount": "2"}]
    answering = [asyncio.create_task(api.client.post("/v1/commands", json=each)) for each in both]
    async with allocation(api):
        answers = await asyncio.gather(*answering)
    decided = await api.database.fetchval(
        "SELECT content->>'amount' FROM ledger.outcomes WHERE command_id = $1 AND first", sent["command_id"]
    )
    for each, answer in zip(both, answers, strict=True):
        assert answer.json()["code"] == (None if each["amount"] == decided else "conflict")


async def test_a_repeated_conflict_gets_a_new_answer(api: Api) -> None:
    sent = command("deposit_cash", "bc-6", amount="1.5")
    async with allocation(api):
        await api.client.post("/v1/commands", json=sent)
        one, two = [(await api.client.post("/v1/commands", json={**sent, "amount": "2"})).json() for _ in range(2)]
    assert one["code"] == two["code"] == "conflict"
    assert one["recorded_at"] < two["recorded_at"]


UNREADABLE = ("{}", "[" * 4_000 + "]" * 4_000, '{"command_id": "zz"}', '"sha256"', '{"sha256": []}')


async def decided_unreadably(api: Api, content: str, role: str) -> dict[str, Any]:
    """Insert an outcome with content that no service writes; return a command with its id."""
    sent = command("deposit_cash", "bc-8", amount="1") | {"actor": {"id": "maria", "role": role}}
    sequence = await api.database.fetchval(
        "UPDATE ledger.shards SET outcome_sequence = outcome_sequence + 1 WHERE shard = $1 RETURNING outcome_sequence",
        shard_of("bc-8"),
    )
    await api.database.execute(
        "INSERT INTO ledger.outcomes VALUES ($1, $2, $3, true, 'bc-8', 'deposit_cash', $4, 'accepted', NULL, 'done',"
        " 1, 1, now(), 2, 'test')",
        shard_of("bc-8"),
        sequence,
        sent["command_id"],
        content,
    )
    return sent


@pytest.mark.parametrize("content", UNREADABLE)
async def test_an_unreadable_outcome_matches_no_command_and_is_a_conflict(api: Api, content: str) -> None:
    sent = await decided_unreadably(api, content, "admin")
    async with allocation(api):
        answer = await api.client.post("/v1/commands", json=sent)
    assert (answer.status_code, answer.json()["code"]) == (422, "conflict")


@pytest.mark.parametrize("content", UNREADABLE)
async def test_an_unreadable_outcome_is_a_conflict_also_for_a_command_that_its_role_refuses(
    api: Api, content: str
) -> None:
    answer = await api.client.post("/v1/commands", json=await decided_unreadably(api, content, "finance_analyst"))
    assert (answer.status_code, answer.json()["code"]) == (422, "conflict")


async def test_many_commands_at_once_each_get_their_own_outcome(api: Api) -> None:
    sent = [command("deposit_cash", f"bc-{number % 7}", amount="1") for number in range(100)]
    async with allocation(api):
        responses = await asyncio.gather(*(api.client.post("/v1/commands", json=each) for each in sent))
    assert [response.json()["command_id"] for response in responses] == [each["command_id"] for each in sent]


async def test_the_answer_waits_until_the_read_model_has_caught_up(api: Api) -> None:
    sent = command("deposit_cash", "bc-9", amount="1")
    async with allocation(api, visible_at_once=False) as writer:
        await api.checkpoint("balance", shard_of("bc-9"), 0)
        answering = asyncio.create_task(api.client.post("/v1/commands", json=sent))
        await writer.has_decided(sent["command_id"])
        done, _ = await asyncio.wait({answering}, timeout=0.7)
        assert not done, "answered before the read model had the effect"
        await api.checkpoint("balance", shard_of("bc-9"), 2**40)
        assert (await answering).status_code == 200


async def test_a_command_that_is_not_decided_in_time_is_504(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "DECISION_TIMEOUT_SECONDS", 0.5)
    response = await api.client.post("/v1/commands", json=command("deposit_cash", "bc-1", amount="1"))
    assert (response.status_code, response.json()["code"]) == (504, "timeout")
    assert "command_id" in response.json()["message"]


async def test_a_command_that_timed_out_is_answered_when_asked_again(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = command("deposit_cash", "bc-4", amount="1")
    with monkeypatch.context() as patch:
        patch.setattr(publishing, "DECISION_TIMEOUT_SECONDS", 0.5)
        assert (await api.client.post("/v1/commands", json=sent)).status_code == 504
    async with allocation(api):
        assert (await api.client.post("/v1/commands", json=sent)).status_code == 200


async def readiness(api: Api, status: int) -> None:
    """Wait until the API reports this readiness."""
    while (await api.client.get("/readyz")).status_code != status:  # noqa: ASYNC110 - a server's state
        await asyncio.sleep(0.05)


async def test_commands_are_503_and_the_api_is_not_ready_without_a_broker(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "PUBLISH_TIMEOUT_SECONDS", 1)
    async with running_api(postgres.url, tmp_path) as api, shard_writer(api.settings.database_url) as writer:
        for shard in range(api.settings.shards):
            await writer.report(shard, "writing", seconds_ago=-600)  # It stays new for the whole test.
        await readiness(api, 200)
        await api.broker.stop()
        response = await api.client.post("/v1/commands", json=command("deposit_cash", "bc-1", amount="1"))
        assert (response.status_code, response.json()["code"]) == (503, "unavailable")
        assert response.headers["retry-after"]
        await readiness(api, 503)
        assert (await api.client.get("/healthz")).status_code == 200


@pytest.mark.containers  # The embedded broker forgets its topics when it stops.
async def test_a_command_refused_without_a_broker_is_not_delivered_after_the_broker_returns(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "PUBLISH_TIMEOUT_SECONDS", 1)
    monkeypatch.setitem(PRODUCER, "request_timeout_ms", 1000)
    refused, taken = (command("deposit_cash", "bc-1", amount=amount) for amount in ("1", "2"))
    async with running_api(postgres.url, tmp_path) as api:
        await api.broker.stop()
        assert (await api.client.post("/v1/commands", json=refused)).status_code == 503
        async with asyncio.timeout(20):
            await api.context.producer.flush()  # The producer has dropped what it could not deliver.
        await api.broker.start()
        async with allocation(api) as writer:
            assert (await api.client.post("/v1/commands", json=taken)).status_code == 200
        assert [content["command_id"] for content in writer.decided] == [taken["command_id"]]
