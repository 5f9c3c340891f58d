"""Expiry of a grant: what is left of it is forfeited, wherever it is held (domain page, section 6.2)."""

from shared.rules.entries import Step
from shared.rules.pauses import Changed
from shared.rules.state import AdAccount, BusinessCenter, Grant, pocket_of


def expire(step: Step, business_center: BusinessCenter, grant: Grant) -> Changed:
    """Forfeit the rest of a grant, which from then on pays for nothing. Return the holders whose money has changed."""
    grant.expired = True
    accounts: list[AdAccount] = []
    for holding in grant.holdings:
        if not holding.remaining:
            continue
        rest = holding.remaining
        pocket_of(business_center, holding).take(holding, rest)
        account = holding.account
        step.write(
            "expiry",
            business_center.id,
            account.id if account else None,
            amount=-rest,
            holder="ad_account" if account else "business_center",
            pocket=grant.kind,
            grant_id=grant.id,
        )
        if account:
            accounts.append(account)
    return [business_center, *accounts]
