"""The rules of one shard: they take inputs and give entries.

`begin` opens a batch at a ledger time and first fires the timers due by then. `event` and `command` decide one input
each. `entries` are those that the batch appends, and `position` is that of the last entry before it. There is no I/O,
no clock and no setting: the same batches in the ledger always give the same entries. A batch without entries leaves no
trace in the ledger, so no later decision may depend on it: a policy or release that only such a batch was decided under
is not in force when the next one begins.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final

from shared.rules import commands, expiry, memory_bounds, pauses, reversals, waterfall
from shared.rules.batch import Batch
from shared.rules.book import Book
from shared.rules.calendar import NO_ZONES, Zones
from shared.rules.command_types import Command
from shared.rules.entries import Entry, Step
from shared.rules.events import Event
from shared.rules.forgetting import forget_lines
from shared.rules.grants import GrantKey, RecordedGrant
from shared.rules.money import format_micros
from shared.rules.policy import STANDARD, Policy
from shared.rules.refusal import Refused
from shared.rules.resting import Recorded
from shared.rules.reversals import ChargedSpend
from shared.rules.state import AdAccount, Campaign
from shared.rules.timers import EXPIRY, Timer
from shared.rules.versions import BATCHES_BOUNDED, CENTERS_BOUNDED
from shared.rules.ways import TOPIC

CHARGED: Final = "charged"
DUPLICATE: Final = "duplicate"
DAY_US: Final = 86_400_000_000
# At most this many campaigns and holdings lose the lines that they no longer need, in each batch.
FORGOTTEN_AT_ONCE: Final = 500
# Timers fire until they have written this many entries. The entries of one timer are never split.
MOST_TIMER_ENTRIES: Final = 10_000
_IS_CHARGED, _IS_DUPLICATE = (CHARGED, ""), (DUPLICATE, "")
_IS_TOO_MANY: Final = ("too_many_campaigns", "nothing is left that pays for the many campaigns of its ad account")


class Shard(Book):
    """The book of one shard, and the decisions on it.

    `deduplication_days` is the age in days beyond which an event is too old. None means that nothing is too old: replay
    uses this, because the ledger does not record the window. Nothing else depends on it.
    """

    def __init__(self, policy: Policy = STANDARD, deduplication_days: int | None = 7, zones: Zones = NO_ZONES) -> None:
        super().__init__(policy, zones)
        # The policy and time zones that the ledger names: those of the last batch that wrote entries.
        self.named_by_ledger = (policy, zones)
        # From the ids of a spend to its campaign in one step, once the campaign was found.
        self._routes = self.campaigns.routes
        self.set_window(deduplication_days)
        self._known: Mapping[bytes, Event] = {}
        self._spends: dict[bytes, ChargedSpend] = {}
        self._quiet_day = 0
        self._quiet: Iterator[None] | None = None
        self._previous = self.batch

    @property
    def entries(self) -> list[Entry]:
        """Return the entries that the present batch appends, in order, from `position + 1` on."""
        return self.batch.entries

    def set_window(self, deduplication_days: int | None) -> None:
        """Set the age in days beyond which an event is too old. None means never."""
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

        First the timers due by then fire, under the policy and time zones in force until now. Then `policy` (with its
        version of the rules) and `zones` come into force. If `has_due` is true afterwards, the batch takes no inputs,
        because more was due than one batch may write.

        The other arguments hold the data of the ledger that the inputs of this batch need: `known` the events that have
        their ids, `spends` the spends that its reversals name, `grants` those that its commands name or those spends
        drew on, `resting` the campaigns that may be out of memory. They may lack what the previous batch wrote.
        """
        self._previous = self.batch
        self.position = self._previous.last_position()
        self.keep_to_the_ledger()
        self.batch = Batch(self.position)
        self._known = known or {}
        self._spends = spends or {}
        self._recorded = grants or {}
        self.campaigns.recorded = resting or {}
        if self._previous.commands or self._previous.events:
            # Not after a batch of timers alone, because the inputs after it may use what was looked up before it.
            self._forget_grants()
        now = max(now, self.now)
        policy = policy or self.policy
        if policy.rules < BATCHES_BOUNDED:
            self._change(policy, zones)
            self._fire_until(now, None)
        else:
            self._fire_until(now, MOST_TIMER_ENTRIES)
        self.now = now
        due = self.next_due()
        if due is not None and due <= now:
            self.reached = due - 1  # So that a snapshot schedules again what is still due.
        else:
            self._advance(now)
            self._change(policy, zones)
        self._forget_lines()

    def _forget_lines(self) -> None:
        """Forget lines that are no longer needed: once a day, spread over many batches.

        A round for which a day is too short ends before the next one begins. Otherwise it would never reach the last.
        """
        if self._quiet is None and self.now // DAY_US > self._quiet_day:
            self._quiet_day = self.now // DAY_US
            self._quiet = forget_lines(self.accounts.values(), self.business_centers.values())
        if self._quiet is not None and sum(1 for _ in islice(self._quiet, FORGOTTEN_AT_ONCE)) < FORGOTTEN_AT_ONCE:
            self._quiet = None

    def next_due(self) -> int | None:
        """Return when the next timer is due, in µs since the Unix epoch, or None if there is no timer."""
        return self.timers.next_due()

    def has_due(self) -> bool:
        """Return whether the batch has left timers that are due to the next one. Then it takes no inputs."""
        return self.timers.is_due(self.now)

    def keep_to_the_ledger(self) -> None:
        """Go back to the policy and time zones that the ledger names, if a batch without entries changed them.

        A replay knows no such batch. `begin` calls this, and so does a snapshot, which keeps turn-overs by the zones
        in force. Nothing else has to be undone: a batch that changes pauses writes entries.
        """
        before = self.named_by_ledger[1]
        if self.batch.entries:
            self.named_by_ledger = self.policy, self.zones
        self.policy, zones = self.named_by_ledger
        if zones != before:
            self.kept_zones = self._lacking(zones)
        if zones != self.zones:
            self._use_zones(zones)

    def _fire_until(self, now: int, most: int | None) -> None:
        """Fire the timers that are due by `now` (µs), in order, until they have written `most` entries (None: all)."""
        entries = self.entries
        while self.timers.is_due(now) and (most is None or len(entries) < most):
            self._fire(self.timers.pop())

    def _fire(self, timer: Timer) -> None:
        self._advance(timer.due)
        center = self.business_centers[timer.business_center_id]
        step = Step(self.entries, timer.due)
        if timer.kind == EXPIRY:
            grant = center.grants.get((timer.name, timer.id))
            if grant is not None:
                pauses.settle(step, expiry.expire(step, center, grant), self.policy)
        else:
            account = center.accounts[timer.name]
            account.turn_over_at = None
            pauses.settle_new_day(step, account, self.policy)
            self.schedule_turn_over(account)

    def _change(self, policy: Policy, zones: Zones | None) -> None:
        """Bring a policy and time zones into force, and write at once what they pause or resume."""
        if zones is not None and zones == self.zones:
            self.zones = self.tables[zones.release] = zones  # The same release, whose table may now hold more zones.
        if policy == self.policy and (zones is None or zones == self.zones):
            return
        self.policy = policy
        if zones is not None and zones != self.zones:
            self._use_zones(zones)
        pauses.settle_everything(Step(self.entries, self.now), self.business_centers.values(), policy)

    # ---- Spends and reversals ---------------------------------------------------------------------------------

    def event(self, event: Event) -> tuple[str, str]:  # noqa: C901 - one check after the other, each at once
        """Decide one spend or reversal.

        Return CHARGED or DUPLICATE with an empty text, or a quarantine reason with a sentence. The order of the checks
        is that of the contracts page. Raise LookupError if a campaign that rests was not looked up.
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
        """Return the campaign of a spend, which is created when first named. None if it may not be created."""
        campaign = self.campaigns.find(account, id)
        if campaign is None and memory_bounds.takes_campaign(account, id, self.policy):
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
        """Write the pauses and resumes of a spend or reversal. `part` is the number of entries that it has written."""
        step = Step(self.entries, occurred_at, event_id)
        step.part = part
        pauses.settle_spent(step, campaign, self.policy)

    def _reverse(self, event: Event, account: AdAccount) -> tuple[str, str]:
        event_id, center_id, account_id, campaign_id, amount, _, occurred_at, reverses, reason = event
        assert reverses is not None
        spend = self._find_spend(reverses)
        if spend is None:
            return "unknown_reversal", "the ledger holds no spend with the id that it reverses"
        fault = reversals.reversal_fault(spend, (center_id, account_id, campaign_id), amount)
        if fault is not None:
            return fault
        for part in spend.parts:
            if part.grant_id is not None and part.pocket is not None:
                self.grant(account.business_center, part.pocket, part.grant_id)
        if reversals.overflows(spend, account, amount, self.policy):
            return "invalid", "a balance would go beyond what 64 bits of micros hold"
        step = Step(self.entries, occurred_at, event_id)
        campaign = self.campaigns.find(account, campaign_id)
        assert campaign is not None, "a charged spend has its campaign"
        reversals.reverse(step, spend, campaign, amount, reason, reverses)
        self.batch.events[event_id] = event
        if not pauses.is_settled(campaign, self.policy):
            self._settle(campaign, event_id, occurred_at, step.part)
        return _IS_CHARGED

    def _find_spend(self, event_id: bytes) -> ChargedSpend | None:
        """Return a spend with what is left of it, from this batch, the previous one or the ledger. None if unknown."""
        mine = self.batch.spends
        found = mine.get(event_id)
        if found is None:
            found = self._previous.spends.get(event_id)
        if found is None:
            found = self.batch.spend(event_id) or self._previous.spend(event_id)
        if found is None:
            found = self._spends.get(event_id)
        if found is not None:
            mine[event_id] = found
        return found

    # ---- Commands ---------------------------------------------------------------------------------------------

    def command(self, command: Command, command_id: bytes, content: dict[str, Any], via: str = TOPIC) -> Refused | None:
        """Decide one command. Return None if it is accepted, and why not if it is refused.

        `content` is the command as it was sent; its first entry records it, with `via` (`ways`).
        """
        self.batch.commands += 1
        step = Step(self.entries, self.now, command_id, content, via if self.policy.rules >= CENTERS_BOUNDED else None)
        try:
            commands.decide(self, step, command)
        except Refused as refused:
            # Its frames refer to the caller, which refers to it: a cycle that lives until the garbage collector runs.
            return refused.with_traceback(None)
        return None
