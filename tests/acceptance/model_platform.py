"""The second model as the platform of the scenarios."""

from tests.acceptance.platform import Record
from tests.model import Model
from tests.model.forms import instant, money

START_US = instant("2027-03-31T14:00:00Z")
MILLISECOND_US = 1_000


class ModelPlatform:
    """The second model. Each command and event takes a millisecond."""

    def __init__(self) -> None:
        self._model = Model(START_US)

    def _tick(self) -> int:
        return self._model.now + MILLISECOND_US

    async def reach(self, moment_us: int) -> None:
        self._model.advance(max(self._model.now, moment_us))

    async def now_us(self) -> int:
        return self._model.now

    async def command(self, command: Record) -> tuple[str, str | None]:
        return self._model.command(command, self._tick())

    async def publish(self, event: Record) -> str:
        fate = self._model.event(event, self._tick())
        return fate if fate.startswith("quarantined") else "recorded"

    async def business_center(self, business_center_id: str) -> Record:
        return self._model.business_center(business_center_id)

    async def ad_account(self, ad_account_id: str) -> Record:
        return self._model.ad_account(ad_account_id)

    async def campaign(self, ad_account_id: str, campaign_id: str) -> Record:
        return self._model.campaign(ad_account_id, campaign_id)

    async def entries(self, source_event_id: str) -> list[Record]:
        return [_as_answered(entry) for entry in self._model.entries_of(source_event_id)]

    async def ledger(self, business_center_id: str) -> list[Record]:
        ledger = [entry for entry in self._model.entries if entry["business_center_id"] == business_center_id]
        return [_as_answered(entry) for entry in ledger]

    async def signals(self, ad_account_id: str, campaign_id: str | None) -> list[Record]:
        wanted = (ad_account_id, campaign_id)
        return [each for each in self._model.signals if (each["ad_account_id"], each["campaign_id"]) == wanted]

    async def follow_cash_spend(self, ad_account_id: str, currency: str) -> None:
        pass

    async def cash_spend(self, ad_account_id: str) -> str:
        return money(self._model.cash_spend(ad_account_id))


def _as_answered(entry: Record) -> Record:
    return {**entry, "amount": money(entry["amount"])} if "amount" in entry else entry
