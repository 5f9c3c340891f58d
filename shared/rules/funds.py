"""Money that moves without a spend: deposits, the credit line, transfers (domain page, sections 1 and 3.6)."""

from shared.rules.entries import Step
from shared.rules.refusal import require
from shared.rules.state import AdAccount, BusinessCenter


def deposit(step: Step, center: BusinessCenter, account: AdAccount | None, amount: int) -> None:
    """Cash for the BC, or for one of its accounts."""
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
    """A new limit. Below what is used nothing can be drawn from the line until it is above zero."""
    change = limit - center.credit_limit
    center.credit_limit = limit
    step.write("credit_limit_change", center.id, amount=change, holder="business_center", pocket="credit_line")


def repay_credit(step: Step, center: BusinessCenter, amount: int) -> None:
    """Paying an invoice restores exactly what was paid."""
    center.credit_used -= amount
    step.write("credit_repayment", center.id, amount=amount, holder="business_center", pocket="credit_line")


def require_transferable(account: AdAccount, direction: str, pocket: str) -> None:
    """Prepay accounts hold no credit; a participating account gets none by hand, but may give it back (3.6)."""
    eligible = pocket != "credit" or account.billing != "prepay"
    require(eligible, "not_eligible", "a prepay account holds no credit")
    by_hand = direction != "to_ad_account" or not account.participates
    require(by_hand, "not_eligible", "the account draws on the Business Center's balance: nothing is transferred to it")


def transfer_to_account(step: Step, account: AdAccount, pocket: str, amount: int) -> None:
    """Cash, or credit of the BC's line, for an account. Credit handed over counts as used until it comes back."""
    center = account.business_center
    held = center.cash if pocket == "cash" else center.credit_available
    require(amount <= held, "insufficient_funds", "the Business Center does not hold that much")
    _move(step, account, pocket, amount)


def transfer_to_business_center(step: Step, account: AdAccount, pocket: str, amount: int) -> None:
    """Cash or credit back from an account."""
    require(amount <= account.holds(pocket), "insufficient_funds", "the ad account does not hold that much")
    _move(step, account, pocket, -amount)


def move_to_business_center(step: Step, account: AdAccount, pocket: str) -> None:
    """All that the account holds in the pocket goes to the BC."""
    amount = account.holds(pocket)
    if amount:
        _move(step, account, pocket, -amount)


def _move(step: Step, account: AdAccount, pocket: str, amount: int) -> None:
    """`amount` from the BC to the account; below zero: back. What goes out is written first."""
    center = account.business_center
    if pocket == "cash":
        center.cash -= amount
        account.cash += amount
    else:
        center.credit_used += amount
        account.credit += amount
    assert min(center.cash, account.cash, account.credit) >= 0, "nothing moves that is not there"
    sides = [
        ("business_center", "cash" if pocket == "cash" else "credit_line", -amount),
        ("ad_account", pocket, amount),
    ]
    for holder, its_pocket, change in sorted(sides, key=lambda side: side[2]):
        kind = "transfer_out" if change < 0 else "transfer_in"
        step.write(kind, center.id, account.id, amount=change, holder=holder, pocket=its_pocket)
