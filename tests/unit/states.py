"""Random states of a shard in which every field has a value, and the structure by which two states are compared.

The states are made field by field and not by decisions. They need not make sense: they only have to set every field.
"""

import random
from collections.abc import Iterator
from typing import Any

from shared.rules.batch import Batch
from shared.rules.budgets import Budget
from shared.rules.calendar import Zone, Zones
from shared.rules.day_counts import DayCounts
from shared.rules.pauses import index_campaigns
from shared.rules.policy import Policy
from shared.rules.shard import Shard
from shared.rules.state import NO_BOUND, AdAccount, BusinessCenter, Campaign, Grant, GrantPocket, Holding, pocket_of
from shared.rules.timers import Timers
from shared.rules.versions import CURRENT
from tests.unit.test_rules_tables import NOON, TODAY
from tests.zones import release

ZONES = ("UTC", "Asia/Tokyo", "America/St_Johns", "Pacific/Kiritimati", "Africa/Cairo")
# Lines are made again when needed, the other fields of a zone follow from its table, a batch ends where a snapshot is
# taken, and routes are looked up again.
NOT_STATE = {
    BusinessCenter: {"memory"},
    Campaign: {"line", "lines", "payer", "seen", "serial"},
    Holding: {"lines"},
    Grant: {"center", "ended"},
    Zone: {"_day", "_from", "_info", "_starts", "_to", "_tomorrow", "data"},
    Shard: {
        "batch",
        "_previous",
        "_known",
        "_spends",
        "_recorded",
        "_routes",
        "campaigns",
        "memory",
        "_window",
        "accounts_elsewhere",
        "_zones",
        "tables",
        # When to forget what no decision depends on.
        "_ended",
        "_quiet_day",
        "_quiet",
    },
    Timers: {"idle"},
}


def structure(item: Any) -> Any:
    """Return a state as plain values, which are equal if the states are. References to owners become ids."""
    if isinstance(item, dict):
        return [(structure(key), structure(value)) for key, value in item.items()]
    if isinstance(item, list | tuple):
        return [structure(each) for each in item]
    if isinstance(item, frozenset | set):
        return sorted(item)
    if isinstance(item, GrantPocket) and not (item.untied or item.tied_to):
        return item.total, item.tied
    if isinstance(item, Policy):
        return [*structure(item.content()), item.rules]
    if isinstance(item, Zones):
        return item.release
    if isinstance(item, DayCounts):
        return [(item.first + index, amount) for index, amount in enumerate(item.amounts)]
    if isinstance(item, Shard):
        return [item.batch.position + len(item.batch.entries), *map(structure, _fields(item, vars(item)))]
    if hasattr(type(item), "__slots__") and type(item).__module__.startswith("shared."):
        return [type(item).__name__, *map(structure, _fields(item, type(item).__slots__))]
    return item


def _fields(item: Any, names: Any) -> Iterator[tuple[str, Any]]:
    for name in sorted(set(names) - NOT_STATE.get(type(item), set())):
        value = getattr(item, name)
        if name in ("business_center", "account", "grant") and value is not None:
            yield name, value.id
        elif name == "position" and isinstance(item, Shard):
            continue  # It is that of the batch before; a snapshot has that of the next one.
        else:
            yield name, _in_order(name, value)


def _in_order(name: str, value: Any) -> Any:
    """Sort the containers whose own order has no meaning: lookups, and heaps."""
    if name == "_heap":
        return sorted(value)
    return dict(sorted(value.items())) if name == "tied_to" else value


class States:
    """Makes shards. The same seed gives the same state."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def shard(self) -> Shard:
        """Return a shard of several Business Centers, between two batches."""
        policy = Policy(self._name(), ("cash", "voucher", "credit"), ("credit_line", "voucher"), self._number(CURRENT))
        shard = Shard(policy, zones=release(self._name()))
        shard.now = NOON + self._number(10**12)
        shard.reached = shard.now - self._number()
        shard.batch = Batch(self._number())
        shard.position = shard.batch.position
        for _ in range(self._random.randint(1, 3)):
            center = self._center(shard)
            shard.business_centers[center.id] = center
            shard.bounded += center.bounds_spends()
        return shard

    def _center(self, shard: Shard) -> BusinessCenter:
        zone = shard.zone(self._random.choice(ZONES))
        center = BusinessCenter(self._name(), self._random.choice(("EUR", "JPY")), zone, self._flag())
        center.automatic_since, center.automatic_position = self._random.choice((None, self._number())), self._number()
        center.cash, center.credit_limit, center.empty = self._number(), self._number(), self._flag()
        center.credit_used = self._number() - self._number()
        center.largest_spend = self._random.choice((NO_BOUND, self._number()))
        for _ in range(self._random.randint(1, 4)):
            account = self._account(shard, center)
            center.accounts[account.id] = shard.accounts[account.id] = account
        for kind in self._random.choices(("voucher", "ad_credit"), k=self._random.randint(0, 5)):
            grant = self._grant(center, kind)
            shard.keep_grant(center, grant)
        for account in center.accounts.values():
            index_campaigns(account, shard.policy)
        return center

    def _account(self, shard: Shard, center: BusinessCenter) -> AdAccount:
        billing, buying = self._random.choice(("prepay", "autopay")), self._random.choice(("auction", "reservation"))
        account = AdAccount(
            center, self._name(), billing, buying, shard.zone(self._random.choice(ZONES)), owned=self._flag()
        )
        account.participates, account.cash, account.credit = self._flag(), self._number(), self._number()
        account.changes_day, account.changes = TODAY - self._number(9), self._number(10)
        account.causes = self._number(15)
        account.budget = self._budget(("daily", "monthly", "custom", "unlimited"))
        for _ in range(self._random.randint(0, 4)):
            campaign = shard.new_campaign(account, self._name())
            campaign.causes, campaign.budget = self._number(15), self._budget(("daily", "lifetime", "unlimited"))
            account.daily_campaigns += campaign.budget.mode == "daily"
        account.campaigns_ever += self._number(3)
        account.has_tied = self._flag()
        center.daily_campaigns += account.daily_campaigns
        account.turn_over_at = self._random.choice((None, NOON + self._number(10**12)))
        shard.timers.add_turn_over(account)
        return account

    def _grant(self, center: BusinessCenter, kind: str) -> Grant:
        expires_at = self._random.choice((None, NOON + self._number(10**12)))
        campaigns = self._random.choice((None, frozenset({self._name(), self._name()})))
        grant = Grant(center, kind, self._name(), self._number(), expires_at, campaigns)
        grant.expired = self._flag()
        holders: list[AdAccount | None] = [None, *center.accounts.values()]
        for holder in self._random.sample(holders, self._random.randint(1, len(holders))):
            holding = Holding(grant, holder)
            pocket_of(center, holding).put(holding, 0 if grant.expired else self._number() * self._flag())
        return grant

    def _budget(self, modes: tuple[str, ...]) -> Budget:
        budget = Budget()
        if self._random.random() < 0.2:
            return budget
        budget.mode, budget.amount = self._random.choice(modes), self._random.choice((None, self._number()))
        budget.day, budget.total = TODAY - self._number(9), self._number(2**70)
        budget.before_day, budget.before_month, budget.before_start = self._number(), self._number(), self._number()
        budget.started_at = self._random.choice((None, self._number()))
        budget.started_day, budget.started_position = TODAY - self._number(9), self._number()
        if self._flag():
            days = sorted(self._random.sample(range(TODAY - 400, TODAY), self._random.randint(1, 5)))
            budget.history = [(day, self._random.choice(modes), self._number()) for day in days]
        if self._flag():
            budget.days = DayCounts()
            for day in self._random.sample(range(TODAY - 400, TODAY), self._random.randint(1, 9)):
                budget.days.put(day, self._number(2 ** self._random.choice((30, 60, 66))))
        if self._flag():
            budget.months = {TODAY - 30 * months: self._number() for months in range(self._random.randint(1, 14))}
        return budget

    def _name(self) -> str:
        return f"{self._random.getrandbits(32):x}"

    def _number(self, most: int = 10**9) -> int:
        return self._random.randint(1, most)

    def _flag(self) -> bool:
        return self._random.random() < 0.5
