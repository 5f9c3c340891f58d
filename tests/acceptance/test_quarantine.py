"""Quarantine as people work with it, and CloudEvents: through the front door, on a running system."""

import json
from typing import Any
from uuid import uuid4

from tests.acceptance.front_door import FrontDoor, until
from tests.model.forms import rfc3339
from tests.model.shards import shard_of
from tests.servers import RunningSystem


def spend_of(door: FrontDoor, center: str, **changes: Any) -> dict[str, Any]:
    return {
        "type": "spend",
        "event_id": str(uuid4()),
        "business_center_id": center,
        "ad_account_id": f"{center}-account",
        "campaign_id": "spring",
        "amount": "8",
        "currency": "USD",
        "occurred_at": rfc3339(door.now_us()),
        **changes,
    }


async def open_account(door: FrontDoor, center: str) -> None:
    account = {"billing": "prepay", "buying_type": "auction", "time_zone": "UTC"}
    await door.accepted(center, "open_ad_account", ad_account_id=f"{center}-account", **account)
    await door.accepted(center, "deposit_cash", ad_account_id=f"{center}-account", amount="1000")


async def billed(door: FrontDoor, center: str, amount: str) -> None:
    """Return once the account was billed this amount."""

    async def ask() -> bool | None:
        account = await door.get(f"ad-accounts/{center}-account")
        return True if account["spend"]["billed"] == amount else None

    await until(f"{center} billed {amount}", ask)


async def test_each_quarantined_event_is_charged_once_by_any_number_of_replays_after_the_fix(
    system: RunningSystem,
) -> None:
    center = "later-opened"
    async with FrontDoor(system) as door, system.client() as client:
        await door.accepted(center, "open_business_center", currency="USD", time_zone="UTC")
        events = [spend_of(door, center) for _ in range(5)]
        places = [await door.publish(event, number % door.shards) for number, event in enumerate(events)]
        await door.fence()
        await door.fence(shard_of(center, door.shards))
        found = await door.quarantine()
        assert {found[place]["reason"] for place in places} == {"unknown_ad_account"}
        await open_account(door, center)
        ids = [found[place]["id"] for place in places]
        # The producer sent one of them again before the replay.
        await door.publish(events[0])
        await billed(door, center, "8.000000")
        for left in (
            {"replayed": len(ids)},
            {"replayed": 0, "waiting": len(ids)},
            {"replayed": 0, "waiting": len(ids)},
        ):
            answer = await client.post("/v1/quarantine/replay", json={"ids": ids})
            assert (answer.status_code, answer.json()) == (202, left)
            await door.fence()
        await billed(door, center, "40.000000")
        assert [len(await door.entries(event["event_id"])) for event in events] == [1] * len(events)
        replayed = await door.quarantine()
        assert all(replayed[place]["replayed_at"] for place in places)


async def test_cloud_events_in_both_modes_are_charged_like_plain_events(system: RunningSystem) -> None:
    center = "in-the-clouds"
    async with FrontDoor(system) as door:
        await door.accepted(center, "open_business_center", currency="USD", time_zone="UTC")
        await open_account(door, center)
        plain = spend_of(door, center)
        structured = {"specversion": "1.0", "source": "/ads", "type": "any", "id": plain["event_id"], "data": plain}
        await door.publish(plain)
        await door.publish_raw(json.dumps(structured).encode(), center.encode(), shard_of(center, door.shards))
        bare = {
            name: value for name, value in spend_of(door, center).items() if name not in ("event_id", "occurred_at")
        }
        event_id, time = str(uuid4()), rfc3339(door.now_us())
        attributes = {"specversion": "1.0", "source": "/ads", "type": "any", "id": event_id, "time": time}
        headers = [(f"ce_{name}", value.encode()) for name, value in attributes.items()]
        await door.publish_raw(json.dumps(bare).encode(), center.encode(), shard_of(center, door.shards), headers)
        await door.fence(shard_of(center, door.shards))
        assert len(await door.entries(plain["event_id"])) == 1
        assert len(await door.entries(event_id)) == 1
        await billed(door, center, "16.000000")
