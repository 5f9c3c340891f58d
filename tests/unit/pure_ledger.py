"""The rules without a database: it does in memory what the writer does, for tests of the rules alone."""

import json
from collections.abc import Sequence
from typing import Any

from services.allocation.memory import snapshot_pieces
from services.allocation.records.record_decoding import decode_command, decode_event
from shared.contracts.commands import SentCommand, meaning_hash, sent_command
from shared.contracts.signatures import CommandKeys, CommandSigner, new_command_key
from shared.contracts.zones import installed_zones
from shared.ledger.encoding import encode_entries
from shared.ledger.lookup import CampaignKey, RestingRow, campaigns_named, grants_of, resting_row
from shared.rules.calendar import Zones
from shared.rules.command_types import GrantAdCredit, GrantVoucher
from shared.rules.entries import Entry
from shared.rules.events import EVENT_ID, REVERSES, Event
from shared.rules.grants import GrantKey, RecordedGrant
from shared.rules.policy import STANDARD, Policy
from shared.rules.resting import Recorded
from shared.rules.reversals import ChargedSpend, Part, take_back
from shared.rules.shard import Shard
from shared.rules.ways import TOPIC

SHARD = 3
_SECRET, _PUBLIC = new_command_key()
SIGNER, KEYS = CommandSigner(_SECRET), CommandKeys(_PUBLIC)


def dump_pieces(rules: Shard) -> list[str]:
    """Return a snapshot as lines of JSON."""
    return [json.dumps(piece) for piece in snapshot_pieces.dump(rules)]


def load_pieces(rules: Shard, pieces: list[str]) -> None:
    """Fill an empty shard from a snapshot in lines of JSON."""
    snapshot_pieces.load(rules, map(json.loads, pieces))


class PureLedger:
    """One shard that takes messages and gives entries. It keeps in memory what the database would keep."""

    def __init__(
        self,
        policy: Policy = STANDARD,
        deduplication_days: int = 7,
        zones: Zones | None = None,
        most_campaigns: int | None = None,
    ) -> None:
        self.policy = policy
        self.most_campaigns = most_campaigns
        self.resting: list[RestingRow] = []
        self._just_rested: list[RestingRow] = []
        self.zones = zones or installed_zones()
        self._days = deduplication_days
        self.rules = Shard(policy, deduplication_days, self.zones)
        self.entries: list[Entry] = []
        self.recorded: list[int] = []
        self._events: dict[bytes, tuple[Event, int]] = {}
        self._outcomes: dict[bytes, tuple[str, tuple[str, str | None]]] = {}

    def batch(self, messages: Sequence[tuple[str, bytes]], now: int) -> list[Any]:
        """Decide pairs of ("command", "signed" or "event") and bytes in one batch. Return the outcome of each.

        "signed" is a command that came by the API. Timers that are due may take batches of their own before.
        """
        decoded = [self._decode(kind, value) for kind, value in messages]
        events = [item for item in decoded if isinstance(item, tuple)]
        known = {id: self._events[id][0] for event in events if (id := event[EVENT_ID]) in self._events}
        reversed_ids = [event[REVERSES] for event in events if event[REVERSES] is not None]
        spends = {id: spend for id in reversed_ids if (spend := self._spend(id)) is not None}
        commands = [item.command for item in decoded if isinstance(item, SentCommand)]
        named = self.rules.forgotten(grants_of(commands, spends.values()))
        while True:
            resting = self._rest_of(campaigns_named(self.rules, commands, events))
            self.rules.begin(now, self.policy, known, spends, self._grants(named), self.zones, resting)
            if not self.rules.has_due():
                break
            self.append()
        fates = [self._decide(item) for item in decoded]
        self.append()
        return fates

    def append(self) -> None:
        """Keep the entries of the present batch."""
        self.entries += self.rules.entries
        self.resting += self._just_rested
        self.rules.campaigns.most = self.most_campaigns
        self._just_rested = [resting_row(campaign, len(self.entries)) for campaign in self.rules.let_rest()]
        self.recorded += [self.rules.now] * len(self.rules.entries)

    def reload(self, deduplication_days: int | None = None) -> None:
        """Crash, and start again from a snapshot, perhaps with another window (days)."""
        self._days = deduplication_days or self._days
        before, self.rules = self.rules, Shard(self.policy, self._days, self.zones)
        self.rules.tables |= before.tables
        load_pieces(self.rules, dump_pieces(before))
        self.resting += self._just_rested
        self._just_rested = []

    def encoded(self) -> list[bytes]:
        """Return the canonical bytes of all entries."""
        return [
            encode_entries([entry], SHARD, position, recorded)[0]
            for position, (entry, recorded) in enumerate(zip(self.entries, self.recorded, strict=True), 1)
        ]

    def _decode(self, kind: str, value: bytes) -> Any:
        if kind == "event":
            return decode_event(value, ())
        return decode_command(value, [SIGNER.header(value)] if kind == "signed" else (), KEYS)

    def _decide(self, item: Any) -> Any:
        if isinstance(item, SentCommand):
            return self._decide_command(item)
        if not isinstance(item, tuple):
            return f"quarantined:{item.reason}"
        before = len(self.rules.entries)
        outcome, _ = self.rules.event(item)
        if outcome == "charged":
            self._events[item[0]] = (item, self.rules.position + before + 1)
        return outcome if outcome in ("charged", "duplicate") else f"quarantined:{outcome}"

    def _decide_command(self, command: SentCommand) -> tuple[str, str | None]:
        meaning = meaning_hash(command.content)
        if command.id in self._outcomes:
            first, outcome = self._outcomes[command.id]
            return outcome if first == meaning else ("rejected", "conflict")
        refused = self.rules.command(command.command, command.id, command.content, command.via)
        outcome = ("accepted", None) if refused is None else ("rejected", refused.code)
        self._outcomes[command.id] = (meaning, outcome)
        return outcome

    def _rest_of(self, keys: set[CampaignKey]) -> Recorded:
        """Return the campaigns at rest as the database would, without those of the batch before."""
        found: dict[str, dict[str, Any]] = {}
        for account, campaign in keys:
            found.setdefault(account, {}).update({campaign: None} if campaign is not None else {})
        for account, campaign, _, state in self.resting:
            if (account, campaign) in keys or (account, None) in keys:
                found[account][campaign] = json.loads(json.dumps(state))
        return found

    def _grants(self, keys: list[GrantKey]) -> dict[GrantKey, RecordedGrant]:
        """Return the grants as the database would, without those of the batch before."""
        return grants_in(self.entries[: self.rules.position], keys)

    def _spend(self, event_id: bytes) -> ChargedSpend | None:
        """Return the spend as the database would."""
        if event_id not in self._events or self._events[event_id][0][REVERSES] is not None:
            return None
        position = self._events[event_id][1]
        if position > len(self.entries):
            return None
        return spend_of(self.entries, event_id, position - 1)


def grants_in(entries: Sequence[Entry], keys: list[GrantKey]) -> dict[GrantKey, RecordedGrant]:
    """Return the grants that follow from entries alone."""
    found: dict[GrantKey, RecordedGrant] = {}
    for position, (line, *_) in enumerate(entries if keys else (), 1):
        key = (line.business_center_id, line.pocket or "", line.grant_id or "")
        if key not in keys or line.kind not in ("grant", "allocation_in"):
            continue
        if line.kind == "grant":
            command = sent_command(json.loads(line.details or "{}")["command"], TOPIC).command
            assert isinstance(command, GrantVoucher | GrantAdCredit)
            tied_to = command.campaign_ids if isinstance(command, GrantVoucher) else None
            campaigns = None if tied_to is None else frozenset(tied_to)
            found[key] = RecordedGrant(position, command.expires_at, campaigns, line.ad_account_id)
        else:
            found[key].allocated.append((position, line.ad_account_id or ""))
    return found


def spend_of(entries: Sequence[Entry], event_id: bytes, start: int) -> ChargedSpend:
    """Return the spend whose first entry has this index, with what of it is not yet reversed."""
    line, _, occurred_at, _, _, day, period = entries[start]
    assert line.ad_account_id is not None
    assert line.campaign_id is not None
    assert day is not None
    assert period is not None
    parts = []
    for each, amount, _, source, _, _, _ in entries[start:]:
        if source != event_id or amount is None:
            break
        parts.append(Part(each.holder, each.pocket, each.grant_id, each.cause, abs(amount)))
    ids = (line.business_center_id, line.ad_account_id, line.campaign_id)
    spend = ChargedSpend(*ids, occurred_at, start + 1, day, period, parts)
    take_back(spend, sum(abs(amount or 0) for line, amount, *_ in entries if line.reverses == event_id))
    return spend
