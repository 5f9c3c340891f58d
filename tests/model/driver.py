"""Driver of a running system and of the model: it gives both the same work, and compares what both show outside."""

from collections import defaultdict
from typing import Any

from tests.acceptance.front_door import FrontDoor, Place, until
from tests.model.forms import instant, micros
from tests.model.model import Model
from tests.model.shards import shard_of
from tests.model.workload import Work

Record = dict[str, Any]
POCKETS = ("cash", "voucher", "ad_credit", "credit")


class Driver:
    """The running system and the model. The model takes the ledger time of each command from the system's outcome."""

    def __init__(self, door: FrontDoor) -> None:
        self.door = door
        self.model = Model(door.now_us(), shards=door.shards)
        self.fates: dict[Place, str] = {}
        self.charged: set[str] = set()
        self._undecided: set[int] = set()

    async def do(self, work: Work) -> None:
        """Send a command after everything before it is decided, or publish an event."""
        if work.kind == "event":
            await self._publish(work.message)
        else:
            await self._command(work.message)

    async def _publish(self, event: Record) -> None:
        self._expect(event, await self.door.publish(event))

    async def publish_all(self, events: list[Record]) -> None:
        """Publish events without waiting for each. They are decided in this order nevertheless."""
        sent = [await self.door.publish_soon(event) for event in events]
        for event, place in zip(events, sent, strict=True):
            self._expect(event, await place)

    def _expect(self, event: Record, place: Place) -> None:
        self._undecided.add(place.partition)
        fate = self.model.event(event, max(self.model.now, self.door.now_us()))
        if fate == "charged":
            self.charged.add(event["event_id"].lower())
        self.fates[place] = fate

    async def _command(self, command: Record) -> None:
        shard = shard_of(command["business_center_id"], self.door.shards)
        if shard in self._undecided:
            await self.door.fence(shard)
            self._undecided.discard(shard)
        await self.command(command)

    async def command(self, command: Record) -> None:
        """Send a command to a Business Center that has no undecided messages."""
        outcome = await self.door.command(command)
        decided_at = max(self.model.now, instant(outcome["recorded_at"]))
        expected = self.model.command(command, decided_at)
        assert (outcome["status"], outcome["code"]) == expected, f"{command}: {outcome['message']}"

    async def compare(self, centers: list[str], accounts: list[str]) -> None:
        """Compare the system with the model. Raise AssertionError with all differences."""
        self.model.advance(max(self.model.now, self.door.now_us()))
        await self.door.fence()
        self._undecided.clear()
        differences = await self._quarantine()
        for center in centers:
            differences += await self._center(center)
        for account in accounts:
            differences += await self._account(account)
        assert not differences, "\n".join(differences)

    async def _quarantine(self) -> list[str]:
        expected = {
            place: fate.removeprefix("quarantined:")
            for place, fate in self.fates.items()
            if fate.startswith("quarantined:")
        }
        found = {place: entry["reason"] for place, entry in (await self.door.quarantine()).items()}
        return different(expected, found, "quarantine")

    async def _center(self, center: str) -> list[str]:
        found = await self.door.get(f"business-centers/{center}")
        differences = different(self.model.business_center(center), found, center)
        ledger = await self.door.ledger(center)
        differences += self._ledger(center, ledger)
        sums = sums_of_pockets(ledger)
        line = {"credit_line": found["balance"]["credit_line"]["available"]}
        return differences + _sums_differ(sums[center, None], {**found["balance"], **line}, center)

    def _ledger(self, center: str, ledger: list[Record]) -> list[str]:
        """Compare the entries of spends, reversals, pauses and expiries, by source and in order."""
        found = _by_source([entry for entry in ledger if is_predicted(entry)])
        expected = _by_source([each for each in self.model.entries if each["business_center_id"] == center])
        return different(expected, found, f"ledger of {center}")

    async def _account(self, account: str) -> list[str]:
        answer = await self.door.ask(f"ad-accounts/{account}")
        try:
            expected = self.model.ad_account(account)
        except KeyError:
            return [] if answer.status_code == 404 else [f"{account}: {answer.status_code} instead of 404"]
        differences = different(expected, answer.json(), account)
        ledger = await self.door.ledger(expected["business_center_id"])
        sums = sums_of_pockets(ledger)[expected["business_center_id"], account]
        differences += _sums_differ(sums, expected["balance"], account)
        differences += await self._signals(account, None, ledger)
        for campaign in ("spring", "summer", "autumn"):
            differences += await self._campaign(account, campaign, ledger)
        return differences

    async def _campaign(self, account: str, campaign: str, ledger: list[Record]) -> list[str]:
        path = f"ad-accounts/{account}/campaigns/{campaign}"
        answer = await self.door.ask(path)
        try:
            expected = self.model.campaign(account, campaign)
        except KeyError:
            return [] if answer.status_code == 404 else [f"{path}: {answer.status_code} instead of 404"]
        return different(expected, answer.json(), path) + await self._signals(account, campaign, ledger)

    async def _signals(self, account: str, campaign: str | None, ledger: list[Record]) -> list[str]:
        key = f"campaign/{account}/{campaign}" if campaign else f"ad_account/{account}"
        written = [
            entry["position"]
            for entry in ledger
            if entry["kind"] in ("pause", "resume")
            and (entry["ad_account_id"], entry["campaign_id"]) == (account, campaign)
        ]

        async def ask() -> list[Record] | None:
            heard = self.door.signals[key]
            return heard if [each["position"] for each in heard] == written else None

        found = await until(f"the signals of {key} at {written}", ask, seconds=10)
        expected = [
            signal
            for signal in self.model.signals
            if (signal["ad_account_id"], signal["campaign_id"]) == (account, campaign)
        ]
        return different([_told(each) for each in expected], [_told(each) for each in found], f"signals of {key}")


def _told(signal: Record) -> Record:
    """Return the part of a signal that can be predicted. For a command that excludes the time."""
    names = ("entity", "business_center_id", "ad_account_id", "campaign_id", "change", "cause", "delivering", "causes")
    return {name: signal[name] for name in (*names, "source_event_id")}


def is_predicted(entry: Record) -> bool:
    """Return whether the model predicts entries of this kind."""
    kind: str = entry["kind"]
    return kind.endswith("_debit") or kind in (
        "business_center_draw", "overdelivery", "reversal", "forfeit", "expiry", "pause", "resume"
    )  # fmt: skip


def _by_source(entries: list[Record]) -> dict[str, list[Record]]:
    """Return what each source caused, in order. What timers caused is sorted, because their order is not visible."""
    sources: defaultdict[str, list[Record]] = defaultdict(list)
    for entry in entries:
        sources[entry["source_event_id"] or "timers"].append(_essence(entry))
    sources["timers"].sort(key=str)
    return dict(sources)


def _essence(entry: Record) -> Record:
    names = ("kind", "holder", "pocket", "grant_id", "ad_account_id", "campaign_id", "cause", "causes", "period")
    amount = entry.get("amount")
    return {
        **{name: entry.get(name) for name in names},
        "holder": entry.get("holder") if entry.get("pocket") else None,
        "amount": signed_micros(amount) if isinstance(amount, str) else amount,
    }


def signed_micros(amount: str) -> int:
    """Return an amount of an answer in micros."""
    return -micros(amount[1:]) if amount.startswith("-") else micros(amount)


def sums_of_pockets(ledger: list[Record]) -> defaultdict[tuple[str, str | None], defaultdict[str, int]]:
    """Return the sum of the amounts of each pocket, by Business Center and, for own pockets, by ad account."""
    sums: defaultdict[tuple[str, str | None], defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    for entry in ledger:
        if entry["pocket"] is not None:
            account = entry["ad_account_id"] if entry["holder"] == "ad_account" else None
            sums[entry["business_center_id"], account][entry["pocket"]] += signed_micros(entry["amount"])
    return sums


def _sums_differ(sums: dict[str, int], balance: Record, what: str) -> list[str]:
    shown = {
        pocket: signed_micros(amount)
        for pocket, amount in balance.items()
        if pocket in (*POCKETS, "credit_line") and isinstance(amount, str)
    }
    return different(shown, {pocket: sums.get(pocket, 0) for pocket in shown}, f"sums of {what}")


def different(expected: Any, found: Any, path: str) -> list[str]:
    """Return where the found value lacks or contradicts the expected one. Unexpected fields are ignored."""
    if isinstance(expected, dict) and isinstance(found, dict):
        unexpected = [key for key in found if key not in expected and not isinstance(key, str)]
        differences = [f"{path}: unexpected {key}: {found[key]}" for key in unexpected]
        for key, value in expected.items():
            differences += different(value, found.get(key), f"{path}.{key}")
        return differences
    return [] if expected == found else [f"{path}: expected {expected}, found {found}"]
