"""Reversals: money returns to the pockets that paid (domain page, section 6.1)."""

from dataclasses import dataclass
from typing import NamedTuple

from shared.rules.budgets import count_for_account
from shared.rules.entries import Step
from shared.rules.money import LARGEST_BALANCE
from shared.rules.policy import Policy
from shared.rules.state import AdAccount, Campaign, Holding, pocket_of
from shared.rules.versions import RETURNS_COUNTED


@dataclass(slots=True)
class Part:
    """One money entry of a spend. `left` is how much of it is not yet reversed, in micros, never below zero."""

    holder: str | None
    pocket: str | None
    grant_id: str | None
    cause: str | None
    left: int


class Place(NamedTuple):
    """The balance to which a part returns: a holder and one of its pockets."""

    holder: str
    pocket: str


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
    parts = _parts_to_return(spend, amount)
    assert sum(taken for _, taken in parts) == amount, "a reversal returns at most what is left of its spend"
    for part, taken in parts:
        part.left -= taken
        if part.pocket is None:
            _write(step, spend, spend_id, details, "reversal", -taken, cause=part.cause)
        else:
            returned += taken
            _return_part(step, spend, spend_id, details, campaign, part, taken)
    if returned:
        count_for_account(campaign.account.budget, spend.day, -returned, spend.position)
        campaign.budget.count(spend.day, -returned)


def take_back(spend: ChargedSpend, amount: int) -> None:
    """Note that `amount` micros of the spend were reversed before, in the order in which reversals return them."""
    for part, taken in _parts_to_return(spend, amount):
        part.left -= taken


def overflows(spend: ChargedSpend, account: AdAccount, amount: int, policy: Policy) -> bool:
    """Return whether a balance to which a reversal of `amount` micros returns money would not fit into 64 bits.

    The first versions of the rules looked at the whole amount and at every balance that any reversal may reach.
    """
    center = account.business_center
    if policy.rules < RETURNS_COUNTED:
        balances = [account.cash, account.credit, account.vouchers.total, account.ad_credits.total]
        balances += [center.cash, center.vouchers.total, center.ad_credits.total, center.credit_available]
        return any(balance + amount > LARGEST_BALANCE for balance in balances)
    returned: dict[Place, int] = {}
    for part, taken in _parts_to_return(spend, amount):
        place = _place_of_return(account, part)
        if place is not None:
            returned[place] = returned.get(place, 0) + taken
    return any(_balance(account, place) + micros > LARGEST_BALANCE for place, micros in returned.items())


def _parts_to_return(spend: ChargedSpend, amount: int) -> list[tuple[Part, int]]:
    """Return which parts a reversal of `amount` micros takes back, in their order, and how much of each."""
    last_first = spend.parts[::-1]
    overdelivered = [part for part in last_first if part.pocket is None]
    parts = []
    for part in overdelivered + [part for part in last_first if part.pocket is not None]:
        taken = min(part.left, amount)
        amount -= taken
        if taken:
            parts.append((part, taken))
    return parts


def _place_of_return(account: AdAccount, part: Part) -> Place | None:
    """Return the balance to which a part returns; None if nobody paid it or its grant has expired."""
    if part.pocket is None or part.holder is None:
        return None
    if part.grant_id is not None:
        holding = _holding_now(account, part.pocket, part.grant_id)
        holder = "business_center" if holding.account is None else "ad_account"
        return None if holding.grant.expired else Place(holder, part.pocket)
    if part.pocket == "credit" and account.participates:
        return Place(holder="business_center", pocket="credit_line")
    return Place(part.holder, part.pocket)


def _balance(account: AdAccount, place: Place) -> int:
    holder, pocket = place
    if pocket == "credit_line":
        return account.business_center.credit_available
    owner = account if holder == "ad_account" else account.business_center
    if pocket == "voucher":
        return owner.vouchers.total
    if pocket == "ad_credit":
        return owner.ad_credits.total
    return account.credit if pocket == "credit" else owner.cash


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
    place = _place_of_return(account, part)
    if place is None:
        _write(step, spend, spend_id, details, "forfeit", taken, grant_id=part.grant_id)
        return
    holder, pocket = place
    if part.grant_id is not None:
        holding = _holding_now(account, pocket, part.grant_id)
        pocket_of(center, holding).put(holding, taken)
    elif pocket == "credit_line":
        center.credit_used -= taken
    elif holder == "business_center":
        center.cash += taken
    elif pocket == "cash":
        account.cash += taken
    else:
        account.credit += taken
    _write(step, spend, spend_id, details, "reversal", taken, holder=holder, pocket=pocket, grant_id=part.grant_id)


def _holding_now(account: AdAccount, kind: str, grant_id: str) -> Holding:
    """Return where a grant is held now. A voucher has one holder; of an ad credit each holder has its own share."""
    grant = account.business_center.grants[kind, grant_id]
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
