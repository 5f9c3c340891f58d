"""Commands that set and reset budgets (domain page, sections 4.4 to 4.7)."""

from typing import Final

from shared.rules.budgets import CUSTOM, DAILY, MONTHLY
from shared.rules.calendar import date_text
from shared.rules.entries import Step
from shared.rules.refusal import require
from shared.rules.state import CAMPAIGN_BYTES, AdAccount, Campaign

CHANGES_PER_DAY: Final = 10


def changes_today(account: AdAccount) -> int:
    """Return how often the budget was set today, in the account's time zone."""
    return account.changes if account.changes_day == account.zone.today else 0


def require_change_left(account: AdAccount) -> None:
    """Raise Refused (`budget_change_limit`) if the budget was changed ten times today (section 4.6)."""
    done = changes_today(account)
    require(
        done < CHANGES_PER_DAY,
        "budget_change_limit",
        f"the budget was changed {done} times today, {CHANGES_PER_DAY} are allowed: 0 remaining until tomorrow",
    )


def set_budget(step: Step, account: AdAccount, mode: str, amount: int | None, now: int, position: int) -> None:
    """Set the account's budget, from its today on (sections 4.4 and 4.5).

    A custom budget begins to count now, unless the budget was custom before. The other modes count earlier spend too.
    `amount` is in micros, `now` is ledger time in µs, `position` is that before the batch.
    """
    account.changes = changes_today(account) + 1
    account.changes_day = account.zone.today
    restarted = mode == CUSTOM and account.budget.mode != CUSTOM
    account.budget.set(account.zone.today, mode, amount)
    if restarted:
        account.budget.start_counting(now, account.zone.today, position + len(step.entries) + 1)
    write_budget(step, "budget_set", account, restarted)


def reset_budget(step: Step, account: AdAccount, now: int, position: int) -> None:
    """Start a custom budget again with nothing spent. Raise Refused (`not_eligible`) in any other mode."""
    require(account.budget.mode == CUSTOM, "not_eligible", "only a custom budget can be reset")
    account.budget.start_counting(now, account.zone.today, position + len(step.entries) + 1)
    write_budget(step, "budget_reset", account, restarted=True)


def set_campaign_budget(step: Step, campaign: Campaign, mode: str, amount: int | None) -> None:
    """Set a campaign's budget, which counts what the campaign has spent before. `amount` is in micros."""
    account = campaign.account
    more = (mode == DAILY) - (campaign.budget.mode == DAILY)
    account.daily_campaigns += more
    account.business_center.daily_campaigns += more
    account.business_center.memory.add(CAMPAIGN_BYTES * more)
    campaign.budget.set(account.zone.today, mode, amount)
    step.write(
        "campaign_budget_set",
        account.business_center.id,
        account.id,
        campaign.id,
        details={"mode": mode, "amount": amount},
    )


def write_budget(step: Step, kind: str, account: AdAccount, restarted: bool) -> None:
    """Write an entry of this kind with the account's budget. `restarted` says that it has just begun to count."""
    budget = account.budget
    custom = budget.mode == CUSTOM
    step.write(
        kind,
        account.business_center.id,
        account.id,
        details={
            "mode": budget.mode,
            "amount": budget.amount,
            "spent": budget.counted if custom else 0,
            "started_at": budget.started_at if custom else None,
            "restarted": restarted,
            "day": date_text(account.zone.today),
            "changes_today": changes_today(account),
        },
    )


def turns_over(account: AdAccount) -> bool:
    """Return whether a new day changes what is left of the account's budget, or of one of its campaigns'."""
    if account.budget.mode in (DAILY, MONTHLY):
        return True
    return account.daily_campaigns > 0
