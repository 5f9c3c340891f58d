"""Finance commands: refused with a code, or applied (domain page, sections 2 to 4, and contracts page).

The checks follow the order of the codes on the contracts page.
"""

from collections import Counter
from importlib.resources import files
from typing import Any

from tests.model.budgets import restart_custom, set_account_budget
from tests.model.days import day_of
from tests.model.forms import instant, micros
from tests.model.state import AdAccount, BusinessCenter, Campaign, Grant, Setting

Command = dict[str, Any]
LARGEST_BALANCE = 2**63 - 1
CHANGES_PER_DAY = 10
_ZONES = frozenset(files("tzdata").joinpath("zones").read_text().split())

# Our own readings, because the page names no code for these.
RESET_OF_ANOTHER_MODE = "not_eligible"


class Refused(Exception):  # noqa: N818 - a refusal is no error
    """Raised for a refused command, with the code as its argument."""


def _refuse_if(condition: bool, code: str) -> None:
    if condition:
        raise Refused(code)


def _permit(finance_roles: bool, command: Command) -> None:
    """Raise Refused if the role may not give this command (4.7)."""
    allowed = {"admin", "finance_manager"} if finance_roles else {"admin"}
    if command["type"] == "set_campaign_budget":
        allowed.add("standard")
    elif command["type"] not in ("set_budget", "reset_budget"):
        allowed.add("system")
    _refuse_if(command["actor"]["role"] not in allowed, "permission_denied")


def _is_zone(name: str) -> bool:
    """Return whether the tzdata package lists this zone. `Factory` stands for no place, so it is excluded."""
    return name in _ZONES and name != "Factory"


def _broken_by_itself(command: Command, now: int) -> bool:
    finite = command.get("mode", "unlimited") != "unlimited"
    campaigns = command.get("campaign_ids")
    return any(
        (
            "amount" in command and micros(command["amount"]) == 0,
            finite and "amount" not in command,
            "time_zone" in command and not _is_zone(command["time_zone"]),
            "expires_at" in command and instant(command["expires_at"]) <= now,
            campaigns is not None and (not campaigns or command.get("ad_account_id") is None),
        )
    )


class Desk:
    """The commands of all Business Centers. Ids of ad accounts are unique across the platform."""

    def __init__(self, centers: dict[str, BusinessCenter]) -> None:
        self.centers = centers
        self.grants = 0

    def apply(self, command: Command, now: int) -> None:
        """Apply a command. Raise Refused, with nothing changed, if it is refused."""
        _refuse_if(_broken_by_itself(command, now), "invalid")
        if command["type"] == "open_business_center":
            self._open_business_center(command, now)
            return
        center = self.centers.get(command["business_center_id"])
        if center is None:
            raise Refused("not_found")
        if command["type"] == "repay_credit":
            _refuse_if(micros(command["amount"]) > center.used, "invalid")
        getattr(self, f"_{command['type']}")(center, command, now)

    def _account(self, center: BusinessCenter, command: Command) -> AdAccount:
        account = center.accounts.get(command["ad_account_id"])
        if account is None:
            raise Refused("not_found")
        return account

    def _open_business_center(self, command: Command, now: int) -> None:
        roles = command.get("finance_roles", True)
        _permit(roles, command)
        name = command["business_center_id"]
        _refuse_if(name in self.centers, "already_exists")
        self.centers[name] = BusinessCenter(name, command["currency"], command["time_zone"], roles, now)

    def _open_ad_account(self, center: BusinessCenter, command: Command, now: int) -> None:
        _permit(center.finance_roles, command)
        name = command["ad_account_id"]
        _refuse_if(any(name in each.accounts for each in self.centers.values()), "already_exists")
        account = AdAccount(
            name, command["billing"], command["buying_type"], command["time_zone"], command.get("owned", True)
        )
        center.accounts[name] = account
        if center.enabled_at is not None and account.left_out is not None:  # opened later, and no part either
            center.left_out[name] = account.left_out

    def _deposit_cash(self, center: BusinessCenter, command: Command, now: int) -> None:
        target: BusinessCenter | AdAccount = center
        if command.get("ad_account_id") is not None:
            target = self._account(center, command)
        _refuse_if(target.cash + micros(command["amount"]) > LARGEST_BALANCE, "invalid")
        _permit(center.finance_roles, command)
        target.cash += micros(command["amount"])

    def _set_credit_line(self, center: BusinessCenter, command: Command, now: int) -> None:
        _permit(center.finance_roles, command)
        center.limit = micros(command["limit"])

    def _repay_credit(self, center: BusinessCenter, command: Command, now: int) -> None:
        _permit(center.finance_roles, command)
        center.used -= micros(command["amount"])

    def _grant_voucher(self, center: BusinessCenter, command: Command, now: int) -> None:
        home = command.get("ad_account_id")
        if home is not None:
            self._account(center, command)
        _permit(center.finance_roles, command)
        _refuse_if(command["voucher_id"] in center.vouchers, "already_exists")
        grant = self._grant(command["voucher_id"], "voucher", command, home)
        center.vouchers[grant.grant_id] = grant

    def _grant_ad_credit(self, center: BusinessCenter, command: Command, now: int) -> None:
        _permit(center.finance_roles, command)
        _refuse_if(command["ad_credit_id"] in center.ad_credits, "already_exists")
        grant = self._grant(command["ad_credit_id"], "ad_credit", command, None)
        center.ad_credits[grant.grant_id] = grant

    def _grant(self, grant_id: str, pocket: str, command: Command, home: str | None) -> Grant:
        self.grants += 1
        expires_at = instant(command["expires_at"]) if "expires_at" in command else None
        campaigns = frozenset(command["campaign_ids"]) if command.get("campaign_ids") else None
        amounts = Counter({home: micros(command["amount"])})
        return Grant(grant_id, pocket, self.grants, expires_at, campaigns, home, amounts)

    def _allocate_ad_credit(self, center: BusinessCenter, command: Command, now: int) -> None:
        account = self._account(center, command)
        grant = center.ad_credits.get(command["ad_credit_id"])
        if grant is None:
            raise Refused("not_found")
        _permit(center.finance_roles, command)
        amount = micros(command["amount"])
        _refuse_if(grant.lies[None] < amount, "insufficient_funds")
        grant.lies[None] -= amount
        grant.lies[account.ad_account_id] += amount

    def _transfer_balance(self, center: BusinessCenter, command: Command, now: int) -> None:
        account = self._account(center, command)
        _permit(center.finance_roles, command)
        to_account, is_credit = command["direction"] == "to_ad_account", command["pocket"] == "credit"
        _refuse_if(is_credit and account.billing == "prepay", "not_eligible")
        _refuse_if(to_account and center.takes_part(account), "not_eligible")
        amount = micros(command["amount"])
        shared = center.credit_available if is_credit else center.cash
        own = account.credit if is_credit else account.cash
        _refuse_if(amount > (shared if to_account else own), "insufficient_funds")
        moved = amount if to_account else -amount
        if is_credit:
            center.used += moved
            account.credit += moved
        else:
            center.cash -= moved
            account.cash += moved

    def _enable_automatic_allocation(self, center: BusinessCenter, command: Command, now: int) -> None:
        _permit(center.finance_roles, command)
        _refuse_if(center.enabled_at is not None, "already_exists")
        center.enabled_at = now
        for account in center.accounts.values():
            if account.left_out is not None:
                center.left_out[account.ad_account_id] = account.left_out
            else:
                self._hand_over(center, account, now)

    def _hand_over(self, center: BusinessCenter, account: AdAccount, now: int) -> None:
        """Sync the budget, then move the account's balance to the Business Center (3.3, 3.4)."""
        if account.settings[-1].mode == "unlimited":
            set_account_budget(account, "custom", center.own_balance(account), now)
        center.cash += account.cash
        center.used -= account.credit
        account.cash = account.credit = 0
        for voucher in center.vouchers.values():
            if voucher.home == account.ad_account_id and voucher.campaigns is None:
                voucher.home = None
                voucher.lies[None] += voucher.lies.pop(account.ad_account_id, 0)

    def _disable_automatic_allocation(self, center: BusinessCenter, command: Command, now: int) -> None:
        _permit(center.finance_roles, command)
        raise Refused("conflict" if center.enabled_at is None else "irreversible")

    def _set_budget(self, center: BusinessCenter, command: Command, now: int) -> None:
        account = self._account(center, command)
        _permit(center.finance_roles, command)
        today = day_of(now, account.time_zone)
        _refuse_if(account.changes[today] >= CHANGES_PER_DAY, "budget_change_limit")
        account.changes[today] += 1
        set_account_budget(account, command["mode"], micros(command.get("amount", "0")), now)

    def _reset_budget(self, center: BusinessCenter, command: Command, now: int) -> None:
        account = self._account(center, command)
        _permit(center.finance_roles, command)
        _refuse_if(account.settings[-1].mode != "custom", RESET_OF_ANOTHER_MODE)
        restart_custom(account, now)

    def _set_largest_spend(self, center: BusinessCenter, command: Command, now: int) -> None:
        _permit(center.finance_roles, command)
        center.largest_spend = micros(command["amount"]) if "amount" in command else None

    def _set_campaign_budget(self, center: BusinessCenter, command: Command, now: int) -> None:
        account = self._account(center, command)
        _permit(center.finance_roles, command)
        campaign = account.campaigns.setdefault(command["campaign_id"], Campaign(command["campaign_id"]))
        campaign.settings.append(Setting(now, command["mode"], micros(command.get("amount", "0"))))
