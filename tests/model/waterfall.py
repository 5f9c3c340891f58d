"""The waterfall: the pockets that pay (domain page, section 2)."""

from dataclasses import dataclass

from tests.model.state import AdAccount, BusinessCenter, Grant, Part

DEBITS = {
    "voucher": "voucher_debit",
    "ad_credit": "ad_credit_debit",
    "cash": "cash_debit",
    "credit": "credit_debit",
}


@dataclass
class Pocket:
    """A place that money can be taken from, and how much it holds."""

    holder: str
    name: str
    amount: int
    grant: Grant | None = None


def pockets(center: BusinessCenter, account: AdAccount, campaign_id: str) -> list[Pocket]:
    """Return the pockets that may pay for a campaign, in their order."""
    held = account.ad_account_id
    own = [Pocket("ad_account", *each) for each in _granted(center, "voucher", held, campaign_id)]
    own += [Pocket("ad_account", *each) for each in _granted(center, "ad_credit", held, campaign_id)]
    own += [Pocket("ad_account", "cash", account.cash), Pocket("ad_account", "credit", account.credit)]
    if not center.takes_part(account):
        return own
    shared = [Pocket("business_center", *each) for each in _granted(center, "voucher", None, campaign_id)]
    shared.append(Pocket("business_center", "cash", center.cash))
    shared.append(Pocket("business_center", "credit_line", max(0, center.credit_available)))
    return own + shared


def _granted(center: BusinessCenter, pocket: str, holder: str | None, campaign_id: str) -> list[tuple[str, int, Grant]]:
    return [
        (pocket, grant.lies[holder], grant)
        for grant in center.grants
        if grant.pocket == pocket and grant.lies[holder] and grant.pays_for(campaign_id)
    ]


def draw(center: BusinessCenter, account: AdAccount, campaign_id: str, amount: int) -> list[Part]:
    """Take up to `amount` out of the pockets, and return the parts. They may add up to less."""
    parts = []
    for pocket in pockets(center, account, campaign_id):
        taken = min(amount, pocket.amount)
        if taken:
            amount -= taken
            move(center, account, pocket.holder, pocket.name, pocket.grant, -taken)
            parts.append(Part(taken, taken, pocket.holder, pocket.name, pocket.grant))
    return parts


def move(
    center: BusinessCenter, account: AdAccount, holder: str, pocket: str, grant: Grant | None, amount: int
) -> None:
    """Add an amount to a pocket, or take it out if it is below zero."""
    if grant is not None:
        grant.lies[account.ad_account_id if holder == "ad_account" else None] += amount
    elif pocket == "credit_line":
        center.used -= amount
    elif holder == "business_center":
        center.cash += amount
    elif pocket == "cash":
        account.cash += amount
    else:
        account.credit += amount


def is_cash_spend(part: Part) -> bool:
    """Return whether a pocket counts towards incentives: cash and credit do, grants never (section 1)."""
    return part.pocket in ("cash", "credit", "credit_line")
