"""A running system: its answer after each command is also its later answer about that time."""

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from shared.runtime.kafka import SPEND_EVENTS, create_producer
from tests.integration.api import command
from tests.servers import RunningSystem

PATIENCE_SECONDS = 30


async def test_live_answers_of_a_run_equal_its_later_answers_about_that_time(system: RunningSystem) -> None:
    center, account = f"bc-{uuid4()}", f"acct-{uuid4()}"
    paths = (f"/v1/business-centers/{center}", f"/v1/ad-accounts/{account}", f"/v1/ad-accounts/{account}/campaigns/c")
    remembered: list[tuple[str, dict[str, Any]]] = []
    async with system.client() as client:

        async def remember() -> None:
            remembered.extend([(path, (await client.get(path)).json()) for path in paths])

        opening = {"billing": "monthly_invoicing", "buying_type": "auction", "time_zone": "Asia/Tokyo"}
        for type_, fields in [
            ("open_business_center", {"currency": "USD", "time_zone": "UTC"}),
            ("open_ad_account", {"ad_account_id": account, **opening}),
            ("set_credit_line", {"limit": "30"}),
            ("deposit_cash", {"amount": "20", "ad_account_id": account}),
            ("set_budget", {"ad_account_id": account, "mode": "daily", "amount": "15"}),
            ("set_campaign_budget", {"ad_account_id": account, "campaign_id": "c", "mode": "lifetime", "amount": "12"}),
            ("enable_automatic_allocation", {}),
            ("deposit_cash", {"amount": "1"}),
        ]:
            answer = await client.post("/v1/commands", json=command(type_, center, **fields))
            assert answer.status_code == 200, answer.text
            await remember()
        for gross in ("10.000000", "20.000000"):
            await spend(system, center, account)
            await until_spent(client, paths[1], gross)
            await remember()

        for path, then in remembered:
            if "as_of" not in then:
                continue  # It did not exist yet.
            asked = await client.get(path, params={"at": then["as_of"]["recorded_at"]})
            assert asked.json() == then, path


async def spend(system: RunningSystem, center: str, account: str) -> None:
    event = (
        f'{{"type": "spend", "event_id": "{uuid4()}", "business_center_id": "{center}", "ad_account_id": "{account}", '
        f'"campaign_id": "c", "amount": "10", "currency": "USD", "occurred_at": "{datetime.now(UTC).isoformat()}"}}'
    )
    producer = await create_producer(system.settings)
    try:
        await producer.send_and_wait(SPEND_EVENTS, event.encode(), key=center.encode())
    finally:
        await producer.stop()


async def until_spent(client: Any, path: str, gross: str) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            if (await client.get(path)).json()["spend"]["gross"] == gross:
                return
            await asyncio.sleep(0.05)
