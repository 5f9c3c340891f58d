"""What a shard remembers between inputs: Business Centers, ad accounts, campaigns, grants, time zones and timers.

Deciding takes a book and changes it. What does not change a book is decided from it alone: it knows no input.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from shared.rules import pauses, setting_budgets
from shared.rules.batch import Batch
from shared.rules.calendar import NO_ZONES, Zone, Zones
from shared.rules.forgetting import EndedGrants
from shared.rules.grants import GrantKey, RecordedGrant, restore
from shared.rules.policy import STANDARD, Policy
from shared.rules.resting import CampaignsInMemory
from shared.rules.state import AdAccount, BusinessCenter, Campaign, Grant, Held
from shared.rules.timers import Timer, Timers


class Book:
    """The memory of one shard.

    `policy` and `zones` are in force, `tables` the releases of time zones that a snapshot may name. `now` is ledger
    time; up to `reached`, which lies behind it while a batch has left some of it to the next, what was due has
    happened. `position` is where the ledger stood before the present batch. `bounded` counts the Business Centers that
    bound their spends: if none does, no spend asks its own, far away in memory.
    """

    def __init__(self, policy: Policy = STANDARD, zones: Zones = NO_ZONES) -> None:
        self.policy = policy
        self.zones = zones
        self.tables = {zones.release: zones}
        self.position = 0
        self.now = self.reached = -(2**62)
        self.business_centers: dict[str, BusinessCenter] = {}
        self.accounts: dict[str, AdAccount] = {}
        self.accounts_elsewhere: frozenset[str] | set[str] = frozenset()
        self.campaigns = CampaignsInMemory()
        self.held = Held()
        self.bounded = 0
        self.timers = Timers()
        self.batch = Batch(0)
        self._zones: dict[str, Zone] = {}
        self._recorded: Mapping[GrantKey, RecordedGrant] = {}
        self._ended = EndedGrants()

    # ---- Campaigns --------------------------------------------------------------------------------------------

    def new_campaign(self, account: AdAccount, id: str) -> Campaign:
        """A campaign comes into being: it was named for the first time."""
        campaign, before = Campaign(account, id, account.named), pauses.pinned(account)
        account.named += 1
        pauses.weigh_pinned(account, before)
        self.campaigns.add(campaign)
        return campaign

    def before_tying(self, account: AdAccount) -> None:
        """From now on the account's campaigns stop and go on with its money, so they have to be there."""
        if self.needs_all_to_tie(account):
            self.campaigns.find_all(account)

    def awoken_by(self, command: Mapping[str, Any]) -> int:
        """How many campaigns a command, by its content, brings back into memory because it ties a voucher to some."""
        if command.get("campaign_ids") is None:
            return 0
        account = self.accounts.get(command.get("ad_account_id") or "")
        return 0 if account is None or not self.needs_all_to_tie(account) else account.named - len(account.campaigns)

    def needs_all_to_tie(self, account: AdAccount) -> bool:
        """Have all campaigns of the account to be in memory once a voucher is tied to some of them?"""
        return not (account.participates or account.has_tied or pauses.is_large(account, self.policy))

    def let_rest(self) -> list[Campaign]:
        """After a batch was decided: take campaigns out of memory that are too many and idle, and return them."""
        return self.campaigns.let_rest(self.accounts, self.policy)

    # ---- Grants -----------------------------------------------------------------------------------------------

    def grant(self, center: BusinessCenter, kind: str, id: str) -> Grant | None:
        """The Business Center's grant of that id, from memory or as the ledger tells it; None: it never had one."""
        found = center.grants.get((kind, id))
        if found is None:
            recorded = self._recorded.get((center.id, kind, id))
            if recorded is not None and recorded.position <= self.position:
                found = restore(center, kind, id, recorded, self.now, self.position)
                self.keep_grant(center, found)
        return found

    def keep_grant(self, center: BusinessCenter, grant: Grant) -> None:
        """Hold a grant in memory from now on, until nothing is left of it, and let it expire at its time."""
        self._ended.add(center, grant)
        self.timers.add_expiry(center, grant)

    def forgotten(self, keys: Iterable[GrantKey]) -> list[GrantKey]:
        """Those of these grants that are in memory no more, or may not be in the next batch."""
        return [key for key in keys if not self._has_something_left(key)]

    def _has_something_left(self, key: GrantKey) -> bool:
        center_id, kind, id = key
        center = self.business_centers.get(center_id)
        grant = None if center is None else center.grants.get((kind, id))
        return grant is not None and grant.filled > 0

    def _forget_grants(self) -> None:
        """Let the grants go that the ledger can tell by now, and the timers of what has gone."""
        for grant in self._ended.next_batch():
            self.timers.idle += grant.expires_at is not None and not grant.expired
        self.timers.forget_idle(self._is_in_memory)

    def _is_in_memory(self, expiry: Timer) -> bool:
        return (expiry.name, expiry.id) in self.business_centers[expiry.business_center_id].grants

    # ---- Time -------------------------------------------------------------------------------------------------

    def is_zone(self, name: str) -> bool:
        """Is this a time zone of the release in force? The ledger records it then, used or not: replay asks again."""
        data = self.zones.table.get(name)
        if data is not None and name not in self._zones:
            self.batch.zones[name] = data
        return data is not None

    def zone(self, name: str) -> Zone:
        """The time zone of that name, at the shard's time. Raises ValueError where the release in force has none."""
        zone = self._zones.get(name)
        if zone is None:
            data = self.zones.table.get(name)
            if data is None:
                raise ValueError(f"the release {self.zones.release!r} of the time zones has no {name!r}")
            zone = self._zones[name] = Zone(name, data)
            zone.advance(self.reached)
        return zone

    def zones_used(self) -> list[tuple[str, bytes]]:
        """The time zones of the shard's Business Centers and ad accounts, with their TZif bytes."""
        return [(name, zone.data) for name, zone in self._zones.items()]

    def schedule_turn_over(self, account: AdAccount) -> None:
        """Look at the account's budgets when its next day begins, if a new day can change anything."""
        if account.turn_over_at is None and setting_budgets.turns_over(account):
            account.turn_over_at = account.zone.start(account.zone.today + 1)
            self.timers.add_turn_over(account)

    def _advance(self, now: int) -> None:
        self.reached = now
        for zone in self._zones.values():
            zone.advance(now)

    def _use_zones(self, zones: Zones) -> None:
        """Take days from another release, and turn over when its days begin. A zone that it lacks stays as it was."""
        self.zones = self.tables[zones.release] = zones
        for name, zone in self._zones.items():
            zone.use(zones.table.get(name, zone.data))
            zone.advance(self.reached)
            self.batch.zones[name] = zone.data
        for account in self.accounts.values():
            pauses.index_campaigns(account, self.policy)
        for timer in self.timers.take_turn_overs():
            account = self.accounts[timer.name]
            account.turn_over_at = None
            self.schedule_turn_over(account)
