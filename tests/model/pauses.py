"""Causes of pauses, from balances and budgets, and the signals of a change (domain page, section 5)."""

from typing import Any

from tests.model.budgets import account_level, campaign_level
from tests.model.state import AdAccount, BusinessCenter, Campaign
from tests.model.waterfall import pockets


def account_causes(center: BusinessCenter, account: AdAccount, now: int) -> set[str]:
    """Return the causes that keep an ad account from delivering."""
    causes = set()
    if center.takes_part(account):
        if center.drawable() == 0:
            causes.add("business_center_balance")
    elif center.own_balance(account) == 0:
        causes.add("ad_account_balance")
    if account_level(account).remaining(now) == 0:
        causes.add("ad_account_budget")
    return causes


def campaign_causes(center: BusinessCenter, account: AdAccount, campaign: Campaign, now: int) -> set[str]:
    """Return the causes that keep a campaign from delivering, without those of its account."""
    causes = set()
    if campaign_level(account, campaign).remaining(now) == 0:
        causes.add("campaign_budget")
    if _all_is_tied_elsewhere(center, account, campaign.campaign_id):
        causes.add("ad_account_balance")
    return causes


def _all_is_tied_elsewhere(center: BusinessCenter, account: AdAccount, campaign_id: str) -> bool:
    """Return whether money is left, but all of it is tied to other campaigns (5.4)."""
    if center.takes_part(account) or center.own_balance(account) == 0:
        return False
    return not any(pocket.amount for pocket in pockets(center, account, campaign_id))


def settle(center: BusinessCenter, now: int) -> list[dict[str, Any]]:
    """Bring every set of causes up to date. Return the changes, those of accounts before those of their campaigns."""
    changes = []
    for account in center.accounts.values():
        causes = account_causes(center, account, now)
        changes += _change(center, account, None, account.causes, causes)
        for campaign in account.campaigns.values():
            causes = campaign_causes(center, account, campaign, now)
            changes += _change(center, account, campaign, campaign.causes, causes)
    return changes


def _change(
    center: BusinessCenter, account: AdAccount, campaign: Campaign | None, held: set[str], wanted: set[str]
) -> list[dict[str, Any]]:
    """Return one change for each cause: the added ones first, then the removed ones (5.2)."""
    changes = []
    for cause in [*sorted(wanted - held), *sorted(held - wanted)]:
        was_delivering = not held
        held ^= {cause}
        changes.append(
            {
                "entity": "campaign" if campaign else "ad_account",
                "business_center_id": center.business_center_id,
                "ad_account_id": account.ad_account_id,
                "campaign_id": campaign.campaign_id if campaign else None,
                "change": _name(was_delivering, not held),
                "cause": cause,
                "added": cause in held,
                "delivering": not held,
                "causes": sorted(held),
            }
        )
    return changes


def _name(was_delivering: bool, is_delivering: bool) -> str:
    if was_delivering == is_delivering:
        return "causes_changed"
    return "resumed" if is_delivering else "paused"
