"""Money that moves without a spend: deposits, the credit line, transfers (domain page, sections 1 and 3.6).

Amounts are micros.
"""

from shared.rules.entries import Step
from shared.rules.refusal import require
from shared.rules.state import AdAccount, BusinessCenter


def deposit(step: Step, center: BusinessCenter, account: AdAccount | None, amount: int) -> None:
    """Add cash to one of the BC's accounts, or to the BC itself if `account` is None."""
    holder: BusinessCenter | AdAccount = account or center
    holder.cash += amount
    step.write(
        "deposit",
        center.id,
        account.id if account else None,
        amount=amount,
        holder="ad_account" if account else "business_center",
        pocket="cash",
    )


def set_credit_line(step: Step, center: BusinessCenter, limit: int) -> None:
    """Set the limit. If it is below the amount used, nothing can be drawn until what is available is above zero."""
    change = limit - center.credit_limit
    center.credit_limit = limit
    step.write("credit_limit_change", center.id, amount=change, holder="business_center", pocket="credit_line")


def repay_credit(step: Step, center: BusinessCenter, amount: int) -> None:
    """Restore as much of the credit line as the customer paid of an invoice."""
    center.credit_used -= amount
    step.write("credit_repayment", center.id, amount=amount, holder="business_center", pocket="credit_line")


def require_transferable(account: AdAccount, direction: str, pocket: str) -> None:
    """Raise Refused if this transfer is not allowed (section 3.6).

    Prepay accounts hold no credit. A participating account receives no transfers, but may give money back.
    """
    eligible = pocket != "credit" or account.billing != "prepay"
    require(eligible, "not_eligible", "a prepay account holds no credit")
    by_hand = direction != "to_ad_account" or not account.participates
    require(by_hand, "not_eligible", "the account draws on the Business Center's balance: nothing is transferred to it")


def transfer_to_account(step: Step, account: AdAccount, pocket: str, amount: int) -> None:
    """Move cash, or credit of the BC's line, to an account. Raise Refused if the BC holds less.

    Credit counts as used from the transfer until it comes back.
    """
    center = account.business_center
    held = center.cash if pocket == "cash" else center.credit_available
    require(amount <= held, "insufficient_funds", "the Business Center does not hold that much")
    _move(step, account, pocket, amount)


def transfer_to_business_center(step: Step, account: AdAccount, pocket: str, amount: int) -> None:
    """Move cash or credit from an account back to the BC. Raise Refused if the account holds less."""
    require(amount <= account.holds(pocket), "insufficient_funds", "the ad account does not hold that much")
    _move(step, account, pocket, -amount)


def move_to_business_center(step: Step, account: AdAccount, pocket: str) -> None:
    """Move everything that the account holds in this pocket to the BC."""
    amount = account.holds(pocket)
    if amount:
        _move(step, account, pocket, -amount)


def _move(step: Step, account: AdAccount, pocket: str, amount: int) -> None:
    """Move `amount` from the BC to the account, or back if it is below zero. The outgoing entry is written first."""
    center = account.business_center
    if pocket == "cash":
        center.cash -= amount
        account.cash += amount
    else:
        center.credit_used += amount
        account.credit += amount
    assert min(center.cash, account.cash, account.credit) >= 0, "a transfer leaves no pocket below zero"
    sides = [
        ("business_center", "cash" if pocket == "cash" else "credit_line", -amount),
        ("ad_account", pocket, amount),
    ]
    for holder, its_pocket, change in sorted(sides, key=lambda side: side[2]):
        kind = "transfer_out" if change < 0 else "transfer_in"
        step.write(kind, center.id, account.id, amount=change, holder=holder, pocket=its_pocket)
