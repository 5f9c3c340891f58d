"""Pauses: an entity's set of causes is at every moment exactly what balances and budgets say.

Source: the domain page, sections 3.5, 4.3, 4.8 and 5. A set is a bit mask; each cause added or removed is one entry.
"""

from collections.abc import Iterable
from typing import Final

from shared.rules.budgets import DAILY
from shared.rules.entries import Line, Step, canonical_json
from shared.rules.policy import Policy
from shared.rules.state import AdAccount, BusinessCenter, Campaign, is_empty

AD_ACCOUNT_BALANCE: Final = 1
AD_ACCOUNT_BUDGET: Final = 2
BUSINESS_CENTER_BALANCE: Final = 4
CAMPAIGN_BUDGET: Final = 8

_NAMES = {
    AD_ACCOUNT_BALANCE: "ad_account_balance",
    AD_ACCOUNT_BUDGET: "ad_account_budget",
    BUSINESS_CENTER_BALANCE: "business_center_balance",
    CAMPAIGN_BUDGET: "campaign_budget",
}


def cause_names(causes: int) -> list[str]:
    """The names of a set of causes, sorted."""
    return [name for bit, name in _NAMES.items() if causes & bit]


_DETAILS = [canonical_json({"causes": cause_names(causes)}) for causes in range(16)]


def account_causes(account: AdAccount, policy: Policy) -> int:
    """What stops an ad account now."""
    budget = account.budget
    causes = 0
    if budget.amount is not None and budget.exhausted(account.zone.today):
        causes = AD_ACCOUNT_BUDGET
    if account.participates:
        return causes | BUSINESS_CENTER_BALANCE if account.business_center.empty else causes
    return causes | AD_ACCOUNT_BALANCE if is_empty(account, policy.ad_account) else causes


def campaign_causes(campaign: Campaign, policy: Policy) -> int:
    """What stops a campaign by itself, its account's causes apart."""
    budget = campaign.budget
    causes = 0
    if budget.amount is not None and budget.exhausted(campaign.account.zone.today):
        causes = CAMPAIGN_BUDGET
    return causes | AD_ACCOUNT_BALANCE if _only_others_can_pay(campaign, policy) else causes


def is_settled(campaign: Campaign, policy: Policy) -> bool:
    """After a spend of this campaign: is every set of causes still what it should be? Nearly always it is.

    False also where that takes a closer look: where vouchers are tied to campaigns.
    """
    account = campaign.account
    if account.participates:
        center = account.business_center
        if is_empty(center, policy.business_center) != center.empty:
            return False
    elif account.vouchers.tied:
        return False
    if account.stopped_campaigns or account_causes(account, policy) != account.causes:
        return False
    budget = campaign.budget
    exhausted = budget.amount is not None and budget.exhausted(account.zone.today)
    return campaign.causes == (CAMPAIGN_BUDGET if exhausted else 0)


def settle_business_center(step: Step, business_center: BusinessCenter, policy: Policy) -> None:
    """After the BC's balance changed: pause or resume every participating account if it fell to, or left, zero."""
    empty = is_empty(business_center, policy.business_center)
    if empty == business_center.empty:
        return
    business_center.empty = empty
    for account in business_center.accounts.values():
        if account.participates:
            settle_account(step, account, policy)


def settle_account(step: Step, account: AdAccount, policy: Policy, spent: Campaign | None = None) -> None:
    """Write what was added to and removed from the account's causes, then those of campaigns that its money stops.

    `spent` is the campaign of a spend or reversal, whose own budget may have changed: it has its turn among them.
    """
    causes = account_causes(account, policy)
    if causes != account.causes:
        account.causes = _write_changes(step, account, None, account.causes, causes)
    for campaign in _campaigns_to_settle(account, policy, spent):
        settle_campaign(step, campaign, policy)


def settle_campaign(step: Step, campaign: Campaign, policy: Policy) -> None:
    """Write what was added to and removed from the campaign's own causes."""
    before, causes = campaign.causes, campaign_causes(campaign, policy)
    if causes != before:
        campaign.causes = _write_changes(step, campaign.account, campaign.id, before, causes)
        _index(campaign)


def index_campaigns(account: AdAccount, policy: Policy) -> None:
    """Find again, in an account that was loaded or whose days are others, which campaigns are stopped and watched."""
    account.stopped_campaigns, account.watched, account.daily_campaigns = {}, {}, 0
    for campaign in account.campaigns.values():
        _index(campaign)
        if campaign.budget.mode == DAILY:
            account.daily_campaigns += 1
            account.watched[campaign] = None
    if _some_campaign_may_lack_money(account, policy):
        account.vouchers.changed = set()


def _index(campaign: Campaign) -> None:
    account = campaign.account
    if campaign.causes & AD_ACCOUNT_BALANCE:
        account.stopped_campaigns[campaign] = None
    else:
        account.stopped_campaigns.pop(campaign, None)
    if campaign.causes & CAMPAIGN_BUDGET and campaign.budget.mode == DAILY:
        account.watched[campaign] = None


def in_order(campaigns: Iterable[Campaign]) -> list[Campaign]:
    """Each once, in the order in which they came into being."""
    return sorted(set(campaigns), key=lambda campaign: campaign.order)


def _campaigns_to_settle(account: AdAccount, policy: Policy, spent: Campaign | None) -> list[Campaign]:
    """The campaigns whose causes may be others now because all that is left is tied, or no longer is."""
    lack, vouchers = _some_campaign_may_lack_money(account, policy), account.vouchers
    changed = vouchers.changed
    if lack or changed is not None:
        vouchers.changed = set() if lack else None
    if lack and changed is None:
        return list(account.campaigns.values())
    if not lack and not account.stopped_campaigns:
        return []
    concerned = {*account.stopped_campaigns} if not lack else _named(account, changed or set())
    if spent is not None:
        concerned.add(spent)
    if _day_has_turned(account):
        concerned |= account.watched.keys()
    return in_order(concerned)


def _named(account: AdAccount, campaign_ids: set[str]) -> set[Campaign]:
    return {account.campaigns[id] for id in campaign_ids if id in account.campaigns}


def _day_has_turned(account: AdAccount) -> bool:
    """Has the account's day begun, while its turn-over is still to come, at this very moment?"""
    return account.turn_over_at is not None and account.turn_over_at <= account.zone.start(account.zone.today)


def _some_campaign_may_lack_money(account: AdAccount, policy: Policy) -> bool:
    """Only where all that is left is tied (section 5.4); an account that can draw on its BC never lacks it alone."""
    if account.participates or account.vouchers.tied == 0 or "voucher" not in policy.ad_account:
        return False
    return account.available(policy.ad_account) == account.vouchers.tied


def _only_others_can_pay(campaign: Campaign, policy: Policy) -> bool:
    account = campaign.account
    return _some_campaign_may_lack_money(account, policy) and campaign.id not in account.vouchers.tied_to


def _write_changes(step: Step, account: AdAccount, campaign_id: str | None, before: int, after: int) -> int:
    """One entry a cause: first what is added, then what is removed, so that nothing seems to deliver in between."""
    causes = before
    for bit, name in _NAMES.items():
        if after & ~before & bit:
            causes |= bit
            step.write_line(_line("pause", account, campaign_id, name, causes), None)
    for bit, name in _NAMES.items():
        if before & ~after & bit:
            causes &= ~bit
            step.write_line(_line("resume", account, campaign_id, name, causes), None)
    return causes


def _line(kind: str, account: AdAccount, campaign_id: str | None, cause: str, causes: int) -> Line:
    return Line(kind, account.business_center.id, account.id, campaign_id, cause=cause, details=_DETAILS[causes])
