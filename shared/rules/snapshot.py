"""The state of a shard as plain lists, so that it can be kept and loaded again.

A snapshot is a cache: whoever does not know its format decides the ledger again from its beginning.
Lists, not objects with names, because a shard may have a hundred thousand campaigns.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Any

from shared.rules.budgets import DAILY, MONTHLY, Budget
from shared.rules.policy import policy_of
from shared.rules.shard import Batch, Shard
from shared.rules.state import AdAccount, BusinessCenter, Campaign, Grant, Holding, pocket_of

FORMAT = 3
_UNUSED = Budget()


def dump(shard: Shard) -> dict[str, Any]:
    """The state after the present batch. It may be taken between two batches only."""
    policy, zones = shard.in_force()
    return {
        "position": shard.batch.position + len(shard.batch.entries),
        "now": shard.now,
        "reached": shard.reached,
        "policy": policy.content(),
        "rules": policy.rules,
        "zones_release": zones.release,
        "grants_made": shard.grants_made,
        "business_centers": [_dump_center(center) for center in shard.business_centers.values()],
    }


def load(shard: Shard, dumped: dict[str, Any]) -> None:
    """Fill an empty shard with what `dump` answered. It has the `tables` of the release of time zones in force."""
    assert not shard.business_centers, "a snapshot is loaded into an empty shard"
    shard.policy = replace(policy_of(dumped["policy"]), rules=dumped["rules"])
    shard.zones = shard.tables[dumped["zones_release"]]
    shard.named = (shard.policy, shard.zones)
    shard.now, shard.reached = dumped["now"], dumped["reached"]
    shard.position = dumped["position"]
    shard.batch = Batch(shard.position)
    shard.grants_made = dumped["grants_made"]
    for center in dumped["business_centers"]:
        _load_center(shard, center)


def _dump_center(center: BusinessCenter) -> list[Any]:
    return [
        center.id,
        center.currency,
        center.zone.name,
        center.finance_roles,
        center.automatic_since,
        center.cash,
        center.credit_limit,
        center.credit_used,
        center.empty,
        [_dump_account(account) for account in center.accounts.values()],
        [_dump_grant(grant) for grant in center.grants.values()],
    ]


def _load_center(shard: Shard, dumped: list[Any]) -> None:
    id, currency, zone, finance_roles, since, cash, limit, used, empty, accounts, grants = dumped
    center = BusinessCenter(id, currency, shard.zone(zone), finance_roles)
    center.automatic_since = since
    center.cash, center.credit_limit, center.credit_used, center.empty = cash, limit, used, empty
    shard.business_centers[id] = center
    for account in accounts:
        _load_account(shard, center, account)
    for grant in grants:
        _load_grant(shard, center, grant)


def _dump_account(account: AdAccount) -> list[Any]:
    return [
        account.id,
        account.billing,
        account.buying_type,
        account.zone.name,
        account.owned,
        account.participates,
        account.cash,
        account.credit,
        account.changes,
        account.changes_day,
        account.causes,
        account.stopped_campaigns,
        _dump_budget(account.budget),
        [[campaign.id, campaign.causes, _dump_budget(campaign.budget)] for campaign in account.campaigns.values()],
    ]


def _load_account(shard: Shard, center: BusinessCenter, dumped: list[Any]) -> None:
    id, billing, buying_type, zone, owned, participates, cash, credit, changes, day, causes, stopped, budget, rest = (
        dumped
    )
    account = AdAccount(center, id, billing, buying_type, shard.zone(zone), owned)
    account.participates, account.cash, account.credit = participates, cash, credit
    account.changes, account.changes_day, account.causes = changes, day, causes
    account.stopped_campaigns = stopped
    _load_budget(account.budget, budget)
    for campaign_id, campaign_causes, campaign_budget in rest:
        campaign = account.campaigns[campaign_id] = Campaign(account, campaign_id)
        campaign.causes = campaign_causes
        _load_budget(campaign.budget, campaign_budget)
    center.accounts[id] = shard.accounts[id] = account
    shard.schedule_turn_over(account)


def _dump_grant(grant: Grant) -> list[Any]:
    return [
        grant.kind,
        grant.id,
        grant.order,
        grant.expires_at,
        None if grant.campaigns is None else sorted(grant.campaigns),
        grant.expired,
        [[held.account.id if held.account else None, held.remaining] for held in grant.holdings],
    ]


def _load_grant(shard: Shard, center: BusinessCenter, dumped: list[Any]) -> None:
    kind, id, order, expires_at, campaigns, expired, holdings = dumped
    grant = Grant(kind, id, order, expires_at, None if campaigns is None else frozenset(campaigns))
    grant.expired = expired
    for account_id, remaining in holdings:
        holding = Holding(grant, None if account_id is None else center.accounts[account_id])
        pocket_of(center, holding).put(holding, remaining)
    center.grants[kind, id] = grant
    shard.schedule_expiry(center, grant)


def _dump_budget(budget: Budget) -> list[Any] | None:
    if not budget.history and budget.day == _UNUSED.day:
        return None
    return [
        budget.mode,
        budget.amount,
        budget.history,
        budget.day,
        budget.spent(DAILY, budget.day),
        budget.spent(MONTHLY, budget.day),
        list(budget.days.items()),
        list(budget.months.items()),
        budget.counted,
        budget.started_at,
        budget.started_day,
        budget.started_position,
    ]


def _load_budget(budget: Budget, dumped: list[Any] | None) -> None:
    if dumped is None:
        return
    budget.mode, budget.amount, history, day, day_spent, month_spent, days, months, counted, *started = dumped
    budget.day = _the_same(day)
    budget.started_at, budget.started_day, budget.started_position = started
    budget.total = counted  # Totals before the custom budget began are needed no more: only differences are.
    budget.before_day, budget.before_month = counted - day_spent, counted - month_spent
    if history:
        budget.history = [(day, mode, amount) for day, mode, amount in history]
    if days:
        budget.days, budget.months = dict(days), dict(months)


@lru_cache(maxsize=4096)
def _the_same(day: int) -> int:
    """One object for a day, whoever has it: every spend compares with two, which are then at hand."""
    return day
