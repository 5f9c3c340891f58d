"""The waterfall: which pockets pay for a spend, in which order, and what is overdelivered.

Source: the domain page, section 2. This is the hot path: every spend passes here. Entries are appended as tuples, and
lines are made once per campaign and pocket, because both show in the figures of `make bench`.
"""

from shared.rules.budgets import DAILY, count_for_account
from shared.rules.entries import Entry, Line
from shared.rules.policy import Policy
from shared.rules.state import Campaign, GrantPocket, Holding
from shared.rules.vocabulary import DEBITS

# A holding keeps the lines of at most this many campaigns.
_MOST_LINES = 50_000
# The payers of draws, which differ from those of the account's own pockets. Keys of `Campaign.lines`.
_DRAWN_FROM = {"cash": "business_center_cash", "credit_line": "business_center_credit_line"}


def charge(
    entries: list[Entry],
    policy: Policy,
    campaign: Campaign,
    event_id: bytes,
    amount: int,
    occurred_at: int,
    position: int,
) -> int:
    """Append the money entries of one spend, and return how many they are.

    Limits apply from the inside out: campaign budget, account budget, funds (section 2.6). What they do not cover is
    overdelivery. The parts add up to the amount. `amount` is in micros, `occurred_at` in µs since the Unix epoch, and
    `position` is that of the first entry.
    """
    account = campaign.account
    day, today = account.zone.day(occurred_at), account.zone.today
    parts: list[tuple[Line, int]] = []
    payable, period = amount, day
    beyond: list[tuple[Line, int]] | None = None
    if campaign.budget.history or account.budget.history:
        payable, period, beyond = _limit(campaign, amount, day, today)
    left = payable
    if left and (account.cash or account.vouchers.total or account.credit or account.ad_credits.total):
        left = _draw_own(parts, policy, campaign, left)
    if left and account.participates:
        left = _draw_business_center(parts, policy, campaign, left)
    if beyond:
        parts += beyond
    if left:
        cause = "business_center_balance" if account.participates else "ad_account_balance"
        parts.append((overdelivery_line(campaign, cause), left))

    part = 0
    for line, change in parts:
        entries.append((line, change, occurred_at, event_id, part, day, period))
        part += 1
    # One pocket pays for nearly every spend, and then there is nothing to add up.
    assert part == 1 or sum(abs(change) for _, change in parts) == amount, "the parts of a spend add up to its amount"
    billed = payable - left
    if billed:
        count_for_account(account.budget, day, billed, position)
        campaign.budget.count(day, billed)
    return part


def _limit(campaign: Campaign, amount: int, day: int, today: int) -> tuple[int, int, list[tuple[Line, int]]]:
    """Return what the budgets allow, the first day of the account's period, and the parts beyond the budgets."""
    budget = campaign.account.budget
    if day > today and campaign.budget.mode == DAILY:
        campaign.account.watched[campaign] = None
    beyond: list[tuple[Line, int]] = []
    for limiting, cause in ((campaign.budget, "campaign_budget"), (budget, "ad_account_budget")):
        room = limiting.room(day, today) if limiting.history else None
        if room is not None and room < amount:
            beyond.append((overdelivery_line(campaign, cause), amount - room))
            amount = room
    return amount, budget.period(day, today), beyond


def _draw_own(parts: list[tuple[Line, int]], policy: Policy, campaign: Campaign, left: int) -> int:
    account = campaign.account
    for pocket in policy.ad_account:
        if pocket == "cash":
            taken = min(account.cash, left)
            account.cash -= taken
        elif pocket == "credit":
            taken = min(account.credit, left)
            account.credit -= taken
        else:
            grants = account.vouchers if pocket == "voucher" else account.ad_credits
            if grants.total:
                left = _draw_grants(parts, grants, campaign, left)
            continue
        if taken:
            assert taken > 0, "no pocket is below zero"
            parts.append((_own_line(campaign, pocket), -taken))
            left -= taken
        if not left:
            break
    return left


def _draw_business_center(parts: list[tuple[Line, int]], policy: Policy, campaign: Campaign, left: int) -> int:
    business_center = campaign.account.business_center
    for pocket in policy.business_center:
        if pocket == "cash":
            taken = min(business_center.cash, left)
            business_center.cash -= taken
        elif pocket == "credit_line":
            taken = min(left, max(0, business_center.credit_available))
            business_center.credit_used += taken
        else:
            if business_center.vouchers.total:
                left = _draw_grants(parts, business_center.vouchers, campaign, left)
            continue
        if taken:
            assert taken > 0, "no pocket is below zero"
            parts.append((_draw_line(campaign, pocket), -taken))
            left -= taken
        if not left:
            break
    return left


def _draw_grants(parts: list[tuple[Line, int]], pocket: GrantPocket, campaign: Campaign, left: int) -> int:
    """Draw on one grant after the other. Return what is left of the spend when it, or the grants, are used up."""
    while left:
        holding = pocket.first_for(campaign.id)
        if holding is None:
            break
        taken = min(left, holding.remaining)
        pocket.take(holding, taken)
        parts.append((_grant_line(campaign, holding), -taken))
        left -= taken
    return left


def _own_line(campaign: Campaign, pocket: str) -> Line:
    line = campaign.line if campaign.payer is pocket else campaign.lines.get(pocket)
    if line is None:
        account = campaign.account
        line = campaign.lines[pocket] = Line(
            DEBITS[pocket], account.business_center.id, account.id, campaign.id, holder="ad_account", pocket=pocket
        )
    campaign.payer, campaign.line = pocket, line
    return line


def _draw_line(campaign: Campaign, pocket: str) -> Line:
    payer = _DRAWN_FROM[pocket]
    line = campaign.line if campaign.payer is payer else campaign.lines.get(payer)
    if line is None:
        account = campaign.account
        line = campaign.lines[payer] = Line(
            "business_center_draw",
            account.business_center.id,
            account.id,
            campaign.id,
            holder="business_center",
            pocket=pocket,
        )
    campaign.payer, campaign.line = payer, line
    return line


def _grant_line(campaign: Campaign, holding: Holding) -> Line:
    line = holding.lines.get(campaign.serial)
    if line is None:
        account, grant = campaign.account, holding.grant
        own = holding.account is not None
        if len(holding.lines) >= _MOST_LINES:
            holding.lines.clear()  # Some belong to campaigns that have left memory. The others are made again.
        line = holding.lines[campaign.serial] = Line(
            DEBITS[grant.kind] if own else "business_center_draw",
            account.business_center.id,
            account.id,
            campaign.id,
            holder="ad_account" if own else "business_center",
            pocket=grant.kind,
            grant_id=grant.id,
        )
    return line


def overdelivery_line(campaign: Campaign, cause: str) -> Line:
    """Return the line of an overdelivered part, for which nobody is billed. It has a cause and no pocket."""
    key = ("overdelivery", cause)
    line = campaign.lines.get(key)
    if line is None:
        account = campaign.account
        line = campaign.lines[key] = Line(
            "overdelivery", account.business_center.id, account.id, campaign.id, cause=cause
        )
    return line
