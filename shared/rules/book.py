"""The memory of a shard between inputs: Business Centers, ad accounts, campaigns, grants, time zones and timers.

The rules decide an input by reading and changing a book. A book itself knows no inputs.
"""

from collections.abc import Iterable, Mapping

from shared.rules import pauses, setting_budgets
from shared.rules.batch import Batch
from shared.rules.calendar import NO_ZONES, Zone, Zones
from shared.rules.forgetting import EndedGrants
from shared.rules.grants import GrantKey, RecordedGrant, restore
from shared.rules.policy import STANDARD, Policy
from shared.rules.resting import CampaignsInMemory
from shared.rules.state import AdAccount, BusinessCenter, Campaign, Grant, ShardMemory
from shared.rules.timers import Timer, Timers


class Book:
    """The memory of one shard.

    `policy` and `zones` are in force. `tables` holds the releases of time zones that a snapshot may name, `kept_zones`
    the TZif bytes, by name, of the zones in use that the release named by the ledger lacks. `now` is ledger time in µs.
    All timers up to `reached` (µs) have fired; it lies before `now` while a batch has left timers to the next one.
    `position` is that of the last entry before the present batch. `bounded` counts the Business Centers
    that bound their spends: if it is 0, a spend need not read its Business Center, which would be a cache miss.
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
        self.memory = ShardMemory()
        self.bounded = 0
        self.timers = Timers()
        self.batch = Batch(0)
        self._zones: dict[str, Zone] = {}
        self.kept_zones: Mapping[str, bytes] = {}
        self._recorded: Mapping[GrantKey, RecordedGrant] = {}
        self._ended = EndedGrants()

    # ---- Campaigns --------------------------------------------------------------------------------------------

    def new_campaign(self, account: AdAccount, id: str) -> Campaign:
        """Create the campaign of this id, which an input names for the first time, and return it."""
        campaign, before = Campaign(account, id, account.campaigns_ever), pauses.pinned(account)
        account.campaigns_ever += 1
        pauses.weigh_pinned(account, before)
        self.campaigns.add(campaign)
        return campaign

    def before_tying(self, account: AdAccount) -> None:
        """Bring back the account's resting campaigns, because a voucher is about to be tied to some of them.

        From then on the account's money can pause and resume each of them (section 5.4). Raise LookupError if one of
        them was not looked up.
        """
        if self.needs_all_to_tie(account):
            self.campaigns.find_all(account)

    def needs_all_to_tie(self, account: AdAccount) -> bool:
        """Return whether all campaigns of the account must be in memory once a voucher is tied to some of them."""
        return not (account.participates or account.has_tied or pauses.is_large(account, self.policy))

    def let_rest(self) -> list[Campaign]:
        """Take idle campaigns out of memory after a batch if there are too many, and return them."""
        return self.campaigns.let_rest(self.accounts, self.policy)

    # ---- Grants -----------------------------------------------------------------------------------------------

    def grant(self, center: BusinessCenter, kind: str, id: str) -> Grant | None:
        """Return a grant of the Business Center, from memory or from the ledger, or None if it never had it."""
        found = center.grants.get((kind, id))
        if found is None:
            recorded = self._recorded.get((center.id, kind, id))
            if recorded is not None and recorded.position <= self.position:
                found = restore(center, kind, id, recorded, self.now, self.position)
                self.keep_grant(center, found)
        return found

    def keep_grant(self, center: BusinessCenter, grant: Grant) -> None:
        """Hold a grant in memory until nothing is left of it, and schedule its expiry."""
        self._ended.add(center, grant)
        self.timers.add_expiry(center, grant)

    def forgotten(self, keys: Iterable[GrantKey]) -> list[GrantKey]:
        """Return the grants among these that are not in memory, or may leave it before the next batch."""
        return [key for key in keys if not self._has_something_left(key)]

    def _has_something_left(self, key: GrantKey) -> bool:
        center_id, kind, id = key
        center = self.business_centers.get(center_id)
        grant = None if center is None else center.grants.get((kind, id))
        return grant is not None and grant.filled > 0

    def _forget_grants(self) -> None:
        """Drop the ended grants that can be read from the ledger by now, and the timers of those that were dropped."""
        for grant in self._ended.next_batch():
            self.timers.idle += grant.expires_at is not None and not grant.expired
        self.timers.forget_idle(self._is_in_memory)

    def _is_in_memory(self, expiry: Timer) -> bool:
        return (expiry.name, expiry.id) in self.business_centers[expiry.business_center_id].grants

    # ---- Time -------------------------------------------------------------------------------------------------

    def is_zone(self, name: str) -> bool:
        """Return whether the release in force has a time zone of this name.

        The ledger then records the zone, used or not, because a replay asks the same question.
        """
        data = self.zones.table.get(name)
        if data is not None and name not in self._zones:
            self.batch.zones[name] = data
        return data is not None

    def zone(self, name: str) -> Zone:
        """Return the time zone of this name, at the shard's time.

        Raise ValueError if the release in force has none, and the shard keeps none of an earlier release.
        """
        zone = self._zones.get(name)
        if zone is None:
            data = self.zones.table.get(name, self.kept_zones.get(name))
            if data is None:
                raise ValueError(f"the release {self.zones.release!r} of the time zones has no {name!r}")
            zone = self._zones[name] = Zone(name, data)
            zone.advance(self.reached)
        return zone

    def zones_used(self) -> list[tuple[str, bytes]]:
        """Return the names of the time zones of the shard's Business Centers and ad accounts, with their TZif bytes."""
        return [(name, zone.data) for name, zone in self._zones.items()]

    def schedule_turn_over(self, account: AdAccount) -> None:
        """Schedule a look at the account's budgets for the start of its next day, if a new day can change anything."""
        if account.turn_over_at is None and setting_budgets.turns_over(account):
            account.turn_over_at = account.zone.start(account.zone.today + 1)
            self.timers.add_turn_over(account)

    def _lacking(self, zones: Zones) -> dict[str, bytes]:
        """Return the TZif bytes of the zones in use that a release does not have, by name."""
        return {name: zone.data for name, zone in self._zones.items() if name not in zones.table}

    def _advance(self, now: int) -> None:
        self.reached = now
        for zone in self._zones.values():
            zone.advance(now)

    def _use_zones(self, zones: Zones) -> None:
        """Use the days of another release, and schedule turn-overs by them.

        A zone that the release lacks keeps its old days. The ledger does not record those under the new release,
        because the name is no zone of it: commands that name it are refused, and a replay must refuse them too. UTC is
        recorded in any case, so that the ledger knows a release that has no other zone of the shard.
        """
        self.zones = self.tables[zones.release] = zones
        for name, zone in self._zones.items():
            zone.use(zones.table.get(name, self.kept_zones.get(name, zone.data)))
            zone.advance(self.reached)
        self.batch.zones.update({name: zones.table[name] for name in (*self._zones, "UTC") if name in zones.table})
        for account in self.accounts.values():
            pauses.index_campaigns(account, self.policy)
        for timer in self.timers.take_turn_overs():
            account = self.accounts[timer.name]
            account.turn_over_at = None
            self.schedule_turn_over(account)
