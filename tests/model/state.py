"""The state of the model: Business Centers, ad accounts, campaigns, grants and spends. All amounts are micros."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import date

BEGINNING_OF_TIME = -(10**18)


@dataclass
class Grant:
    """A voucher or ad credit. The BC (None) and several ad accounts can hold parts of it."""

    grant_id: str
    pocket: str
    order: int
    expires_at: int | None
    campaigns: frozenset[str] | None
    home: str | None
    lies: Counter[str | None] = field(default_factory=Counter)
    expired: bool = False

    @property
    def age(self) -> tuple[float, int]:
        """Return the key of the order of payment: earliest expiry first, then oldest (2.1)."""
        return (self.expires_at if self.expires_at is not None else float("inf"), self.order)

    def pays_for(self, campaign_id: str) -> bool:
        """Return whether the grant pays for a campaign. A tied one pays for its own campaigns only (2.1)."""
        return self.campaigns is None or campaign_id in self.campaigns


@dataclass
class Figures:
    """Figures of spend, net of reversals (6.1)."""

    billed: int = 0
    overdelivered: int = 0


@dataclass
class Setting:
    """A setting of a budget, and when it was set."""

    since: int
    mode: str
    amount: int


def unlimited() -> list[Setting]:
    """Return the settings of a budget that was never set."""
    return [Setting(BEGINNING_OF_TIME, "unlimited", 0)]


@dataclass
class Campaign:
    """A campaign of one ad account, with its own set of causes."""

    campaign_id: str
    settings: list[Setting] = field(default_factory=unlimited)
    by_day: Counter[date] = field(default_factory=Counter)
    causes: set[str] = field(default_factory=set)
    figures: Figures = field(default_factory=Figures)

    @property
    def lifetime(self) -> int:
        """All that the campaign ever spent."""
        return sum(self.by_day.values())


@dataclass
class AdAccount:
    """An ad account. Its own pockets are `cash` and `credit`, and its parts of the Business Center's grants."""

    ad_account_id: str
    billing: str
    buying_type: str
    time_zone: str
    owned: bool
    cash: int = 0
    credit: int = 0
    settings: list[Setting] = field(default_factory=unlimited)
    by_day: Counter[date] = field(default_factory=Counter)
    custom_run: int = 0
    custom_started: int = 0
    custom_spent: int = 0
    changes: Counter[date] = field(default_factory=Counter)
    causes: set[str] = field(default_factory=set)
    figures: Figures = field(default_factory=Figures)
    cash_spend: int = 0
    campaigns: dict[str, Campaign] = field(default_factory=dict)

    @property
    def left_out(self) -> str | None:
        """Return why it takes no part in automatic allocation (3.1): the first reason of the contracts page."""
        if not self.owned:
            return "not_owned"
        if self.buying_type != "auction":
            return "not_auction"
        return None if self.billing == "monthly_invoicing" else "not_monthly_invoicing"


@dataclass
class BusinessCenter:
    """A Business Center: the shared balance, the ad accounts and the grants."""

    business_center_id: str
    currency: str
    time_zone: str
    finance_roles: bool
    time: int
    cash: int = 0
    limit: int = 0
    largest_spend: int | None = None
    used: int = 0
    enabled_at: int | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    vouchers: dict[str, Grant] = field(default_factory=dict)
    ad_credits: dict[str, Grant] = field(default_factory=dict)
    accounts: dict[str, AdAccount] = field(default_factory=dict)

    @property
    def credit_available(self) -> int:
        """The limit less what is used: below zero if the limit was cut."""
        return self.limit - self.used

    @property
    def grants(self) -> list[Grant]:
        """Return the vouchers and ad credits, earliest expiry first, then oldest."""
        return sorted([*self.vouchers.values(), *self.ad_credits.values()], key=lambda grant: grant.age)

    def granted(self, pocket: str, holder: str | None) -> int:
        """Return what a pocket of grants holds, of an ad account or of the Business Center itself (None)."""
        grants = self.vouchers if pocket == "voucher" else self.ad_credits
        return sum(grant.lies[holder] for grant in grants.values())

    def drawable(self) -> int:
        """The BC balance of section 3.5: what can be drawn."""
        return self.granted("voucher", None) + self.cash + max(0, self.credit_available)

    def own_balance(self, account: AdAccount) -> int:
        """Return what all of an account's own pockets hold, tied or not."""
        held = account.ad_account_id
        return self.granted("voucher", held) + self.granted("ad_credit", held) + account.cash + account.credit

    def takes_part(self, account: AdAccount) -> bool:
        """Return whether the account draws on the BC balance."""
        return self.enabled_at is not None and account.left_out is None


@dataclass
class Part:
    """The part of a spend that one pocket paid, or, with a cause, that nobody was billed for."""

    amount: int
    left: int
    holder: str | None = None
    pocket: str | None = None
    grant: Grant | None = None
    cause: str | None = None


@dataclass
class Spend:
    """A charged spend, kept for its reversals."""

    ad_account_id: str
    campaign_id: str
    amount: int
    day: date
    period: date
    custom_run: int | None
    parts: list[Part]
    reversed: int = 0
