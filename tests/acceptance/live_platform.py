"""A running system as the platform of the scenarios."""

from tests.acceptance.clocks import wait_for_moment
from tests.acceptance.front_door import FrontDoor, until
from tests.acceptance.platform import Record


class LivePlatform:
    """The part of a running system that a scenario sees."""

    def __init__(self, door: FrontDoor) -> None:
        self._door = door

    async def reach(self, moment_us: int) -> None:
        await wait_for_moment(self._door.system, moment_us)

    async def now_us(self) -> int:
        return self._door.now_us()

    async def command(self, command: Record) -> tuple[str, str | None]:
        outcome = await self._door.command(command)
        return outcome["status"], outcome["code"]

    async def publish(self, event: Record) -> str:
        place = await self._door.publish(event)
        await self._door.fence(place.partition)
        quarantined = (await self._door.quarantine()).get(place)
        return f"quarantined:{quarantined['reason']}" if quarantined else "recorded"

    async def business_center(self, business_center_id: str) -> Record:
        return await self._door.get(f"business-centers/{business_center_id}")

    async def ad_account(self, ad_account_id: str) -> Record:
        return await self._door.get(f"ad-accounts/{ad_account_id}")

    async def campaign(self, ad_account_id: str, campaign_id: str) -> Record:
        return await self._door.get(f"ad-accounts/{ad_account_id}/campaigns/{campaign_id}")

    async def entries(self, source_event_id: str) -> list[Record]:
        return await self._door.entries(source_event_id)

    async def ledger(self, business_center_id: str) -> list[Record]:
        return await self._door.ledger(business_center_id)

    async def signals(self, ad_account_id: str, campaign_id: str | None) -> list[Record]:
        """Return the signals of the topic, once it has all that follow from the ledger."""
        business_center_id = (await self._door.get(f"ad-accounts/{ad_account_id}"))["business_center_id"]
        entity = ad_account_id, campaign_id
        written = [
            entry["position"]
            for entry in await self._door.ledger(business_center_id)
            if entry["kind"] in ("pause", "resume") and (entry["ad_account_id"], entry["campaign_id"]) == entity
        ]
        key = f"campaign/{ad_account_id}/{campaign_id}" if campaign_id else f"ad_account/{ad_account_id}"

        async def ask() -> list[Record] | None:
            heard = self._door.signals[key]
            return list(heard) if [each["position"] for each in heard] == written else None

        return await until(f"the signals of {key} at {written}", ask)

    async def follow_cash_spend(self, ad_account_id: str, currency: str) -> None:
        await self._door.register_deal(f"deal-{ad_account_id}", [ad_account_id], currency)

    async def cash_spend(self, ad_account_id: str) -> str:
        return await self._door.cash_spend(f"deal-{ad_account_id}")
