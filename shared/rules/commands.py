"""Finance commands: what each one requires, in the order of the checks, and what it then does.

The checks follow the order of `vocabulary.OUTCOME_CODES`, which is that of the contracts page.
"""

from collections.abc import Callable
from typing import Any

from shared.rules import automatic_allocation, funds, grants, memory_bounds, opening, pauses, setting_budgets
from shared.rules import command_types as types
from shared.rules.book import Book
from shared.rules.command_types import Command
from shared.rules.entries import Step, canonical_json
from shared.rules.largest_spend import set_largest_spend
from shared.rules.pauses import Changed
from shared.rules.refusal import Refused, require, require_above_zero, require_room
from shared.rules.roles import require_permission
from shared.rules.state import AdAccount, BusinessCenter, Grant
from shared.rules.versions import BATCHES_BOUNDED, CENTERS_BOUNDED
from shared.rules.ways import TOPIC

# The first entry of a command holds all of it, and the canonical bytes of an entry are bounded (docs/ledger.md). This
# bound leaves room for the other fields of that entry.
MOST_CONTENT_BYTES = 40_960

# Writes the entries of a command of one type, and returns the holders and campaigns whose money or budget has changed.
Handler = Callable[[Book, Step, Any], Changed]


def decide(book: Book, step: Step, command: Command) -> None:
    """Write what the command does, and settle pauses. Raise Refused, with nothing written, if it may not."""
    if book.policy.rules >= BATCHES_BOUNDED:
        _require_short(step)
    changed = _HANDLERS[type(command)](book, step, command)
    pauses.settle(step, changed, book.policy)


def _require_short(step: Step) -> None:
    size = len(canonical_json(step.command))
    require(
        size <= MOST_CONTENT_BYTES,
        "invalid",
        f"the command takes {size} bytes in the ledger, {MOST_CONTENT_BYTES} are allowed: say it shorter, or in several"
        " commands",
    )


def _open_business_center(book: Book, step: Step, command: types.OpenBusinessCenter) -> Changed:
    require(book.is_zone(command.time_zone), "invalid", f"{command.time_zone!r} is not an IANA time zone")
    _permit(book, step, command, command.finance_roles)
    id = command.business_center_id
    require(id not in book.business_centers, "already_exists", f"the Business Center {id} is open already")
    memory_bounds.require_memory(book.policy, book.memory)
    zone = book.zone(command.time_zone)
    book.business_centers[id] = opening.open_business_center(
        step, id, command.currency, zone, command.finance_roles, book.memory
    )
    return ()


def _open_ad_account(book: Book, step: Step, command: types.OpenAdAccount) -> Changed:
    require(book.is_zone(command.time_zone), "invalid", f"{command.time_zone!r} is not an IANA time zone")
    center = _center(book, command)
    _permit(book, step, command, center.finance_roles)
    id = command.ad_account_id
    taken = id in book.accounts or id in book.accounts_elsewhere
    require(not taken, "already_exists", f"the ad account {id} is open already")
    memory_bounds.require_ad_account(book.policy, center)
    account = AdAccount(center, id, command.billing, command.buying_type, book.zone(command.time_zone), command.owned)
    book.accounts[id] = account
    opening.open_ad_account(step, account)
    return [account]


def _deposit_cash(book: Book, step: Step, command: types.DepositCash) -> Changed:
    amount = require_above_zero(command.amount)
    center = _center(book, command)
    account = None if command.ad_account_id is None else _account(center, command.ad_account_id)
    require_room(account.cash if account else center.cash, amount)
    _permit(book, step, command, center.finance_roles)
    funds.deposit(step, center, account, amount)
    return [center, account] if account else [center]


def _set_credit_line(book: Book, step: Step, command: types.SetCreditLine) -> Changed:
    center = _center(book, command)
    require_room(-center.credit_used, command.limit)
    _permit(book, step, command, center.finance_roles)
    funds.set_credit_line(step, center, command.limit)
    return [center]


def _repay_credit(book: Book, step: Step, command: types.RepayCredit) -> Changed:
    amount = require_above_zero(command.amount)
    center = _center(book, command)
    require(amount <= center.credit_used, "invalid", "more would be repaid than is used")
    _permit(book, step, command, center.finance_roles)
    funds.repay_credit(step, center, amount)
    return [center]


def _grant_voucher(book: Book, step: Step, command: types.GrantVoucher) -> Changed:
    amount = require_above_zero(command.amount)
    _require_future(book, command.expires_at)
    campaigns, account_id = command.campaign_ids, command.ad_account_id
    require(campaigns is None or len(campaigns) > 0, "invalid", "campaign_ids names no campaign")
    tied_to_account = campaigns is None or account_id is not None
    require(tied_to_account, "invalid", "a voucher tied to campaigns is held by an ad account: name it")
    center = _center(book, command)
    account = None if account_id is None else _account(center, account_id)
    require_room((account or center).vouchers.total, amount)
    _permit(book, step, command, center.finance_roles)
    new = _new_grant(book, step, center, command, "voucher", command.voucher_id, campaigns)
    if account is not None and new.campaigns is not None:
        book.before_tying(account)
    grants.grant(step, center, account, new, amount)
    book.keep_grant(center, new)
    return [center, account] if account else [center]


def _grant_ad_credit(book: Book, step: Step, command: types.GrantAdCredit) -> Changed:
    amount = require_above_zero(command.amount)
    _require_future(book, command.expires_at)
    center = _center(book, command)
    require_room(center.ad_credits.total, amount)
    _permit(book, step, command, center.finance_roles)
    new = _new_grant(book, step, center, command, "ad_credit", command.ad_credit_id)
    grants.grant(step, center, None, new, amount)
    book.keep_grant(center, new)
    return [center]


def _allocate_ad_credit(book: Book, step: Step, command: types.AllocateAdCredit) -> Changed:
    amount = require_above_zero(command.amount)
    center = _center(book, command)
    account = _account(center, command.ad_account_id)
    credit = book.grant(center, "ad_credit", command.ad_credit_id)
    if credit is None:
        raise Refused("not_found", f"the Business Center has no ad credit {command.ad_credit_id}")
    require_room(account.ad_credits.total, amount)
    _permit(book, step, command, center.finance_roles)
    grants.allocate(step, center, account, credit, amount)
    return [account]


def _transfer_balance(book: Book, step: Step, command: types.TransferBalance) -> Changed:
    amount = require_above_zero(command.amount)
    center = _center(book, command)
    account = _account(center, command.ad_account_id)
    pocket, to_account = command.pocket, command.direction == "to_ad_account"
    if to_account:
        require_room(account.holds(pocket), amount)
    else:
        require_room(center.cash if pocket == "cash" else center.credit_available, amount)
    _permit(book, step, command, center.finance_roles)
    funds.require_transferable(account, command.direction, pocket)
    transfer = funds.transfer_to_account if to_account else funds.transfer_to_business_center
    transfer(step, account, pocket, amount)
    return [center, account]


def _enable(book: Book, step: Step, command: types.EnableAutomaticAllocation) -> Changed:
    center = _center(book, command)
    automatic_allocation.require_balances_fit(center, book.policy.rules)
    _permit(book, step, command, center.finance_roles)
    require(center.automatic_since is None, "already_exists", "automatic allocation is enabled already")
    return automatic_allocation.enable(step, center, book.now, book.position, book.policy)


def _disable(book: Book, step: Step, command: types.DisableAutomaticAllocation) -> Changed:
    center = _center(book, command)
    _permit(book, step, command, center.finance_roles)
    is_on = center.automatic_since is not None
    require(not is_on, "irreversible", "there is no way back from automatic to manual allocation")
    raise Refused("conflict", "automatic allocation is not enabled")


def _set_budget(book: Book, step: Step, command: types.SetBudget) -> Changed:
    amount = _budget_amount(command)
    center = _center(book, command)
    account = _account(center, command.ad_account_id)
    _permit(book, step, command, center.finance_roles)
    setting_budgets.require_change_left(account)
    setting_budgets.set_budget(step, account, command.mode, amount, book.now, book.position)
    book.schedule_turn_over(account)
    return [account]


def _reset_budget(book: Book, step: Step, command: types.ResetBudget) -> Changed:
    center = _center(book, command)
    account = _account(center, command.ad_account_id)
    _permit(book, step, command, center.finance_roles)
    setting_budgets.reset_budget(step, account, book.now, book.position)
    return [account]


def _set_campaign_budget(book: Book, step: Step, command: types.SetCampaignBudget) -> Changed:
    amount = _budget_amount(command)
    center = _center(book, command)
    account = _account(center, command.ad_account_id)
    _permit(book, step, command, center.finance_roles)
    existing = book.campaigns.find(account, command.campaign_id)
    memory_bounds.require_daily_budget(book.policy, center, existing, command.mode)
    campaign = existing or book.new_campaign(account, command.campaign_id)
    setting_budgets.set_campaign_budget(step, campaign, command.mode, amount)
    book.schedule_turn_over(account)
    return [campaign]


def _set_largest_spend(book: Book, step: Step, command: types.SetLargestSpend) -> Changed:
    require(book.policy.rules >= CENTERS_BOUNDED, "invalid", "these rules bound no spend")
    amount = command.amount
    if amount is not None:
        require_above_zero(amount)
    center = _center(book, command)
    _permit(book, step, command, center.finance_roles)
    book.bounded += (amount is not None) - center.bounds_spends()
    set_largest_spend(step, center, amount)
    return ()


def _center(book: Book, command: Command) -> BusinessCenter:
    id = command.business_center_id
    center = book.business_centers.get(id)
    if center is None:
        raise Refused("not_found", f"there is no Business Center {id}")
    return center


def _account(center: BusinessCenter, id: str) -> AdAccount:
    account = center.accounts.get(id)
    if account is None:
        raise Refused("not_found", f"the Business Center {center.id} has no ad account {id}")
    return account


def _permit(book: Book, step: Step, command: Command, finance_roles: bool) -> None:
    require_permission(command.role, command.type, finance_roles)
    if step.via == TOPIC and book.policy.topic is not None:
        book.policy.topic.require(command)


def _require_future(book: Book, expires_at: int | None) -> None:
    require(expires_at is None or expires_at > book.now, "invalid", "expires_at is in the past")


def _budget_amount(command: types.SetBudget | types.SetCampaignBudget) -> int | None:
    amount = command.amount
    if command.mode == "unlimited":
        require(amount is None, "invalid", "an unlimited budget has no amount")
        return None
    return require_above_zero(amount)


def _new_grant(
    book: Book,
    step: Step,
    center: BusinessCenter,
    command: types.GrantVoucher | types.GrantAdCredit,
    kind: str,
    id: str,
    campaign_ids: tuple[str, ...] | None = None,
) -> Grant:
    before = book.grant(center, kind, id)
    require(before is None, "already_exists", f"the Business Center has had a {kind} {id} before")
    campaigns = None if campaign_ids is None else frozenset(campaign_ids)
    memory_bounds.require_grant(book.policy, center, campaigns)
    return Grant(center, kind, id, book.position + len(step.entries) + 1, command.expires_at, campaigns)


_HANDLERS: dict[type[Command], Handler] = {
    types.OpenBusinessCenter: _open_business_center,
    types.OpenAdAccount: _open_ad_account,
    types.DepositCash: _deposit_cash,
    types.SetCreditLine: _set_credit_line,
    types.RepayCredit: _repay_credit,
    types.GrantVoucher: _grant_voucher,
    types.GrantAdCredit: _grant_ad_credit,
    types.AllocateAdCredit: _allocate_ad_credit,
    types.TransferBalance: _transfer_balance,
    types.EnableAutomaticAllocation: _enable,
    types.DisableAutomaticAllocation: _disable,
    types.SetBudget: _set_budget,
    types.ResetBudget: _reset_budget,
    types.SetCampaignBudget: _set_campaign_budget,
    types.SetLargestSpend: _set_largest_spend,
}
