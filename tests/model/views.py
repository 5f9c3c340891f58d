"""The answers of the API, made from the model's state (contracts page)."""

from collections.abc import Iterable
from typing import Any

from tests.model.budgets import Level, account_level, campaign_level
from tests.model.commands import CHANGES_PER_DAY
from tests.model.days import day_of, first_of_month, start_of_day
from tests.model.forms import money, rfc3339
from tests.model.state import AdAccount, BusinessCenter, Campaign, Figures

View = dict[str, Any]


def _spend(figures: Iterable[Figures]) -> View:
    held = list(figures)
    billed = sum(each.billed for each in held)
    overdelivered = sum(each.overdelivered for each in held)
    return {
        "gross": money(billed + overdelivered),
        "billed": money(billed),
        "overdelivered": money(overdelivered),
    }


def business_center(center: BusinessCenter) -> View:
    """Return the answer of `GET /v1/business-centers/{id}`, without `as_of`."""
    return {
        "balance": {
            "cash": money(center.cash),
            "voucher": money(center.granted("voucher", None)),
            "credit_line": {
                "limit": money(center.limit),
                "used": money(center.used),
                "available": money(center.credit_available),
            },
            "available": money(center.drawable()),
            "ad_credit": money(center.granted("ad_credit", None)),
        },
        "currency": center.currency,
        "time_zone": center.time_zone,
        "automatic_allocation": {
            "enabled": center.enabled_at is not None,
            "enabled_at": None if center.enabled_at is None else rfc3339(center.enabled_at),
            "left_out": [{"ad_account_id": name, "reason": reason} for name, reason in sorted(center.left_out.items())],
        },
        "largest_spend": None if center.largest_spend is None else money(center.largest_spend),
        "spend": _spend(account.figures for account in center.accounts.values()),
    }


def ad_account(center: BusinessCenter, account: AdAccount, now: int) -> View:
    """Return the answer of `GET /v1/ad-accounts/{id}`, without `as_of`."""
    changes = account.changes[day_of(now, account.time_zone)]
    held = account.ad_account_id
    return {
        "business_center_id": center.business_center_id,
        "billing": account.billing,
        "buying_type": account.buying_type,
        "time_zone": account.time_zone,
        "automatic_allocation": center.takes_part(account),
        "balance": {
            "voucher": money(center.granted("voucher", held)),
            "ad_credit": money(center.granted("ad_credit", held)),
            "cash": money(account.cash),
            "credit": money(account.credit),
            "available": money(center.own_balance(account)),
        },
        "budget": {
            **_budget(account_level(account), account.custom_started, now),
            "changes_today": changes,
            "changes_remaining": CHANGES_PER_DAY - changes,
        },
        "delivery": {"delivering": not account.causes, "causes": sorted(account.causes)},
        "spend": _spend([account.figures]),
    }


def campaign(account: AdAccount, campaign: Campaign, now: int) -> View:
    """Return the answer of `GET /v1/ad-accounts/{id}/campaigns/{campaign_id}`, without `as_of`."""
    return {
        "budget": _budget(campaign_level(account, campaign), None, now),
        "delivery": {
            "delivering": not campaign.causes and not account.causes,
            "causes": sorted(campaign.causes),
            "ad_account_causes": sorted(account.causes),
        },
        "spend": _spend([campaign.figures]),
    }


def _budget(level: Level, custom_started: int | None, now: int) -> View:
    setting, remaining = level.settings[-1], level.remaining(now)
    if remaining is None:
        return {"mode": "unlimited", "amount": None, "spent": None, "remaining": None, "period_start": None}
    today = day_of(now, level.zone)
    starts = {
        "daily": start_of_day(today, level.zone),
        "monthly": start_of_day(first_of_month(today), level.zone),
        "custom": custom_started,
    }
    start = starts.get(setting.mode)
    return {
        "mode": setting.mode,
        "amount": money(setting.amount),
        "spent": money(level.counted(setting.mode, today)),
        "remaining": money(remaining),
        "period_start": None if start is None else rfc3339(start),
    }
