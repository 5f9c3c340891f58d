"""What the rules remember: Business Centers, ad accounts, campaigns, grants.

Amounts are micros, times microseconds since the Unix epoch, days proleptic ordinals.
"""

from bisect import insort
from sys import intern
from typing import Final

from shared.rules.budgets import Budget
from shared.rules.calendar import Zone
from shared.rules.entries import Line

FOREVER: Final = 2**63 - 1


class Grant:
    """A voucher or an ad credit: who granted what until when, and where it is held now."""

    __slots__ = ("campaigns", "expired", "expires_at", "holdings", "id", "kind", "order")

    def __init__(
        self, kind: str, id: str, order: int, expires_at: int | None, campaigns: frozenset[str] | None = None
    ) -> None:
        self.kind = kind
        self.id = id
        self.order = order
        self.expires_at = expires_at
        self.campaigns = campaigns
        self.expired = False
        self.holdings: list[Holding] = []

    def pays_for(self, campaign_id: str) -> bool:
        """A grant tied to campaigns pays for those campaigns only (domain page, section 2.1)."""
        return self.campaigns is None or campaign_id in self.campaigns


class Holding:
    """What one holder has of a grant; `account` is None for the Business Center."""

    __slots__ = ("account", "draw_order", "grant", "remaining")

    def __init__(self, grant: Grant, account: "AdAccount | None") -> None:
        self.grant = grant
        self.account = account
        self.remaining = 0
        self.draw_order = (FOREVER if grant.expires_at is None else grant.expires_at, grant.order)
        grant.holdings.append(self)


class GrantPocket:
    """A pocket of grants, in the order in which they pay: earliest expiry first, then oldest.

    `holdings` has only those that still hold something.
    """

    __slots__ = ("holdings", "tied", "total")

    def __init__(self) -> None:
        self.holdings: list[Holding] = []
        self.total = 0
        self.tied = 0

    def put(self, holding: Holding, amount: int) -> None:
        """Add to a holding of this pocket."""
        assert self is not NO_GRANTS, "that one belongs to nobody"
        if holding.remaining == 0 and amount:
            insort(self.holdings, holding, key=lambda held: held.draw_order)
        holding.remaining += amount
        self._count(holding, amount)

    def take(self, holding: Holding, amount: int) -> None:
        """Take from a holding of this pocket, no more than it has."""
        assert 0 <= amount <= holding.remaining
        holding.remaining -= amount
        self._count(holding, -amount)
        if holding.remaining == 0 and amount:
            self.holdings.remove(holding)

    def _count(self, holding: Holding, change: int) -> None:
        self.total += change
        if holding.grant.campaigns is not None:
            self.tied += change


# The pocket of all who never held a grant, which most never do: every spend asks, and one for all is at hand.
NO_GRANTS: Final = GrantPocket()


class Campaign:
    """A campaign of an ad account. Comes into being when first named.

    `lines` are those of its entries by what pays; `line` is the one used last, for `payer`.
    """

    __slots__ = ("account", "budget", "causes", "id", "line", "lines", "payer")

    def __init__(self, account: "AdAccount", id: str) -> None:
        self.id = id
        self.account = account
        self.budget = Budget()
        self.causes = 0
        self.lines: dict[object, Line] = {}
        self.line: Line | None = None
        self.payer: object = None


class AdAccount:
    """An ad account with its own pockets and budget."""

    __slots__ = (
        "ad_credits",
        "billing",
        "budget",
        "business_center",
        "buying_type",
        "campaigns",
        "cash",
        "causes",
        "changes",
        "changes_day",
        "credit",
        "id",
        "owned",
        "participates",
        "stopped_campaigns",
        "turn_over_at",
        "vouchers",
        "zone",
    )

    def __init__(
        self, business_center: "BusinessCenter", id: str, billing: str, buying_type: str, zone: Zone, owned: bool
    ) -> None:
        self.id = id
        self.business_center = business_center
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
        self.stopped_campaigns = 0
        self.turn_over_at: int | None = None

    def available(self, pockets: tuple[str, ...]) -> int:
        """What the account's own pockets of the policy hold, tied vouchers included."""
        return sum(self.holds(pocket) for pocket in pockets)

    def holds(self, pocket: str) -> int:
        """What one of the account's own pockets holds."""
        if pocket == "cash":
            return self.cash
        if pocket == "credit":
            return self.credit
        return self.vouchers.total if pocket == "voucher" else self.ad_credits.total


class BusinessCenter:
    """A Business Center with its shared balance. `empty`: nothing can be drawn from it."""

    __slots__ = (
        "accounts",
        "ad_credits",
        "automatic_since",
        "cash",
        "credit_limit",
        "credit_used",
        "currency",
        "empty",
        "finance_roles",
        "grants",
        "id",
        "vouchers",
        "zone",
    )

    def __init__(self, id: str, currency: str, zone: Zone, finance_roles: bool) -> None:
        self.id = id
        self.currency = intern(currency)  # One for all: every spend's is compared with it.
        self.zone = zone
        self.finance_roles = finance_roles
        self.automatic_since: int | None = None
        self.cash = 0
        self.vouchers = NO_GRANTS
        self.ad_credits = NO_GRANTS
        self.credit_limit = 0
        self.credit_used = 0
        self.accounts: dict[str, AdAccount] = {}
        self.grants: dict[tuple[str, str], Grant] = {}
        self.empty = True

    @property
    def credit_available(self) -> int:
        """`limit − used`: below zero where the limit was cut, above the limit where the customer has overpaid."""
        return self.credit_limit - self.credit_used

    def holds(self, pocket: str) -> int:
        """What can be drawn from one pocket."""
        if pocket == "cash":
            return self.cash
        if pocket == "voucher":
            return self.vouchers.total
        return max(0, self.credit_limit - self.credit_used)


def is_empty(holder: AdAccount | BusinessCenter, pockets: tuple[str, ...]) -> bool:
    """Can nothing be drawn from these pockets of the holder's own? Asked after every spend: the first ends it."""
    for pocket in pockets:
        if pocket == "cash":
            if holder.cash:
                return False
        elif holder.holds(pocket):
            return False
    return True


def pocket_of(business_center: BusinessCenter, holding: Holding) -> GrantPocket:
    """The pocket of grants that a holding lies in; it comes into being with its first."""
    owner = business_center if holding.account is None else holding.account
    if holding.grant.kind == "voucher":
        if owner.vouchers is NO_GRANTS:
            owner.vouchers = GrantPocket()
        return owner.vouchers
    if owner.ad_credits is NO_GRANTS:
        owner.ad_credits = GrantPocket()
    return owner.ad_credits
