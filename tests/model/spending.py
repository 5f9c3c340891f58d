"""Spends and reversals (domain page, sections 2 and 6.1)."""

from typing import Any

from tests.model.budgets import account_level, campaign_level, count
from tests.model.days import day_of
from tests.model.forms import instant, micros
from tests.model.state import AdAccount, BusinessCenter, Campaign, Part, Spend
from tests.model.waterfall import DEBITS, draw, is_cash_spend, move

Entry = dict[str, Any]


def charge(center: BusinessCenter, event: dict[str, Any], now: int) -> tuple[Spend, list[Entry]]:
    """Bill a spend as far as budgets and pockets allow. Limits apply from the inside out (2.6)."""
    account = center.accounts[event["ad_account_id"]]
    campaign = account.campaigns.setdefault(event["campaign_id"], Campaign(event["campaign_id"]))
    occurred_at, rest = instant(event["occurred_at"]), micros(event["amount"])
    parts = []
    for cause, level in (
        ("campaign_budget", campaign_level(account, campaign)),
        ("ad_account_budget", account_level(account)),
    ):
        room = level.room_for(occurred_at, now)
        if room is not None and rest > room:
            parts.append(Part(rest - room, rest - room, cause=cause))
            rest = room
    paid = draw(center, account, campaign.campaign_id, rest)
    short = rest - sum(part.amount for part in paid)
    if short:
        cause = "business_center_balance" if center.takes_part(account) else "ad_account_balance"
        parts.append(Part(short, short, cause=cause))
    spend = _remember(account, event, [*paid, *parts], now)
    for part in spend.parts:
        _figure(account, campaign, spend, part, part.amount)
    return spend, [_spend_entry(spend, part) for part in spend.parts]


def _remember(account: AdAccount, event: dict[str, Any], parts: list[Part], now: int) -> Spend:
    occurred_at = instant(event["occurred_at"])
    return Spend(
        ad_account_id=account.ad_account_id,
        campaign_id=event["campaign_id"],
        amount=micros(event["amount"]),
        day=day_of(occurred_at, account.time_zone),
        period=account_level(account).period_of(occurred_at, now, account.custom_started),
        custom_run=account.custom_run if account.settings[-1].mode == "custom" else None,
        parts=parts,
    )


def _figure(account: AdAccount, campaign: Campaign, spend: Spend, part: Part, amount: int) -> None:
    if part.cause is not None:
        account.figures.overdelivered += amount
        campaign.figures.overdelivered += amount
        return
    account.figures.billed += amount
    campaign.figures.billed += amount
    account.cash_spend += amount if is_cash_spend(part) else 0
    count(account, campaign, spend, amount)


def _spend_entry(spend: Spend, part: Part) -> Entry:
    if part.cause is not None:
        return _entry(spend, "overdelivery", None, None, part, part.amount)
    kind = "business_center_draw" if part.holder == "business_center" else DEBITS[part.pocket or ""]
    return _entry(spend, kind, part.holder, part.pocket, part, -part.amount)


def _entry(spend: Spend, kind: str, holder: str | None, pocket: str | None, part: Part, amount: int) -> Entry:
    return {
        "kind": kind,
        "holder": holder,
        "pocket": pocket,
        "grant_id": part.grant.grant_id if part.grant else None,
        "amount": amount,
        "cause": part.cause,
        "period": spend.period.isoformat(),
    }


def is_unusual(center: BusinessCenter, event: dict[str, Any]) -> bool:
    """Return whether a spend is larger than its Business Center allows. Without a bound, no spend is."""
    return center.largest_spend is not None and micros(event["amount"]) > center.largest_spend


def misfit(spends: dict[str, Spend], event: dict[str, Any]) -> str | None:
    """Return why a reversal is quarantined, or None if it can be applied."""
    spend = spends.get(event["reverses"].lower())
    if spend is None:
        return "unknown_reversal"
    if (spend.ad_account_id, spend.campaign_id) != (event["ad_account_id"], event["campaign_id"]):
        return "reversal_mismatch"
    if micros(event["amount"]) > spend.amount - spend.reversed:
        return "reversal_exceeds_spend"
    return None


def reverse(center: BusinessCenter, spend: Spend, amount: int) -> list[Entry]:
    """Take back an amount: first what was overdelivered, then what was paid, the last drawn first."""
    account = center.accounts[spend.ad_account_id]
    campaign = account.campaigns[spend.campaign_id]
    spend.reversed += amount
    entries = []
    for part in reversed(spend.parts):
        taken = min(amount, part.left)
        if taken:
            amount -= taken
            part.left -= taken
            _figure(account, campaign, spend, part, -taken)
            entries.append(_give_back(center, account, spend, part, taken))
    return entries


def _give_back(center: BusinessCenter, account: AdAccount, spend: Spend, part: Part, amount: int) -> Entry:
    if part.cause is not None:
        return _entry(spend, "reversal", None, None, part, -amount)
    if part.grant is not None and part.grant.expired:
        return _entry(spend, "forfeit", None, None, part, amount)
    holder, pocket = _destination(center, account, part)
    move(center, account, holder, pocket, part.grant, amount)
    return _entry(spend, "reversal", holder, pocket, part, amount)


def _destination(center: BusinessCenter, account: AdAccount, part: Part) -> tuple[str, str]:
    """Return where the money belongs now. A voucher may have moved, and account credit may have gone back (6.1)."""
    assert part.holder is not None
    assert part.pocket is not None
    if part.pocket == "voucher" and part.grant is not None:
        return ("business_center" if part.grant.home is None else "ad_account"), "voucher"
    if part.pocket == "credit" and center.takes_part(account):
        return "business_center", "credit_line"
    return part.holder, part.pocket
