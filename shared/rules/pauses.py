"""Pauses: the causes that stop an entity always follow from balances and budgets.

Source: the domain page, sections 3.5, 4.3, 4.8 and 5. A set of causes is a bit mask; each cause added or removed is one
entry. Code that changes money or a budget returns the holders and campaigns that it has changed, and knows nothing of
pauses: this module then settles them, once, after the entries of the change. A spend or reversal has its own function,
`settle_spent`, because it nearly always changes no pause.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from shared.rules.budgets import DAILY
from shared.rules.entries import Line, Step, canonical_json
from shared.rules.policy import Policy
from shared.rules.state import CAMPAIGN_BYTES, AdAccount, BusinessCenter, Campaign, is_empty
from shared.rules.versions import CENTERS_BOUNDED
from shared.rules.vocabulary import CAUSES

AD_ACCOUNT_BALANCE: Final = 1
AD_ACCOUNT_BUDGET: Final = 2
BUSINESS_CENTER_BALANCE: Final = 4
CAMPAIGN_BUDGET: Final = 8

# An account that has had more campaigns than this is large. If all money that is left is tied to campaigns, its other
# campaigns stop when they spend next, and not at once: so campaigns that do not spend may be out of memory.
LARGE_ACCOUNT: Final = 10_000

# The holders and campaigns whose money or budget has changed, in the order of settling: Business Centers come first.
Changed = Sequence[BusinessCenter | AdAccount | Campaign]

_NAMES = dict(
    zip((AD_ACCOUNT_BALANCE, AD_ACCOUNT_BUDGET, BUSINESS_CENTER_BALANCE, CAMPAIGN_BUDGET), CAUSES, strict=True)
)


def cause_names(causes: int) -> list[str]:
    """Return the names of a set of causes, sorted."""
    return [name for bit, name in _NAMES.items() if causes & bit]


_DETAILS = [canonical_json({"causes": cause_names(causes)}) for causes in range(16)]


def account_causes(account: AdAccount, policy: Policy) -> int:
    """Return the set of causes that stop an ad account now."""
    budget = account.budget
    causes = 0
    if budget.amount is not None and budget.exhausted(account.zone.today):
        causes = AD_ACCOUNT_BUDGET
    if account.participates:
        return causes | BUSINESS_CENTER_BALANCE if account.business_center.empty else causes
    return causes | AD_ACCOUNT_BALANCE if is_empty(account, policy.ad_account) else causes


def campaign_causes(campaign: Campaign, policy: Policy) -> int:
    """Return the set of causes that stop a campaign now, without those of its account."""
    causes = _budget_causes(campaign)
    return causes | AD_ACCOUNT_BALANCE if _only_others_can_pay(campaign, policy) else causes


def _budget_causes(campaign: Campaign) -> int:
    budget = campaign.budget
    exhausted = budget.amount is not None and budget.exhausted(campaign.account.zone.today)
    return CAMPAIGN_BUDGET if exhausted else 0


def is_settled(campaign: Campaign, policy: Policy) -> bool:
    """Return whether all sets of causes are surely still right after a spend of this campaign. They nearly always are.

    False also means that `settle_spent` must look closer, as it must if vouchers are tied to campaigns.
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


def settle(step: Step, changed: Changed, policy: Policy) -> None:
    """Write the pauses and resumes that follow from the changed money and budgets."""
    for each in changed:
        if isinstance(each, BusinessCenter):
            settle_business_center(step, each, policy)
        elif isinstance(each, AdAccount):
            settle_account(step, each, policy)
        else:
            settle_campaign(step, each, policy)
            _watch(each)


def settle_spent(step: Step, campaign: Campaign, policy: Policy) -> None:
    """Write the pauses and resumes of a spend or reversal of this campaign. Call it if `is_settled` returns False."""
    account = campaign.account
    settle_business_center(step, account.business_center, policy)
    settle_account(step, account, policy, campaign)
    settle_campaign(step, campaign, policy)


def settle_new_day(step: Step, account: AdAccount, policy: Policy) -> None:
    """Settle an account whose new day has begun: that ends pauses by a daily or monthly budget (section 4.4)."""
    settle_account(step, account, policy)
    watched, account.watched = in_order(account.watched), {}
    for campaign in watched:
        if campaign.budget.mode == DAILY:
            _settle_day(step, campaign, policy)
            _watch(campaign)


def settle_everything(step: Step, centers: Iterable[BusinessCenter], policy: Policy) -> None:
    """Settle all that other rules, pockets or days may pause or resume, accounts before campaigns."""
    for center in centers:
        settle_business_center(step, center, policy)
        for account in center.accounts.values():
            settle_account(step, account, policy)
            for campaign in _all_to_settle(account, policy):
                _settle_day(step, campaign, policy)


def settle_business_center(step: Step, business_center: BusinessCenter, policy: Policy) -> None:
    """Pause or resume every participating account if the BC's balance has become zero or is no longer zero."""
    empty = is_empty(business_center, policy.business_center)
    if empty == business_center.empty:
        return
    business_center.empty = empty
    for account in business_center.accounts.values():
        if account.participates:
            settle_account(step, account, policy)


def settle_account(step: Step, account: AdAccount, policy: Policy, spent: Campaign | None = None) -> None:
    """Write the changes of the account's causes, then those of the campaigns that its money stops.

    `spent` is the campaign of a spend or reversal. Its own budget may have changed, so it is settled among the others.
    """
    causes = account_causes(account, policy)
    if causes != account.causes:
        account.causes = _write_changes(step, account, None, account.causes, causes)
    for campaign in _campaigns_to_settle(account, policy, spent):
        (settle_campaign if campaign is spent else _settle_day)(step, campaign, policy)


def settle_campaign(step: Step, campaign: Campaign, policy: Policy) -> None:
    """Write the changes of the campaign's own causes."""
    _change(step, campaign, campaign_causes(campaign, policy))


def _settle_day(step: Step, campaign: Campaign, policy: Policy) -> None:
    """Write what a new day, or the account's money, changes for a campaign that did not spend.

    In a large account the money stops a campaign only when it spends next. So it does not matter which campaigns are
    watched, although a load watches more of them than were watched before.
    """
    account = campaign.account
    stops_later = is_large(account, policy) and campaign not in account.stopped_campaigns
    _change(step, campaign, _budget_causes(campaign) if stops_later else campaign_causes(campaign, policy))


def _change(step: Step, campaign: Campaign, causes: int) -> None:
    if causes != campaign.causes:
        campaign.causes = _write_changes(step, campaign.account, campaign.id, campaign.causes, causes)
        _index(campaign)


def index_campaigns(account: AdAccount, policy: Policy) -> None:
    """Rebuild which campaigns are stopped and watched, after the account was loaded or the days of its zone changed."""
    account.business_center.memory.add(-CAMPAIGN_BYTES * len(account.stopped_campaigns))
    account.stopped_campaigns, account.watched = {}, {}
    for campaign in account.campaigns.values():
        _index(campaign)
        if campaign.budget.mode == DAILY:
            account.watched[campaign] = None
    if lacks_untied_money(account, policy):
        account.vouchers.changed = set()


def _index(campaign: Campaign) -> None:
    account = campaign.account
    stopped = account.stopped_campaigns
    before = len(stopped)
    if campaign.causes & AD_ACCOUNT_BALANCE:
        stopped[campaign] = None
    else:
        stopped.pop(campaign, None)
    account.business_center.memory.add(CAMPAIGN_BYTES * (len(stopped) - before))
    if campaign.causes & CAMPAIGN_BUDGET and campaign.budget.mode == DAILY:
        account.watched[campaign] = None


def in_order(campaigns: Iterable[Campaign]) -> list[Campaign]:
    """Return the campaigns without repetition, in the order of their creation."""
    return sorted(set(campaigns), key=lambda campaign: campaign.order)


def _campaigns_to_settle(account: AdAccount, policy: Policy, spent: Campaign | None) -> list[Campaign]:
    """Return the campaigns whose causes may have changed because all money left is tied, or no longer is."""
    lack, vouchers = lacks_untied_money(account, policy), account.vouchers
    changed = vouchers.changed
    if lack or changed is not None:
        vouchers.changed = set() if lack else None
    large = is_large(account, policy)
    if lack and changed is None and not large:
        return in_order(account.campaigns.values())
    if not lack and not account.stopped_campaigns:
        return []
    concerned = {*account.stopped_campaigns} if not lack else _named(account, changed or set())
    if large:
        concerned &= account.stopped_campaigns.keys()
    if spent is not None:
        concerned.add(spent)
    if _day_has_turned(account):
        concerned |= account.watched.keys()
    return in_order(concerned)


def is_large(account: AdAccount, policy: Policy) -> bool:
    """Return whether the account has too many campaigns to settle each of them when all money left is tied."""
    return policy.rules >= CENTERS_BOUNDED and account.campaigns_ever > LARGE_ACCOUNT


def pinned(account: AdAccount) -> int:
    """Return how many campaigns must stay in memory because their account's money pauses and resumes them all."""
    if not account.has_tied or account.participates or account.campaigns_ever > LARGE_ACCOUNT:
        return 0
    return account.campaigns_ever


def weigh_pinned(account: AdAccount, before: int) -> None:
    """Count the memory of pinned campaigns again, after their number has changed from `before`."""
    account.business_center.memory.add(CAMPAIGN_BYTES * (pinned(account) - before))


def _named(account: AdAccount, campaign_ids: set[str]) -> set[Campaign]:
    return {account.campaigns[id] for id in campaign_ids if id in account.campaigns}


def _all_to_settle(account: AdAccount, policy: Policy) -> list[Campaign]:
    """Return the campaigns that other rules, pockets or days may pause or resume. None of them rests."""
    if is_large(account, policy):
        return in_order([*account.stopped_campaigns, *account.watched])
    return in_order(account.campaigns.values())


def _watch(campaign: Campaign) -> None:
    """Have the next turn-over look at a campaign with a daily budget that is paused or has spent ahead of its day."""
    budget, today = campaign.budget, campaign.account.zone.today
    # An event is at most 24 hours ahead of ledger time, which is at most two dates.
    ahead = budget.mode == DAILY and any(budget.spent(DAILY, day) for day in (today + 1, today + 2))
    if ahead or (budget.mode == DAILY and campaign.causes & CAMPAIGN_BUDGET):
        campaign.account.watched[campaign] = None


def _day_has_turned(account: AdAccount) -> bool:
    """Return whether the account's day has begun while its turn-over, due at this moment, has not fired yet."""
    return account.turn_over_at is not None and account.turn_over_at <= account.zone.start(account.zone.today)


def lacks_untied_money(account: AdAccount, policy: Policy) -> bool:
    """Return whether all money left is tied to campaigns (section 5.4). False if the account draws on its BC."""
    if account.participates or account.vouchers.tied == 0 or "voucher" not in policy.ad_account:
        return False
    return account.available(policy.ad_account) == account.vouchers.tied


def _only_others_can_pay(campaign: Campaign, policy: Policy) -> bool:
    account = campaign.account
    return lacks_untied_money(account, policy) and campaign.id not in account.vouchers.tied_to


def _write_changes(step: Step, account: AdAccount, campaign_id: str | None, before: int, after: int) -> int:
    """Write one entry per cause: the added ones first, so that nothing seems to deliver in between. Return the set."""
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
