"""Vouchers and ad credits: granted, allocated by hand, moved with their account's balance (domain page, 1, 2.7, 3)."""

from shared.rules.entries import Step
from shared.rules.pauses import settle_account, settle_business_center
from shared.rules.policy import Policy
from shared.rules.refusal import require
from shared.rules.state import AdAccount, BusinessCenter, Grant, Holding, pocket_of


def grant(
    step: Step, center: BusinessCenter, account: AdAccount | None, new: Grant, amount: int, policy: Policy
) -> None:
    """A new grant, held by the BC or by one of its accounts."""
    center.grants[new.kind, new.id] = new
    holding = Holding(new, account)
    pocket_of(center, holding).put(holding, amount)
    _write(step, "grant", center, holding, amount)
    settle_business_center(step, center, policy)
    if account:
        settle_account(step, account, policy)


def allocate(
    step: Step, center: BusinessCenter, account: AdAccount, credit: Grant, amount: int, policy: Policy
) -> None:
    """Ad credit of the BC's pool for one account, by hand: the only way it can be spent."""
    pool = holding_of(credit, None)
    require(amount <= pool.remaining, "insufficient_funds", "the pool does not hold that much of the ad credit")
    target = holding_of(credit, account)
    pocket_of(center, pool).take(pool, amount)
    pocket_of(center, target).put(target, amount)
    _write(step, "allocation_out", center, pool, -amount)
    _write(step, "allocation_in", center, target, amount)
    settle_account(step, account, policy)


def move_vouchers_to_business_center(step: Step, account: AdAccount) -> None:
    """Untied vouchers become the BC's with their id and expiry, used up or not; tied ones stay (section 3.3)."""
    center = account.business_center
    for voucher in [grant for grant in center.grants.values() if grant.kind == "voucher" and grant.campaigns is None]:
        held = voucher.holdings[0]
        if held.account is not account:
            continue
        amount = held.remaining
        pocket_of(center, held).take(held, amount)
        voucher.holdings.clear()
        moved = Holding(voucher, None)
        pocket_of(center, moved).put(moved, amount)
        if amount:
            _write(step, "transfer_out", center, held, -amount, account)
            _write(step, "transfer_in", center, moved, amount, account)


def holding_of(grant: Grant, account: AdAccount | None) -> Holding:
    """What a holder has of a grant; an empty holding is made where there was none."""
    return next((held for held in grant.holdings if held.account is account), None) or Holding(grant, account)


def _write(
    step: Step, kind: str, center: BusinessCenter, holding: Holding, amount: int, account: AdAccount | None = None
) -> None:
    concerned = holding.account or account
    step.write(
        kind,
        center.id,
        concerned.id if concerned else None,
        amount=amount,
        holder="business_center" if holding.account is None else "ad_account",
        pocket=holding.grant.kind,
        grant_id=holding.grant.id,
    )
