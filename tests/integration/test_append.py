"""The notifications that an appended batch sends to the followers of the ledger."""

import asyncio
import uuid
from typing import Any

import asyncpg

from shared.ledger.channels import DELIVERY_CHANNEL, LEDGER_CHANNEL
from tests.integration.api import command
from tests.integration.audit_ledger import SHARDS, ledger_writer
from tests.model.forms import rfc3339
from tests.model.shards import shard_of
from tests.model.workload import Work

CENTER = "bc"


def work(type_: str, **fields: Any) -> Work:
    """Return a finance command of the Business Center, as work for the writer."""
    return Work("command", command(type_, CENTER, **fields))


async def test_every_batch_wakes_followers_and_a_delivery_change_also_the_delivery_followers(database_url: str) -> None:
    opened = {"billing": "prepay", "buying_type": "auction", "time_zone": "UTC"}
    deposit = {"ad_account_id": "acct", "amount": "1"}
    listener, told = await asyncpg.connect(database_url), asyncio.Queue[tuple[str, str]]()
    try:
        for channel in (LEDGER_CHANNEL, DELIVERY_CHANNEL):
            await listener.add_listener(channel, lambda *notification: told.put_nowait(notification[2:]))
        async with ledger_writer(database_url) as writer:
            spend = {
                "business_center_id": CENTER,
                "type": "spend",
                "event_id": str(uuid.uuid4()),
                "ad_account_id": "acct",
                "campaign_id": "campaign",
                "amount": "2",
                "currency": "USD",
                "occurred_at": rfc3339(writer.now),
            }
            for works in (
                [work("open_business_center", currency="USD", time_zone="UTC")],
                [work("open_ad_account", ad_account_id="acct", **opened), work("deposit_cash", **deposit)],
                [work("deposit_cash", **deposit)],
                [Work("event", spend)],
            ):
                await writer.write(works)
        async with asyncio.timeout(10):
            channels = [await told.get() for _ in range(6)]
    finally:
        await listener.close()
    assert told.empty()
    shard = str(shard_of(CENTER, SHARDS))
    ledger, delivery = (LEDGER_CHANNEL, shard), (DELIVERY_CHANNEL, shard)
    assert channels == [ledger, ledger, delivery, ledger, ledger, delivery]  # An account without funds is paused.
