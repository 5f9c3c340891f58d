"""Makes the answers of balances and spend, for the present and the past (domain page, section 3.5)."""

from collections.abc import Mapping
from typing import Any

from services.api.answers.models import money
from shared.rules.vocabulary import AD_ACCOUNT_POCKETS


def spend_answer(row: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the figures of spend from sums of `billed` and `overdelivered` in micros; all are zero without a row."""
    billed, overdelivered = (int(row["billed"]), int(row["overdelivered"])) if row else (0, 0)
    return {
        "gross": money(billed + overdelivered),
        "billed": money(billed),
        "overdelivered": money(overdelivered),
    }


def business_center_balance(pockets: Mapping[str, int], credit_limit: int, policy: Mapping[str, Any]) -> dict[str, Any]:
    """Return the balance of a Business Center.

    `available` adds up what is above zero in the pockets that the policy names.
    """
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
    """Return the balance of an ad account; `available` adds up the pockets that the policy names."""
    drawable = policy["ad_account"]
    amounts = {pocket: money(pockets.get(pocket, 0)) for pocket in AD_ACCOUNT_POCKETS}
    return {**amounts, "available": money(sum(pockets.get(pocket, 0) for pocket in drawable))}
