"""The whole system on Apache Kafka and PostgreSQL as in production: idempotent producers, compaction, crashes."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from services.auditor.cli import verify
from shared.runtime.kafka import DELIVERY_SIGNALS, SPEND_EVENTS, create_producer
from tests.servers import RunningSystem, running_system

# The embedded broker supports neither idempotent producers nor the configuration of topics.
pytestmark = pytest.mark.containers

CENTER = "on-containers"


@pytest.fixture(scope="module")
async def production() -> AsyncIterator[RunningSystem]:
    async with running_system() as system:
        yield system


@pytest.fixture(scope="module")
async def api(production: RunningSystem) -> AsyncIterator[httpx.AsyncClient]:
    async with production.client() as client:
        for fields in (
            {"type": "open_business_center", "currency": "USD", "time_zone": "UTC"},
            {"type": "deposit_cash", "amount": "10"},
            {"type": "enable_automatic_allocation"},
            {"type": "open_ad_account", "ad_account_id": "acct-1", "billing": "monthly_invoicing",
             "buying_type": "auction", "time_zone": "UTC"},
        ):  # fmt: skip
            command = {
                "command_id": str(uuid.uuid4()),
                "business_center_id": CENTER,
                "issued_at": datetime.now(UTC).isoformat(),
                "actor": {"id": "ann", "role": "admin"},
                **fields,
            }
            answer = await client.post("/v1/commands", json=command)
            assert answer.status_code == 200, answer.text
        yield client


def spend(amount: str) -> dict[str, str]:
    return {
        "type": "spend",
        "event_id": str(uuid.uuid4()),
        "business_center_id": CENTER,
        "ad_account_id": "acct-1",
        "campaign_id": "brand",
        "amount": amount,
        "currency": "USD",
        "occurred_at": datetime.now(UTC).isoformat(),
    }


async def publish(system: RunningSystem, events: list[dict[str, str]], partition: int | None = None) -> None:
    producer = await create_producer(system.settings)
    try:
        for event in events:
            value = json.dumps(event).encode()
            await producer.send(SPEND_EVENTS, value, key=CENTER.encode(), partition=partition)
        await producer.flush()
    finally:
        await producer.stop()


async def wait_for_spend(api: httpx.AsyncClient, gross: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            center: dict[str, Any] = (await api.get(f"/v1/business-centers/{CENTER}")).json()
            if center["spend"]["gross"] == gross:
                return center
            await asyncio.sleep(0.1)


async def test_spend_is_charged_once_on_any_partition_and_through_any_crash(
    production: RunningSystem, api: httpx.AsyncClient
) -> None:
    events = [spend("0.01") for _ in range(300)]
    await publish(production, events[:100])
    await wait_for_spend(api, "1.000000")
    await production.kill_service("allocation")
    await publish(production, events[100:200])
    for partition in range(production.settings.shards):
        await publish(production, events[50:], partition)
    await production.restart_service("allocation")
    center = await wait_for_spend(api, "3.000000")
    assert center["balance"]["cash"] == "7.000000"
    assert await verify(production.settings) == 0


async def test_a_pause_reaches_the_compacted_topic(production: RunningSystem, api: httpx.AsyncClient) -> None:
    await publish(production, [spend("20")])
    consumer = AIOKafkaConsumer(
        DELIVERY_SIGNALS, bootstrap_servers=production.bootstrap_servers, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        async with asyncio.timeout(60):
            async for record in consumer:
                signal = json.loads(record.value)
                if signal["change"] == "paused" and signal["ad_account_id"] == "acct-1":
                    break
    finally:
        await consumer.stop()
    assert record.key == b"ad_account/acct-1"
    assert signal["causes"] == ["business_center_balance"]


async def test_signals_are_compacted(production: RunningSystem, api: httpx.AsyncClient) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=production.bootstrap_servers)
    await admin.start()
    try:
        asked = ConfigResource(ConfigResourceType.TOPIC, DELIVERY_SIGNALS, {"cleanup.policy": None})
        (response,) = await admin.describe_configs([asked])
    finally:
        await admin.close()
    ((*_, values),) = response.resources
    assert [value[1] for value in values if value[0] == "cleanup.policy"] == ["compact"]
