"""Opening Business Centers and ad accounts; which accounts can allocate automatically (domain page, section 3.1)."""

from shared.rules.calendar import Zone
from shared.rules.entries import Step
from shared.rules.state import AdAccount, BusinessCenter, ShardMemory


def open_business_center(
    step: Step, id: str, currency: str, zone: Zone, finance_roles: bool, memory: ShardMemory
) -> BusinessCenter:
    """Open and return a BC. It has no money and allocates manually."""
    step.write(
        "business_center_opened",
        id,
        details={"currency": currency, "time_zone": zone.name, "finance_roles": finance_roles},
    )
    return BusinessCenter(id, currency, zone, finance_roles, memory)


def open_ad_account(step: Step, account: AdAccount) -> None:
    """Add a new account to its BC. An eligible one joins automatic allocation at once, if that is enabled."""
    center = account.business_center
    reason = reason_left_out(account)
    account.participates = center.automatic_since is not None and reason is None
    center.accounts[account.id] = account
    step.write(
        "ad_account_opened",
        center.id,
        account.id,
        details={
            "billing": account.billing,
            "buying_type": account.buying_type,
            "time_zone": account.zone.name,
            "owned": account.owned,
            "automatic_allocation": account.participates,
            "left_out": reason,
        },
    )


def reason_left_out(account: AdAccount) -> str | None:
    """Return why the account cannot allocate automatically, or None if it is owned, auction and monthly-invoicing."""
    if not account.owned:
        return "not_owned"
    if account.buying_type != "auction":
        return "not_auction"
    if account.billing != "monthly_invoicing":
        return "not_monthly_invoicing"
    return None
