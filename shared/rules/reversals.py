"""Reversals: money returns to the pockets that paid (domain page, section 6.1)."""

from dataclasses import dataclass

from shared.rules.budgets import count_for_account
from shared.rules.entries import Step
from shared.rules.money import LARGEST_BALANCE
from shared.rules.state import AdAccount, BusinessCenter, Campaign, Holding, pocket_of


@dataclass(slots=True)
class Part:
    """One money entry of a spend. `left` is how much of it is not yet reversed, in micros, never below zero."""

    holder: str | None
    pocket: str | None
    grant_id: str | None
    cause: str | None
    left: int


@dataclass(slots=True)
class ChargedSpend:
    """A spend that the ledger holds.

    `occurred_at` is in µs since the Unix epoch, `position` is that of its first entry, `day` and `period` are ordinals.
    `parts` are in the order in which they were drawn.
    """

    business_center_id: str
    ad_account_id: str
    campaign_id: str
    occurred_at: int
    position: int
    day: int
    period: int
    parts: list[Part]

    def left(self) -> int:
        """Return how many micros of the spend are not yet reversed."""
        return sum(part.left for part in self.parts)


def reversal_fault(spend: ChargedSpend, event: tuple[str, str, str], amount: int) -> tuple[str, str] | None:
    """Return why a reversal does not fit its spend, as quarantine reason and sentence, or None if it fits.

    `event` has the reversal's Business Center, ad account and campaign. `amount` is in micros.
    """
    if event != (spend.business_center_id, spend.ad_account_id, spend.campaign_id):
        return "reversal_mismatch", "the spend is of another account or campaign"
    if amount > spend.left():
        return "reversal_exceeds_spend", f"only {spend.left()} micros of the spend are not yet reversed"
    return None


def reverse(
    step: Step, spend: ChargedSpend, campaign: Campaign, amount: int, reason: str | None, spend_id: bytes
) -> None:
    """Return `amount` micros of a spend to the pockets that paid, or forfeit what a grant paid that has expired.

    Overdelivered parts come first, then the drawn parts, the last drawn first.
    """
    details: dict[str, object] = {"spend_occurred_at": spend.occurred_at, "spend_position": spend.position}
    if reason is not None:
        details["reason"] = reason
    returned = 0
    for part in _order_of_return(spend):
        taken = min(part.left, amount)
        if not taken:
            continue
        part.left -= taken
        amount -= taken
        if part.pocket is None:
            _write(step, spend, spend_id, details, "reversal", -taken, cause=part.cause)
        else:
            returned += taken
            _return_part(step, spend, spend_id, details, campaign, part, taken)
    assert amount == 0, "a reversal returns at most what is left of its spend"
    if returned:
        count_for_account(campaign.account.budget, spend.day, -returned, spend.position)
        campaign.budget.count(spend.day, -returned)


def take_back(spend: ChargedSpend, amount: int) -> None:
    """Note that `amount` micros of the spend were reversed before, in the order in which reversals return them."""
    for part in _order_of_return(spend):
        taken = min(part.left, amount)
        part.left -= taken
        amount -= taken


def overflows(account: AdAccount, amount: int) -> bool:
    """Return whether `amount` micros more would not fit into 64 bits in any balance that a reversal may reach."""
    center = account.business_center
    balances = [account.cash, account.credit, account.vouchers.total, account.ad_credits.total]
    balances += [center.cash, center.vouchers.total, center.ad_credits.total, center.credit_available]
    return any(balance + amount > LARGEST_BALANCE for balance in balances)


def _order_of_return(spend: ChargedSpend) -> list[Part]:
    last_first = spend.parts[::-1]
    return [part for part in last_first if part.pocket is None] + [
        part for part in last_first if part.pocket is not None
    ]


def _return_part(
    step: Step,
    spend: ChargedSpend,
    spend_id: bytes,
    details: dict[str, object],
    campaign: Campaign,
    part: Part,
    taken: int,
) -> None:
    account = campaign.account
    center = account.business_center
    if part.grant_id is not None and part.pocket is not None:
        holding = _holding_now(center, account, part.pocket, part.grant_id)
        if holding.grant.expired:
            _write(step, spend, spend_id, details, "forfeit", taken, grant_id=part.grant_id)
            return
        pocket_of(center, holding).put(holding, taken)
        holder = "business_center" if holding.account is None else "ad_account"
        _write(
            step, spend, spend_id, details, "reversal", taken, holder=holder, pocket=part.pocket, grant_id=part.grant_id
        )
        return
    now_held_by, pocket = part.holder, part.pocket
    if pocket == "credit" and account.participates:
        now_held_by, pocket = "business_center", "credit_line"
    if pocket == "credit_line":
        center.credit_used -= taken
    elif now_held_by == "business_center":
        center.cash += taken
    elif pocket == "cash":
        account.cash += taken
    else:
        account.credit += taken
    _write(step, spend, spend_id, details, "reversal", taken, holder=now_held_by, pocket=pocket)


def _holding_now(center: BusinessCenter, account: AdAccount, kind: str, grant_id: str) -> Holding:
    """Return where a grant is held now. A voucher has one holder; of an ad credit each holder has its own share."""
    grant = center.grants[kind, grant_id]
    return account.holdings.get(grant) or grant.holdings[0]


def _write(
    step: Step,
    spend: ChargedSpend,
    spend_id: bytes,
    details: dict[str, object],
    kind: str,
    amount: int,
    *,
    holder: str | None = None,
    pocket: str | None = None,
    grant_id: str | None = None,
    cause: str | None = None,
) -> None:
    step.write(
        kind,
        spend.business_center_id,
        spend.ad_account_id,
        spend.campaign_id,
        amount=amount,
        day=spend.day,
        period=spend.period,
        holder=holder,
        pocket=pocket,
        grant_id=grant_id,
        cause=cause,
        reverses=spend_id,
        details=details,
    )
