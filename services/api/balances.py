"""Balances and spend as they are answered, of now and of a time (domain page, section 3.5)."""

from collections.abc import Mapping
from typing import Any

from services.api.models import money
from shared.rules.vocabulary import AD_ACCOUNT_POCKETS


def spend_answer(row: Mapping[str, Any] | None) -> dict[str, str]:
    """Figures of spend from sums of `billed` and `overdelivered`; all zero without a row."""
    billed, overdelivered = (int(row["billed"]), int(row["overdelivered"])) if row else (0, 0)
    return {
        "gross": money(billed + overdelivered),
        "billed": money(billed),
        "overdelivered": money(overdelivered),
    }


def business_center_balance(pockets: Mapping[str, int], credit_limit: int, policy: Mapping[str, Any]) -> dict[str, Any]:
    """A Business Center's balance. What is drawable is above zero in the pockets that the policy names."""
    drawable = sum(max(0, pockets.get(pocket, 0)) for pocket in policy["business_center"])
    credit_available = pockets.get("credit_line", 0)
    return {
        "cash": money(pockets.get("cash", 0)),
        "voucher": money(pockets.get("voucher", 0)),
        "credit_line": {
            "limit": money(credit_limit),
            "used": money(credit_limit - credit_available),
            "available": money(credit_available),
        },
        "available": money(drawable),
        "ad_credit": money(pockets.get("ad_credit", 0)),
    }


def ad_account_balance(pockets: Mapping[str, int], policy: Mapping[str, Any]) -> dict[str, str]:
    """The balance as it is answered; what is available is in the pockets that the policy names."""
    drawable = policy["ad_account"]
    amounts = {pocket: money(pockets.get(pocket, 0)) for pocket in AD_ACCOUNT_POCKETS}
    return {**amounts, "available": money(sum(pockets.get(pocket, 0) for pocket in drawable))}
