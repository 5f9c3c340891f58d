"""The model: it predicts what commands and events cause."""

import json
from collections import defaultdict
from typing import Any, NamedTuple

from tests.model import views
from tests.model.commands import Desk, Refused
from tests.model.days import next_turnover
from tests.model.forms import instant, is_well_formed, micros, rfc3339
from tests.model.pauses import settle
from tests.model.shards import shard_of
from tests.model.spending import charge, is_unusual, misfit, reverse
from tests.model.state import AdAccount, BusinessCenter, Grant, Spend

DAY_US = 86_400 * 1_000_000
NEVER = 10**20


class Outcome(NamedTuple):
    """The outcome of a command. `code` is None if it was accepted."""

    status: str
    code: str | None


class Model:
    """Every balance, budget, pause, outcome, quarantine reason and signal, predicted.

    Times are microseconds since the Unix epoch and must not go back. `signals` holds what `delivery.signals` must
    carry, and `entries` holds the ledger's entries of spends, reversals, pauses and expiries. Both are in order and
    without positions. Amounts of entries are micros.
    """

    def __init__(self, now_us: int, *, shards: int = 4, deduplication_days: int = 7) -> None:
        self.now = now_us
        self.centers: dict[str, BusinessCenter] = {}
        self.signals: list[dict[str, Any]] = []
        self.entries: list[dict[str, Any]] = []
        self._desk = Desk(self.centers)
        self._shards = shards
        self._window = deduplication_days * DAY_US
        self._outcomes: dict[str, tuple[str, Outcome]] = {}
        self._contents: defaultdict[int, dict[str, tuple[object, ...]]] = defaultdict(dict)
        self._spends: defaultdict[int, dict[str, Spend]] = defaultdict(dict)

    def command(self, command: dict[str, Any], now_us: int) -> Outcome:
        """Decide a well-formed command. A repeated id gets the first outcome (scenario 26)."""
        self.advance(now_us)
        command_id, content = command["command_id"].lower(), _command_content(command)
        if command_id in self._outcomes:
            first, outcome = self._outcomes[command_id]
            return outcome if first == content else Outcome("rejected", "conflict")
        outcome = self._decide(command, now_us)
        self._outcomes[command_id] = content, outcome
        return outcome

    def _decide(self, command: dict[str, Any], now_us: int) -> Outcome:
        try:
            self._desk.apply(command, now_us)
        except Refused as refused:
            return Outcome("rejected", str(refused))
        center = self.centers[command["business_center_id"]]
        self._settle(center, now_us, now_us, command["command_id"].lower())
        return Outcome("accepted", None)

    def event(self, event: dict[str, Any], now_us: int) -> str:
        """Decide an event. Return `charged`, `duplicate` or `quarantined:<reason>`."""
        self.advance(now_us)
        reason = self._quarantine_reason(event, now_us)
        if reason is not None:
            return f"quarantined:{reason}"
        shard, event_id = self._key(event)
        if event_id in self._contents[shard]:
            return "duplicate"
        if event["type"] == "reversal" and (reason := misfit(self._spends[shard], event)):
            return f"quarantined:{reason}"
        if event["type"] == "spend" and is_unusual(self.centers[event["business_center_id"]], event):
            return "quarantined:amount_unusual"
        self._contents[shard][event_id] = _event_content(event)
        self._charge(event, now_us)
        return "charged"

    def _quarantine_reason(self, event: dict[str, Any], now_us: int) -> str | None:
        """Return why the event is quarantined, or None. The checks are in the order of the contracts page."""
        if not is_well_formed(event):
            return "invalid"
        center = self.centers.get(event["business_center_id"])
        if center is None:
            return "unknown_business_center"
        if event["ad_account_id"] not in center.accounts:
            return "unknown_ad_account"
        if event["currency"] != center.currency:
            return "currency_mismatch"
        age = now_us - instant(event["occurred_at"])
        if age > self._window:
            return "too_old"
        if -age > DAY_US:
            return "too_far_ahead"
        shard, event_id = self._key(event)
        known = self._contents[shard].get(event_id)
        return "content_conflict" if known not in (None, _event_content(event)) else None

    def _key(self, event: dict[str, Any]) -> tuple[int, str]:
        return shard_of(event["business_center_id"], self._shards), event["event_id"].lower()

    def _charge(self, event: dict[str, Any], now_us: int) -> None:
        center = self.centers[event["business_center_id"]]
        shard, event_id = self._key(event)
        if event["type"] == "spend":
            self._spends[shard][event_id], entries = charge(center, event, now_us)
        else:
            entries = reverse(center, self._spends[shard][event["reverses"].lower()], micros(event["amount"]))
        source = {
            "source_event_id": event_id,
            **{name: event[name] for name in ("business_center_id", "ad_account_id", "campaign_id")},
        }
        self.entries += [{**source, **entry} for entry in entries]
        self._settle(center, now_us, instant(event["occurred_at"]), event_id)

    def _settle(self, center: BusinessCenter, now_us: int, occurred_at: int, source: str | None) -> None:
        for change in settle(center, now_us):
            added = change.pop("added")
            signal = {**change, "source_event_id": source, "occurred_at": rfc3339(occurred_at)}
            self.signals.append(signal)
            kept = ("business_center_id", "ad_account_id", "campaign_id", "cause", "causes", "source_event_id")
            self.entries.append({"kind": "pause" if added else "resume", **{key: signal[key] for key in kept}})

    def advance(self, now_us: int) -> None:
        """Let everything happen that is due by now, in order of due time (section 1, ledger time)."""
        assert now_us >= self.now, "time does not go back"
        self.now = now_us
        for center in self.centers.values():
            while (due := _next_due(center)) <= now_us:
                center.time = due
                self._expire(center, due)
                self._settle(center, due, due, None)
            center.time = now_us

    def _expire(self, center: BusinessCenter, due: int) -> None:
        """Forfeit the rest of a grant, in the pool and in every account alike (6.2)."""
        for grant in center.grants:
            if grant.expired or grant.expires_at != due:
                continue
            grant.expired = True
            left = [(holder, amount) for holder, amount in grant.lies.items() if amount]
            self.entries += [_expiry(center, grant, holder, amount) for holder, amount in left]
            grant.lies.clear()

    def business_center(self, business_center_id: str) -> dict[str, Any]:
        """Return the answer of `GET /v1/business-centers/{id}`. Raise KeyError for an unknown id."""
        return views.business_center(self.centers[business_center_id])

    def ad_account(self, ad_account_id: str) -> dict[str, Any]:
        """Return the answer of `GET /v1/ad-accounts/{id}`. Raise KeyError for an unknown id."""
        center, account = self._find(ad_account_id)
        return views.ad_account(center, account, self.now)

    def campaign(self, ad_account_id: str, campaign_id: str) -> dict[str, Any]:
        """Return the answer for a campaign. Raise KeyError if it neither spent nor got a budget."""
        _, account = self._find(ad_account_id)
        return views.campaign(account, account.campaigns[campaign_id], self.now)

    def cash_spend(self, ad_account_id: str) -> int:
        """Return the spend that counts towards incentives, in micros."""
        return self._find(ad_account_id)[1].cash_spend

    def entries_of(self, source_event_id: str) -> list[dict[str, Any]]:
        """Return the entries that one spend, reversal or command caused."""
        return [each for each in self.entries if each["source_event_id"] == source_event_id.lower()]

    def _find(self, ad_account_id: str) -> tuple[BusinessCenter, AdAccount]:
        for center in self.centers.values():
            if ad_account_id in center.accounts:
                return center, center.accounts[ad_account_id]
        raise KeyError(ad_account_id)


def _expiry(center: BusinessCenter, grant: Grant, holder: str | None, amount: int) -> dict[str, Any]:
    return {
        "kind": "expiry",
        "source_event_id": None,
        "business_center_id": center.business_center_id,
        "holder": "business_center" if holder is None else "ad_account",
        "ad_account_id": holder,
        "pocket": grant.pocket,
        "grant_id": grant.grant_id,
        "amount": -amount,
    }


def _next_due(center: BusinessCenter) -> int:
    """Return the next expiry or turn-over of a Business Center after the time that it has reached."""
    expiries = [grant.expires_at for grant in center.grants if grant.expires_at is not None and not grant.expired]
    turnovers = [next_turnover(center.time, account.time_zone) for account in center.accounts.values()]
    return min([NEVER, *expiries, *turnovers])


def _command_content(command: dict[str, Any]) -> str:
    """Return what must be equal in two commands with one id. `issued_at` is not part of it."""
    content = {key: value for key, value in command.items() if key != "issued_at"}
    for name in ("amount", "limit"):
        if name in content:
            content[name] = micros(content[name])
    if "expires_at" in content:
        content["expires_at"] = instant(content["expires_at"])
    content["command_id"] = content["command_id"].lower()
    return json.dumps(content, sort_keys=True)


def _event_content(event: dict[str, Any]) -> tuple[object, ...]:
    """Return what must be equal in two events with one id: micros, instants and ids, in any spelling (6.3)."""
    return (
        event["type"],
        event["business_center_id"],
        event["ad_account_id"],
        event["campaign_id"],
        micros(event["amount"]),
        event["currency"],
        instant(event["occurred_at"]),
        event.get("reverses", "").lower(),
        event.get("reason"),
    )
