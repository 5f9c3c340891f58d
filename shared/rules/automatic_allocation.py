"""Automatic Balance Allocation: enabling it, and Budget Sync (domain page, section 3)."""

from shared.rules.budgets import CUSTOM, UNLIMITED
from shared.rules.entries import Step
from shared.rules.funds import move_to_business_center
from shared.rules.grants import move_vouchers_to_business_center
from shared.rules.opening import reason_left_out
from shared.rules.pauses import Changed, pinned, weigh_pinned
from shared.rules.policy import Policy
from shared.rules.refusal import require_room
from shared.rules.setting_budgets import write_budget
from shared.rules.state import AdAccount, BusinessCenter
from shared.rules.versions import BATCHES_BOUNDED

# The most accounts that one entry lists. With the longest ids and next to the longest command, it stays within the
# bound of an entry.
MOST_LISTED = 200


def enable(step: Step, center: BusinessCenter, now: int, position: int, policy: Policy) -> Changed:
    """Enable automatic allocation for a BC, and return the holders whose money has changed (section 3).

    The balance of every eligible account moves to the BC. The other accounts stay as they are, each with its reason.
    There is no way back to manual allocation. `now` is ledger time in µs; `position` is that before the batch.
    """
    reasons = {account.id: reason_left_out(account) for account in center.accounts.values()}
    joining = _eligible(center)
    center.automatic_since, center.automatic_position = now, position + len(step.entries) + 1
    left_out = [{"ad_account_id": id, "reason": reason} for id, reason in reasons.items() if reason]
    _write_enabled(step, center, left_out, [account.id for account in joining], policy)
    for account in joining:
        _join(step, account, now, position, policy)
    return [center, *joining]


def _write_enabled(
    step: Step, center: BusinessCenter, left_out: list[dict[str, str]], participants: list[str], policy: Policy
) -> None:
    """Write the accounts that are left out and those that take part. A long list continues in further entries."""
    most = MOST_LISTED if policy.rules >= BATCHES_BOUNDED else max(1, len(left_out) + len(participants))
    for start in range(0, max(1, len(left_out) + len(participants)), most):
        joined = max(0, start - len(left_out)), max(0, start + most - len(left_out))
        step.write(
            "automatic_allocation_enabled",
            center.id,
            details={"left_out": left_out[start : start + most], "participants": participants[slice(*joined)]},
        )


def require_balances_fit(center: BusinessCenter, rules: int) -> None:
    """Raise Refused if the accounts' balances would not fit into the BC's 64 bits (section 1).

    `rules` is the version of the rules. The credit line is checked since version 2.
    """
    joining = _eligible(center)
    require_room(center.cash, sum(account.cash for account in joining))
    require_room(center.vouchers.total, sum(account.vouchers.total for account in joining))
    if rules >= BATCHES_BOUNDED:
        require_room(center.credit_available, sum(account.credit for account in joining))


def _eligible(center: BusinessCenter) -> list[AdAccount]:
    return [account for account in center.accounts.values() if reason_left_out(account) is None]


def _join(step: Step, account: AdAccount, now: int, position: int, policy: Policy) -> None:
    available = account.available(policy.ad_account)
    for pocket in ("cash", "credit"):
        move_to_business_center(step, account, pocket)
    move_vouchers_to_business_center(step, account)
    before = pinned(account)
    account.participates = True
    weigh_pinned(account, before)
    if account.budget.mode == UNLIMITED:
        _sync_budget(step, account, available, now, position)


def _sync_budget(step: Step, account: AdAccount, available: int, now: int, position: int) -> None:
    """Give an account without a budget a custom one: the amount that it could have spent just before (section 3.4)."""
    account.budget.set(account.zone.today, CUSTOM, available)
    account.budget.start_counting(now, account.zone.today, position + len(step.entries) + 1)
    write_budget(step, "budget_synced", account, restarted=True)
