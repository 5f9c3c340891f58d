"""One shard's rules: inputs in, entries out.

`begin` opens a batch at a ledger time and lets happen what was due by then; `event` and `command` decide one input
each. `entries` are what the batch appends, `position` is where the ledger stood before it. No I/O, no clock, no
setting: given what the ledger holds of its batches, the same entries come out. A batch that wrote nothing leaves no
trace, so nothing may depend on it: what it alone was decided under is not in force when the next one begins.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from shared.rules import commands, corrections, expiry, limits, pauses, setting_budgets, waterfall
from shared.rules.calendar import NO_ZONES, Zone, Zones
from shared.rules.corrections import ChargedSpend, Part
from shared.rules.entries import Entry, Step
from shared.rules.forgetting import EndedGrants, forget_lines
from shared.rules.grants import GrantKey, RecordedGrant, restore
from shared.rules.money import format_micros
from shared.rules.policy import STANDARD, Policy
from shared.rules.refusal import Refused
from shared.rules.resting import CampaignsInMemory, Recorded
from shared.rules.state import AdAccount, BusinessCenter, Campaign, Grant, Held
from shared.rules.versions import BOUNDED, LIMITED
from shared.rules.ways import TOPIC

# event id, business center, ad account, campaign, amount in micros, currency, occurred_at in µs, reverses, reason.
# All of it is the event's content; `reverses` is None for a spend.
Event = tuple[bytes, str, str, str, int, str, int, bytes | None, str | None]

CHARGED: Final = "charged"
DUPLICATE: Final = "duplicate"
DAY_US: Final = 86_400_000_000
# So many campaigns or holdings a batch lose the lines that they no longer need.
FORGOTTEN_AT_ONCE: Final = 500
FEWEST_IDLE_TIMERS: Final = 1000
# What is due is fired until it has written so much; what one timer writes stands together.
MOST_TIMER_ENTRIES: Final = 10_000
_EXPIRY, _TURN_OVER = 0, 1
_IS_CHARGED, _IS_DUPLICATE = (CHARGED, ""), (DUPLICATE, "")
_IS_TOO_MANY: Final = ("too_many_campaigns", "nothing is left that pays for the many campaigns of its ad account")


class Batch:
    """What a batch has decided: needed by the next one, which may be decided before this one is committed.

    `zones` are the time zones that the shard had no use for before, with their TZif bytes: the ledger records them.
    """

    __slots__ = ("commands", "entries", "events", "indexed", "position", "spends", "starts", "zones")

    def __init__(self, position: int) -> None:
        self.position = position
        self.commands = 0
        self.entries: list[Entry] = []
        self.events: dict[bytes, Event] = {}
        self.spends: dict[bytes, ChargedSpend] = {}
        self.starts: dict[bytes, int] = {}
        self.zones: dict[str, bytes] = {}
        self.indexed = 0

    def start_of(self, event_id: bytes) -> int:
        """The index of the first entry of a spend or reversal of this batch: only they have a day."""
        for index in range(self.indexed, len(self.entries)):
            entry = self.entries[index]
            if entry[4] == 0 and entry[3] is not None and entry[5] is not None:
                self.starts[entry[3]] = index
        self.indexed = len(self.entries)
        return self.starts[event_id]


class Shard:
    """The state of one shard, and the decisions on it.

    `deduplication_days` is the age in days beyond which an event is too old. None: no event is, as in a replay, which
    does not know what the window was. Nothing else depends on it.
    """

    def __init__(self, policy: Policy = STANDARD, deduplication_days: int | None = 7, zones: Zones = NO_ZONES) -> None:
        self.policy = policy
        self.zones = zones
        # The time-zone releases that a snapshot may name.
        self.tables = {zones.release: zones}
        # What the last batch that wrote something was decided under: the ledger names it.
        self.named = (policy, zones)
        self.position = 0
        # Ledger time, and up to where what was due has happened: behind it while a batch has left some to the next.
        self.now = self.reached = -(2**62)
        self.business_centers: dict[str, BusinessCenter] = {}
        self.accounts: dict[str, AdAccount] = {}
        self.accounts_elsewhere: frozenset[str] | set[str] = frozenset()
        self._zones: dict[str, Zone] = {}
        self.held = Held()
        # How many Business Centers bound their spends. If none does no spend asks its own, far away in memory.
        self.bounded = 0
        self.campaigns = CampaignsInMemory()
        # A spend's ids lead to its campaign in one step, once it has been charged for.
        self._routes = self.campaigns.routes
        self.set_window(deduplication_days)
        self._timers: list[tuple[int, int, str, str, str]] = []
        self._known: Mapping[bytes, Event] = {}
        self._spends: dict[bytes, ChargedSpend] = {}
        self._recorded: Mapping[GrantKey, RecordedGrant] = {}
        self._ended = EndedGrants()
        self._idle_timers = 0
        self._quiet_day = 0
        self._quiet: Iterator[None] = iter(())
        self.batch = self._previous = Batch(0)

    @property
    def entries(self) -> list[Entry]:
        """What the present batch appends, in order, from `position + 1` on."""
        return self.batch.entries

    def set_window(self, deduplication_days: int | None) -> None:
        """From now on an event is too old beyond this age; None: never."""
        days = 2**40 if deduplication_days is None else deduplication_days
        self._window = days * DAY_US

    # ---- A batch ----------------------------------------------------------------------------------------------

    def begin(
        self,
        now: int,
        policy: Policy | None = None,
        known: Mapping[bytes, Event] | None = None,
        spends: dict[bytes, ChargedSpend] | None = None,
        grants: Mapping[GrantKey, RecordedGrant] | None = None,
        zones: Zones | None = None,
        resting: Recorded | None = None,
    ) -> None:
        """Open the next batch at ledger time `now` (µs), which never goes back.

        First happens what is due by then, under what was in force; then `policy` (with its version of the rules) and
        `zones` rule. Where `has_due` holds afterwards the batch takes no inputs: more was due than one batch writes.
        `known` are events of this batch that the ledger already holds, `spends` the spends that its reversals name,
        `grants` those that its commands name or those spends drew on; what the batch before did need not be among them.
        `resting` are the campaigns that it names and that may be out of memory.
        """
        self._previous = self.batch
        self.position = self._previous.position + len(self._previous.entries)
        self._keep_to_the_ledger()
        self.batch = Batch(self.position)
        self._known = known or {}
        self._spends = spends or {}
        self._recorded = grants or {}
        self.campaigns.recorded = resting or {}
        self._forget_grants()
        now = max(now, self.now)
        policy = policy or self.policy
        if policy.rules < BOUNDED:
            self._change(policy, zones)
            self._fire_until(now, None)
        else:
            self._fire_until(now, MOST_TIMER_ENTRIES)
        self.now = now
        if self.has_due():
            self.reached = self._timers[0][0] - 1  # So a snapshot schedules again what is still due.
        else:
            self._advance(now)
            self._change(policy, zones)
        self._forget_lines()

    def _forget_grants(self) -> None:
        """Let go what the ledger can tell by now, and the timers of what has gone.

        Not after a batch of timers alone: what was looked up before it may still hold for the inputs after it.
        """
        if not (self._previous.commands or self._previous.events):
            return
        for grant in self._ended.next_batch():
            self._idle_timers += grant.expires_at is not None and not grant.expired
        if self._idle_timers > FEWEST_IDLE_TIMERS and self._idle_timers > len(self._timers) // 2:
            self._timers = sorted({timer for timer in self._timers if self._is_needed(timer)})
            self._idle_timers = 0

    def _forget_lines(self) -> None:
        """Once a day, a portion a batch."""
        if self.now // DAY_US > self._quiet_day:
            self._quiet_day = self.now // DAY_US
            self._quiet = forget_lines(self.accounts.values(), self.business_centers.values())
        for _ in islice(self._quiet, FORGOTTEN_AT_ONCE):
            pass

    def _is_needed(self, timer: tuple[int, int, str, str, str]) -> bool:
        _, kind, center_id, first, second = timer
        return kind != _EXPIRY or (first, second) in self.business_centers[center_id].grants

    def next_due(self) -> int | None:
        """When the next timer is due, in µs; None: never."""
        return self._timers[0][0] if self._timers else None

    def has_due(self) -> bool:
        """Has the batch left something that is due by its time to the next one? Then it takes no inputs."""
        return bool(self._timers) and self._timers[0][0] <= self.now

    def in_force(self) -> tuple[Policy, Zones]:
        """What the next batch finds in force: nothing in the ledger names what a batch without entries brought."""
        return (self.policy, self.zones) if self.batch.entries else self.named

    def _keep_to_the_ledger(self) -> None:
        """Go back to what the ledger names, if the batch before brought something else and wrote nothing.

        It has changed nothing but that, and pauses are what they were: whoever reads the ledger knows no such batch.
        """
        self.named = policy, zones = self.in_force()
        self.policy = policy
        if zones != self.zones:
            self._use_zones(zones)

    def _fire_until(self, now: int, most: int | None) -> None:
        """Let happen what is due, in order, until it has written `most` entries. None: all of it."""
        entries = self.entries
        while self._timers and self._timers[0][0] <= now and (most is None or len(entries) < most):
            self._fire(heapq.heappop(self._timers))

    def _advance(self, now: int) -> None:
        self.reached = now
        for zone in self._zones.values():
            zone.advance(now)

    def _change(self, policy: Policy, zones: Zones | None) -> None:
        """Other pockets, rules or days: what that pauses or resumes is written at once, accounts before campaigns."""
        if zones is not None and zones == self.zones:
            self.zones = self.tables[zones.release] = zones  # The same release, of which more zones may be known.
        if policy == self.policy and (zones is None or zones == self.zones):
            return
        self.policy = policy
        if zones is not None and zones != self.zones:
            self._use_zones(zones)
        step = Step(self.entries, self.now)
        for center in self.business_centers.values():
            pauses.settle_business_center(step, center, policy)
            for account in center.accounts.values():
                pauses.settle_account(step, account, policy)
                for campaign in pauses.campaigns_to_settle_anew(account, policy):
                    pauses.settle_day(step, campaign, policy)

    def _use_zones(self, zones: Zones) -> None:
        """Take days from another release, and turn over when its days begin. A zone that it lacks stays as it was."""
        self.zones = self.tables[zones.release] = zones
        for name, zone in self._zones.items():
            zone.use(zones.table.get(name, zone.data))
            zone.advance(self.reached)
            self.batch.zones[name] = zone.data
        for account in self.accounts.values():
            pauses.index_campaigns(account, self.policy)
        turn_overs = [timer for timer in self._timers if timer[1] == _TURN_OVER]
        self._timers = [timer for timer in self._timers if timer[1] != _TURN_OVER]
        heapq.heapify(self._timers)
        for _, _, _, account_id, _ in turn_overs:
            account = self.accounts[account_id]
            account.turn_over_at = None
            self.schedule_turn_over(account)

    # ---- Spends and reversals ---------------------------------------------------------------------------------

    def event(self, event: Event) -> tuple[str, str]:  # noqa: C901 - one check after the other, each at once
        """Decide one spend or reversal: (CHARGED or DUPLICATE or a quarantine reason, a sentence for the latter).

        The order of the checks is that of the contracts page.
        """
        event_id, center_id, account_id, campaign_id, amount, currency, occurred_at, reverses, _ = event
        route = f"{center_id} {account_id} {campaign_id}"
        campaign = self._routes.get(route)
        account = self._account(center_id, account_id) if campaign is None else campaign.account
        if account is None:
            return self._unknown(center_id, account_id)
        center = account.business_center
        if currency != center.currency:
            return "currency_mismatch", f"the Business Center's currency is {center.currency}"
        if occurred_at < self.now - self._window:
            return "too_old", "it occurred before the deduplication window"
        if occurred_at > self.now + DAY_US:
            return "too_far_ahead", "it occurred more than a day ahead of the ledger's time"
        events = self.batch.events
        same = events.get(event_id) or self._previous.events.get(event_id) or self._known.get(event_id)
        if same is not None:
            if same == event:
                return _IS_DUPLICATE
            return "content_conflict", "another event with this id is in the ledger"
        if reverses is not None:
            return self._reverse(event, account)
        if self.bounded and amount > center.largest_spend:
            return "amount_unusual", f"the Business Center's largest spend is {format_micros(center.largest_spend)}"
        if campaign is None:
            campaign = self._campaign_of(route, account, campaign_id)
            if campaign is None:
                return _IS_TOO_MANY
        entries = self.batch.entries
        position = self.position + len(entries) + 1
        part = waterfall.charge(entries, self.policy, campaign, event_id, amount, occurred_at, position)
        events[event_id] = event
        if not pauses.is_settled(campaign, self.policy):
            self._settle(campaign, event_id, occurred_at, part)
        return _IS_CHARGED

    def _campaign_of(self, route: str, account: AdAccount, id: str) -> Campaign | None:
        """The campaign of a spend, which comes into being when first named; None where it may not."""
        campaign = self.campaigns.find(account, id)
        if campaign is None and limits.takes_campaign(account, id, self.policy):
            campaign = self.new_campaign(account, id)
        if campaign is not None:
            self.campaigns.note(route, campaign)
        return campaign

    def _account(self, center_id: str, account_id: str) -> AdAccount | None:
        center = self.business_centers.get(center_id)
        return None if center is None else center.accounts.get(account_id)

    def _unknown(self, center_id: str, account_id: str) -> tuple[str, str]:
        if center_id not in self.business_centers:
            return "unknown_business_center", f"there is no Business Center {center_id}"
        return "unknown_ad_account", f"the Business Center {center_id} has no ad account {account_id}"

    def _settle(self, campaign: Campaign, event_id: bytes, occurred_at: int, part: int) -> None:
        """Write the pauses of a spend or reversal that has changed what can pause."""
        account = campaign.account
        step = Step(self.entries, occurred_at, event_id)
        step.part = part
        pauses.settle_business_center(step, account.business_center, self.policy)
        pauses.settle_account(step, account, self.policy, campaign)
        pauses.settle_campaign(step, campaign, self.policy)

    def _reverse(self, event: Event, account: AdAccount) -> tuple[str, str]:
        event_id, center_id, account_id, campaign_id, amount, _, occurred_at, reverses, reason = event
        assert reverses is not None
        spend = self._find_spend(reverses)
        if spend is None:
            return "unknown_reversal", "the ledger holds no spend with the id that it reverses"
        fault = corrections.reversal_fault(spend, (center_id, account_id, campaign_id), amount)
        if fault is not None:
            return fault
        if corrections.overflows(account, amount):
            return "invalid", "a balance would go beyond what 64 bits of micros hold"
        for part in spend.parts:
            if part.grant_id is not None and part.pocket is not None:
                self.grant(account.business_center, part.pocket, part.grant_id)
        step = Step(self.entries, occurred_at, event_id)
        campaign = self.campaigns.find(account, campaign_id)
        assert campaign is not None, "the spend is one of its"
        corrections.reverse(step, spend, campaign, amount, reason, reverses)
        self.batch.events[event_id] = event
        if not pauses.is_settled(campaign, self.policy):
            self._settle(campaign, event_id, occurred_at, step.part)
        return _IS_CHARGED

    def _find_spend(self, event_id: bytes) -> ChargedSpend | None:
        """The spend with what is left of it: from this batch, the one before, or the ledger."""
        mine = self.batch.spends
        found = mine.get(event_id)
        if found is None:
            found = self._previous.spends.get(event_id)
        if found is None:
            found = self._spent_in(self.batch, event_id) or self._spent_in(self._previous, event_id)
        if found is None:
            found = self._spends.get(event_id)
        if found is not None:
            mine[event_id] = found
        return found

    def _spent_in(self, batch: Batch, event_id: bytes) -> ChargedSpend | None:
        event = batch.events.get(event_id)
        if event is None or event[7] is not None:
            return None
        start = batch.start_of(event_id)
        _, _, occurred_at, _, _, day, period = batch.entries[start]
        assert day is not None, "a spend has a day"
        assert period is not None, "a spend has a period"
        spend = ChargedSpend(event[1], event[2], event[3], occurred_at, batch.position + start + 1, day, period, [])
        for line, amount, _, source, _, _, _ in batch.entries[start:]:
            if source != event_id or amount is None:
                break
            spend.parts.append(Part(line.holder, line.pocket, line.grant_id, line.cause, abs(amount)))
        return spend

    # ---- Commands ---------------------------------------------------------------------------------------------

    def command(
        self, command: Mapping[str, Any], command_id: bytes, content: dict[str, Any], via: str = TOPIC
    ) -> Refused | None:
        """Decide one command; None: accepted. `content` is the command as it came, kept in its first entry with `via`.

        `command` has its values as the rules know them: amounts in micros, times in µs, the actor's `role`.
        """
        self.batch.commands += 1
        step = Step(self.entries, self.now, command_id, content, via if self.policy.rules >= LIMITED else None)
        try:
            commands.decide(self, step, command)
        except Refused as refused:
            # Its frames lead to who is given it: a circle, which would keep the command until the collector comes.
            return refused.with_traceback(None)
        return None

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
        if grant.expires_at is not None and not grant.expired:
            heapq.heappush(self._timers, (grant.expires_at, _EXPIRY, center.id, grant.kind, grant.id))

    def forgotten(self, keys: Iterable[GrantKey]) -> list[GrantKey]:
        """Those of these grants that are in memory no more, or may not be in the next batch."""
        return [key for key in keys if not self._has_something_left(key)]

    def _has_something_left(self, key: GrantKey) -> bool:
        center_id, kind, id = key
        center = self.business_centers.get(center_id)
        grant = None if center is None else center.grants.get((kind, id))
        return grant is not None and grant.filled > 0

    # ---- Timers -----------------------------------------------------------------------------------------------

    def schedule_turn_over(self, account: AdAccount) -> None:
        """Look at the account's budgets when its next day begins, if a new day can change anything."""
        if account.turn_over_at is None and setting_budgets.turns_over(account):
            account.turn_over_at = account.zone.start(account.zone.today + 1)
            self.resume_turn_over(account)

    def resume_turn_over(self, account: AdAccount) -> None:
        """Look at the account's budgets when it was said that they would be looked at."""
        if account.turn_over_at is not None:
            due = (account.turn_over_at, _TURN_OVER, account.business_center.id, account.id, "")
            heapq.heappush(self._timers, due)

    def _fire(self, timer: tuple[int, int, str, str, str]) -> None:
        """Due at one moment: expiries before turn-overs, so that nothing seems to deliver in between."""
        due, kind, center_id, first, second = timer
        self._advance(due)
        center = self.business_centers[center_id]
        step = Step(self.entries, due)
        if kind == _EXPIRY:
            grant = center.grants.get((first, second))
            if grant is not None:
                expiry.expire(step, center, grant, self.policy)
        else:
            account = center.accounts[first]
            account.turn_over_at = None
            setting_budgets.turn_over(step, account, self.policy)
            self.schedule_turn_over(account)
