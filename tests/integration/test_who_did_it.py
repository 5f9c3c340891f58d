"""The way by which a command came, in a running system: the API, the topic, or a stranger; and unusual spends."""

import json
from base64 import b64decode
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from aiokafka import TopicPartition

from services.allocation.records.consuming import start_consumer
from shared.contracts.signatures import SIGNATURE_HEADER, CommandSigner
from shared.runtime.kafka import FINANCE_COMMANDS, FINANCE_OUTCOMES
from tests.acceptance.front_door import FrontDoor, until
from tests.model.shards import shard_of
from tests.servers import RunningSystem

Record = dict[str, Any]


@pytest.fixture(scope="module")
async def door(system: RunningSystem) -> AsyncIterator[FrontDoor]:
    async with FrontDoor(system) as door:
        yield door


@pytest.fixture
async def center(door: FrontDoor) -> str:
    """Open a Business Center with an account of the same id."""
    center = f"who-{uuid4().hex[:8]}"
    account = {"billing": "prepay", "buying_type": "auction", "time_zone": "UTC"}
    await door.accepted(center, "open_business_center", currency="USD", time_zone="UTC")
    await door.accepted(center, "open_ad_account", ad_account_id=center, **account)
    await door.accepted(center, "deposit_cash", ad_account_id=center, amount="1000")
    return center


async def found(door: FrontDoor, topic: str, command_id: str, *partitions: int) -> list[Any]:
    """Return all records of a topic that name a command, in these partitions (none: in all), once there are any.

    They are read like the writer reads them, because other tests have published records at which aiokafka's own
    consumer fails.
    """
    numbers = partitions or range(door.shards)
    consumer = await start_consumer(door.system.settings)
    try:
        places = [TopicPartition(topic, number) for number in numbers]
        consumer.assign(places)
        await consumer.seek_to_beginning(*places)
        ends = await consumer.end_offsets(places)
        seen: list[Any] = []
        while any([await consumer.position(place) < ends[place] for place in places]):
            for records in (await consumer.getmany(timeout_ms=100)).values():
                seen += [record for record in records if command_id.encode() in (record.value or b"")]
        return seen
    finally:
        await consumer.stop()


async def outcome_in_the_topic(door: FrontDoor, command_id: str) -> Record:
    """Return the outcome of a command, as it is published."""

    async def ask() -> Record | None:
        records = await found(door, FINANCE_OUTCOMES, command_id)
        return json.loads(records[0].value) if records else None

    return await until(f"the published outcome of {command_id}", ask)


async def publish(door: FrontDoor, value: bytes, headers: list[tuple[str, bytes]], partition: int) -> None:
    await door.publish_raw(value, None, partition, headers, FINANCE_COMMANDS)


async def test_a_command_by_the_api_names_its_way_in_the_answer_the_entry_and_the_outcome(
    door: FrontDoor, center: str
) -> None:
    answer = await door.accepted(center, "deposit_cash", amount="1")
    (entry,) = await door.entries(answer["command_id"])
    published = await outcome_in_the_topic(door, answer["command_id"])
    assert answer["via"] == entry["details"]["via"] == published["via"] == "api"


async def test_a_command_by_the_topic_names_its_way_whatever_actor_or_repetition(door: FrontDoor, center: str) -> None:
    command = door.admin_command(center, "deposit_cash", amount="999999999")
    value, shard = json.dumps(command).encode(), shard_of(center, door.shards)
    await publish(door, value, [], shard)
    await door.fence()
    (entry,) = await until("the deposit", lambda: entries(door, command["command_id"]))
    assert entry["details"]["via"] == "topic"
    # It comes by the API now, but it was decided by the way it came first.
    assert (await door.command(command))["via"] == "topic"
    await publish(door, value, [signer_of(door).header(value)], shard)
    assert await until("the repetition", lambda: outcomes(door, command["command_id"], 2)) == ["topic", "topic"]


def signer_of(door: FrontDoor) -> CommandSigner:
    """Return the signer of this system's API."""
    file = door.system.settings.command_signing_key_file
    assert file is not None
    return CommandSigner(file.read_bytes())


async def outcomes(door: FrontDoor, command_id: str, count: int) -> list[str] | None:
    """Return the way of a command in each of its outcomes in the ledger, once there are this many."""
    database = await asyncpg.connect(door.system.database_url)
    rows = await database.fetch("SELECT via FROM ledger.outcomes WHERE command_id = $1 ORDER BY sequence", command_id)
    await database.close()
    return [row["via"] for row in rows] if len(rows) >= count else None


async def entries(door: FrontDoor, source: str) -> list[Record] | None:
    return await door.entries(source) or None


async def test_a_copy_of_a_signed_record_has_no_effect_in_any_shard(door: FrontDoor, center: str) -> None:
    answer = await door.accepted(center, "deposit_cash", amount="1")
    shard = shard_of(center, door.shards)
    (record,) = await found(door, FINANCE_COMMANDS, answer["command_id"], shard)
    headers = [(name, value) for name, value in record.headers if name == SIGNATURE_HEADER]
    assert len(headers) == 1
    for partition in range(door.shards):
        await publish(door, record.value, headers, partition)
    await door.fence()
    assert len(await door.entries(answer["command_id"])) == 1
    balance = (await door.get(f"business-centers/{center}"))["balance"]
    assert balance["cash"] == "1.000000"


@pytest.mark.parametrize("change", ["signature", "value"])
async def test_a_record_with_a_false_signature_of_the_api_is_quarantined(
    door: FrontDoor, center: str, change: str
) -> None:
    answer = await door.accepted(center, "deposit_cash", amount="1")
    shard = shard_of(center, door.shards)
    (record,) = await found(door, FINANCE_COMMANDS, answer["command_id"], shard)
    (signature,) = [value for name, value in record.headers if name == SIGNATURE_HEADER]
    forged = {**json.loads(record.value), "command_id": str(uuid4()), "amount": "1000000"}
    value = json.dumps(forged).encode() if change == "value" else record.value
    claim = signature if change == "value" else signature[:-4] + b"AAA="
    await publish(door, value, [(SIGNATURE_HEADER, claim)], shard)

    async def quarantined() -> list[Record] | None:
        listed = [each async for each in door.pages("quarantine", reason="invalid")]
        return [each for each in listed if center.encode() in b64decode(each["raw"])] or None

    (row,) = await until("the forged command", quarantined)
    assert row["detail"] == "the signature does not match the command"
    assert not await door.entries(forged["command_id"])


async def test_an_unusual_spend_stays_in_quarantine_until_the_bound_is_raised_and_it_is_replayed(
    door: FrontDoor, center: str
) -> None:
    await door.accepted(center, "set_largest_spend", amount="5")
    assert (await door.get(f"business-centers/{center}"))["largest_spend"] == "5.000000"
    spend = {
        "type": "spend",
        "event_id": str(uuid4()),
        "business_center_id": center,
        "ad_account_id": center,
        "campaign_id": "brand",
        "amount": "5.000001",
        "currency": "USD",
        "occurred_at": door.admin_command(center, "x")["issued_at"],
    }
    place = await door.publish(spend)
    await door.fence()
    row = (await door.quarantine())[place]
    assert (row["reason"], row["detail"]) == ("amount_unusual", "the Business Center's largest spend is 5.000000")
    set_at = await door.accepted(center, "set_largest_spend")
    assert (await door.get(f"business-centers/{center}"))["largest_spend"] is None
    past = await door.get(f"business-centers/{center}", at=row["recorded_at"])
    assert past["largest_spend"] == "5.000000"
    assert set_at["via"] == "api"
    async with door.system.client() as client:
        assert (await client.post("/v1/quarantine/replay", json={"ids": [row["id"]]})).status_code == 202
    (charged,) = await until("the spend", lambda: entries(door, spend["event_id"]))
    assert charged["amount"] == "-5.000001"
