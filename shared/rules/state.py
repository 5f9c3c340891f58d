"""The state that the rules remember: Business Centers, ad accounts, campaigns, grants.

Amounts are micros, times microseconds since the Unix epoch, days proleptic ordinals.
"""

from bisect import bisect_left, insort
from itertools import count
from sys import intern
from typing import Final

from shared.rules.budgets import Budget
from shared.rules.calendar import Zone
from shared.rules.entries import Line

FOREVER: Final = 2**63 - 1
# The largest possible amount.
NO_BOUND: Final = 2**63 - 1


# Roughly the memory of one object of each kind, in bytes. Constants, because a bound of the rules (`memory_bounds`)
# must be the same on all machines.
BUSINESS_CENTER_BYTES: Final = 1_000
AD_ACCOUNT_BYTES: Final = 1_500
CAMPAIGN_BYTES: Final = 1_500
GRANT_BYTES: Final = 1_000
TIED_ID_BYTES: Final = 250


class ShardMemory:
    """The memory, in bytes, of all objects of a shard that cannot rest, over all its Business Centers."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class CenterMemory:
    """The part of `ShardMemory` that one Business Center holds, in bytes."""

    __slots__ = ("bytes", "shard")

    def __init__(self, shard: ShardMemory) -> None:
        self.bytes = 0
        self.shard = shard

    def add(self, more: int) -> None:
        """Count this many more bytes, or fewer, for the Business Center and its shard."""
        self.bytes += more
        self.shard.bytes += more


class Grant:
    """A voucher or an ad credit, and the holdings in which it is held now.

    `kind` is "voucher" or "ad_credit". `order` is the position of its `grant` entry. `expires_at` is in µs (None:
    never). `campaigns` are the ids that it is tied to (None: untied). `filled` counts its holdings that hold something.
    Once none does, the grant adds itself to `ended`, which belongs to the shard.
    """

    __slots__ = ("campaigns", "center", "ended", "expired", "expires_at", "filled", "holdings", "id", "kind", "order")

    def __init__(
        self,
        center: "BusinessCenter",
        kind: str,
        id: str,
        order: int,
        expires_at: int | None,
        campaigns: frozenset[str] | None = None,
    ) -> None:
        self.center = center
        self.kind = kind
        self.id = id
        self.order = order
        self.expires_at = expires_at
        self.campaigns = campaigns
        self.expired = False
        self.holdings: list[Holding] = []
        self.filled = 0
        self.ended: dict[Grant, None] | None = None

    def holds_something(self, now: bool) -> None:
        """Note that one of its holdings has been filled (`now`) or emptied.

        The Business Center counts its open grants, the campaigns that they name and their memory.
        """
        before, self.filled = self.filled, self.filled + (1 if now else -1)
        if bool(before) == bool(self.filled):
            return
        sign, named = 1 if now else -1, len(self.campaigns or ())
        self.center.open_grants += sign
        self.center.tied_ids += sign * named
        self.center.memory.add(sign * (GRANT_BYTES + TIED_ID_BYTES * named))
        if not now and self.ended is not None:
            self.ended[self] = None


class Holding:
    """The share of a grant that one holder has. `account` is None for the Business Center.

    `remaining` is in micros. `lines` are those of the entries of campaigns that it paid for, by serial number.
    """

    __slots__ = ("account", "draw_order", "grant", "lines", "remaining")

    def __init__(self, grant: Grant, account: "AdAccount | None") -> None:
        self.grant = grant
        self.account = account
        self.remaining = 0
        self.draw_order = (FOREVER if grant.expires_at is None else grant.expires_at, grant.order)
        self.lines: dict[int, Line] = {}
        grant.holdings.append(self)
        if account is not None:
            account.holdings[grant] = self


class GrantPocket:
    """A pocket of grants, in the order in which they pay: earliest expiry first, then oldest (section 2.1).

    `untied` and `tied_to` (by the id of the campaign that the holdings pay for) have only holdings that are not empty.
    `total` is the sum of all in micros, `tied` the sum of the tied ones. `changed` has the campaigns whose payers came
    or went since pauses were settled, or is None if pauses do not depend on it.
    """

    __slots__ = ("changed", "tied", "tied_to", "total", "untied")

    def __init__(self) -> None:
        self.untied: list[Holding] = []
        self.tied_to: dict[str, list[Holding]] = {}
        self.total = 0
        self.tied = 0
        self.changed: set[str] | None = None

    def put(self, holding: Holding, amount: int) -> None:
        """Add micros to a holding of this pocket."""
        assert self is not NO_GRANTS, "the shared empty pocket stays empty"
        if holding.remaining == 0 and amount:
            self._fill(holding)
        holding.remaining += amount
        self._count(holding, amount)

    def take(self, holding: Holding, amount: int) -> None:
        """Take micros from a holding of this pocket, no more than it has."""
        assert 0 <= amount <= holding.remaining
        holding.remaining -= amount
        self._count(holding, -amount)
        if holding.remaining == 0 and amount:
            self._empty(holding)

    def first_for(self, campaign_id: str) -> Holding | None:
        """Return the holding that pays first for this campaign. A tied one pays for its own campaigns only (2.1)."""
        untied = self.untied[0] if self.untied else None
        tied = self.tied_to.get(campaign_id) if self.tied else None
        if tied is None:
            return untied
        return tied[0] if untied is None or tied[0].draw_order < untied.draw_order else untied

    def _count(self, holding: Holding, change: int) -> None:
        self.total += change
        if holding.grant.campaigns is not None:
            self.tied += change

    def _fill(self, holding: Holding) -> None:
        grant = holding.grant
        grant.holds_something(now=True)
        if grant.campaigns is None:
            insort(self.untied, holding, key=_draw_order)
            return
        for campaign_id in grant.campaigns:
            insort(self.tied_to.setdefault(campaign_id, []), holding, key=_draw_order)
        self._note(grant.campaigns)

    def _empty(self, holding: Holding) -> None:
        grant = holding.grant
        if grant.campaigns is None:
            _remove(self.untied, holding)
        else:
            self._untie(holding, grant.campaigns)
        grant.holds_something(now=False)

    def _untie(self, holding: Holding, campaigns: frozenset[str]) -> None:
        for campaign_id in campaigns:
            payers = self.tied_to[campaign_id]
            _remove(payers, holding)
            if not payers:
                del self.tied_to[campaign_id]
        self._note(campaigns)

    def _note(self, campaigns: frozenset[str]) -> None:
        if self.changed is not None:
            self.changed |= campaigns


def _draw_order(holding: Holding) -> tuple[int, int]:
    return holding.draw_order


def _remove(holdings: list[Holding], holding: Holding) -> None:
    at = bisect_left(holdings, holding.draw_order, key=_draw_order)
    assert holdings[at] is holding, "the holdings of a pocket are sorted"
    del holdings[at]


# Shared by all holders without grants, which are most of them: every spend reads it, so it stays in cache.
NO_GRANTS: Final = GrantPocket()


_serials: Final = count()


class Campaign:
    """A campaign of an ad account. It is created when first named; `order` is its place among the account's campaigns.

    `causes` is the bit mask of the causes that stop it (`pauses`). `lines` are those of its entries by payer, without
    grants; `line` is the one used last, for `payer`. `seen` is the generation in which it was last named (`resting`).
    `serial` is a number that no other campaign of the process has.
    """

    __slots__ = ("account", "budget", "causes", "id", "line", "lines", "order", "payer", "seen", "serial")

    def __init__(self, account: "AdAccount", id: str, order: int, budget: Budget | None = None) -> None:
        self.id = id
        self.account = account
        self.order = order
        self.seen = 0
        self.serial = next(_serials)
        self.budget = budget or Budget()
        self.causes = 0
        self.lines: dict[object, Line] = {}
        self.line: Line | None = None
        self.payer: object = None


class AdAccount:
    """An ad account with its own pockets and budget.

    `campaigns` has the campaigns in memory, and `campaigns_ever` counts all that it has ever had. `holdings` has its
    shares of grants in memory, used up or not. `stopped_campaigns` has the campaigns that no money left may pay for,
    because all of it is tied to others. `daily_campaigns` counts the campaigns with a daily budget, and `watched` has
    those of them whose pauses a new day may change. `has_tied` is true once it has held a voucher that is tied to
    campaigns. `changes` counts the changes of its budget on `changes_day`. `turn_over_at` is when its next turn-over is
    due, in µs.
    """

    __slots__ = (
        "ad_credits",
        "billing",
        "budget",
        "business_center",
        "buying_type",
        "campaigns",
        "campaigns_ever",
        "cash",
        "causes",
        "changes",
        "changes_day",
        "credit",
        "daily_campaigns",
        "has_tied",
        "holdings",
        "id",
        "owned",
        "participates",
        "stopped_campaigns",
        "turn_over_at",
        "vouchers",
        "watched",
        "zone",
    )

    def __init__(
        self, business_center: "BusinessCenter", id: str, billing: str, buying_type: str, zone: Zone, owned: bool
    ) -> None:
        self.id = id
        self.business_center = business_center
        business_center.memory.add(AD_ACCOUNT_BYTES)
        self.billing = billing
        self.buying_type = buying_type
        self.zone = zone
        self.owned = owned
        self.participates = False
        self.vouchers = NO_GRANTS
        self.ad_credits = NO_GRANTS
        self.cash = 0
        self.credit = 0
        self.budget = Budget()
        self.changes_day = 0
        self.changes = 0
        self.causes = 0
        self.campaigns: dict[str, Campaign] = {}
        self.campaigns_ever = 0
        self.has_tied = False
        self.holdings: dict[Grant, Holding] = {}
        self.stopped_campaigns: dict[Campaign, None] = {}
        self.daily_campaigns = 0
        self.watched: dict[Campaign, None] = {}
        self.turn_over_at: int | None = None

    def available(self, pockets: tuple[str, ...]) -> int:
        """Return the sum of these own pockets of the account, in micros, with tied vouchers."""
        return sum(self.holds(pocket) for pocket in pockets)

    def holds(self, pocket: str) -> int:
        """Return what one of the account's own pockets holds, in micros."""
        if pocket == "cash":
            return self.cash
        if pocket == "credit":
            return self.credit
        return self.vouchers.total if pocket == "voucher" else self.ad_credits.total


class BusinessCenter:
    """A Business Center with its shared balance. `empty` is true if nothing can be drawn from it.

    `grants` has the grants in memory: those that are used up or expired leave it. `open_grants` counts those of which
    something is left, `tied_ids` the campaigns that these name, `daily_campaigns` the campaigns with a daily budget.
    Automatic allocation was enabled at `automatic_since` (µs; None: never) by the entry at `automatic_position`. A
    spend above `largest_spend` (micros) is unusual.
    """

    __slots__ = (
        "accounts",
        "ad_credits",
        "automatic_position",
        "automatic_since",
        "cash",
        "credit_limit",
        "credit_used",
        "currency",
        "daily_campaigns",
        "empty",
        "finance_roles",
        "grants",
        "id",
        "largest_spend",
        "memory",
        "open_grants",
        "tied_ids",
        "vouchers",
        "zone",
    )

    def __init__(
        self, id: str, currency: str, zone: Zone, finance_roles: bool, memory: ShardMemory | None = None
    ) -> None:
        self.memory = CenterMemory(memory or ShardMemory())
        self.memory.add(BUSINESS_CENTER_BYTES)
        self.id = id
        self.currency = intern(currency)  # Because every spend's currency is compared with it.
        self.zone = zone
        self.finance_roles = finance_roles
        self.automatic_since: int | None = None
        self.automatic_position = 0
        self.cash = 0
        self.vouchers = NO_GRANTS
        self.ad_credits = NO_GRANTS
        self.credit_limit = 0
        self.largest_spend = NO_BOUND
        self.credit_used = 0
        self.accounts: dict[str, AdAccount] = {}
        self.grants: dict[tuple[str, str], Grant] = {}
        self.open_grants = self.tied_ids = self.daily_campaigns = 0
        self.empty = True

    def bounds_spends(self) -> bool:
        """Return whether a spend of this Business Center can be too large."""
        return self.largest_spend < NO_BOUND

    @property
    def credit_available(self) -> int:
        """Return `limit − used` in micros: below zero if the limit was cut, above it if the customer has overpaid."""
        return self.credit_limit - self.credit_used

    def holds(self, pocket: str) -> int:
        """Return how many micros can be drawn from one pocket of the Business Center."""
        if pocket == "cash":
            return self.cash
        if pocket == "voucher":
            return self.vouchers.total
        return max(0, self.credit_limit - self.credit_used)


def is_empty(holder: AdAccount | BusinessCenter, pockets: tuple[str, ...]) -> bool:
    """Return whether nothing can be drawn from these pockets of the holder. Cash mostly decides it."""
    if holder.cash and "cash" in pockets:
        return False
    for pocket in pockets:  # noqa: SIM110 - the hot path: any(…) takes longer
        if holder.holds(pocket):
            return False
    return True


def pocket_of(business_center: BusinessCenter, holding: Holding) -> GrantPocket:
    """Return the pocket that a holding lies in, and create it if this is its first holding."""
    owner = business_center if holding.account is None else holding.account
    if holding.grant.kind == "voucher":
        if owner.vouchers is NO_GRANTS:
            owner.vouchers = GrantPocket()
        return owner.vouchers
    if owner.ad_credits is NO_GRANTS:
        owner.ad_credits = GrantPocket()
    return owner.ad_credits
