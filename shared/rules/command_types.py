"""Finance commands in the form that the rules take: amounts in micros, times in µs since the Unix epoch.

Source: the contracts page, `finance.commands`. `shared.contracts.commands` checks the form of a command and makes one
of these. Whether it may happen is decided in `commands`. Those models have the same names, which OpenAPI shows.
"""

from dataclasses import dataclass
from typing import ClassVar, Final

# The fields of commands that are amounts of money, of every type.
AMOUNTS: Final = ("amount", "limit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """The fields of every command that decide anything. `role` is that of the actor, `type` its name outside."""

    type: ClassVar[str]
    business_center_id: str
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenBusinessCenter(Command):
    """Open a Business Center."""

    type = "open_business_center"
    currency: str
    time_zone: str
    finance_roles: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAdAccount(Command):
    """Open an ad account of the Business Center."""

    type = "open_ad_account"
    ad_account_id: str
    billing: str
    buying_type: str
    time_zone: str
    owned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DepositCash(Command):
    """Give cash to the ad account, or to the Business Center if none is named."""

    type = "deposit_cash"
    amount: int
    ad_account_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SetCreditLine(Command):
    """Set the limit of the Business Center's credit line."""

    type = "set_credit_line"
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RepayCredit(Command):
    """Repay used credit of the Business Center."""

    type = "repay_credit"
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantVoucher(Command):
    """Grant a voucher to the ad account, or to the Business Center. `campaign_ids` are those that it is tied to."""

    type = "grant_voucher"
    voucher_id: str
    amount: int
    expires_at: int | None = None
    ad_account_id: str | None = None
    campaign_ids: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantAdCredit(Command):
    """Grant ad credit to the Business Center's pool."""

    type = "grant_ad_credit"
    ad_credit_id: str
    amount: int
    expires_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocateAdCredit(Command):
    """Allocate a part of an ad credit to an ad account by hand."""

    type = "allocate_ad_credit"
    ad_credit_id: str
    ad_account_id: str
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferBalance(Command):
    """Transfer cash or credit between the Business Center and an ad account."""

    type = "transfer_balance"
    ad_account_id: str
    direction: str
    pocket: str
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EnableAutomaticAllocation(Command):
    """Switch the Business Center to Automatic Balance Allocation."""

    type = "enable_automatic_allocation"


@dataclass(frozen=True, slots=True, kw_only=True)
class DisableAutomaticAllocation(Command):
    """Switch back, which is always refused."""

    type = "disable_automatic_allocation"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetBudget(Command):
    """Set the budget of an ad account."""

    type = "set_budget"
    ad_account_id: str
    mode: str
    amount: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetBudget(Command):
    """Start the custom budget of an ad account again."""

    type = "reset_budget"
    ad_account_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SetCampaignBudget(Command):
    """Set the budget of a campaign."""

    type = "set_campaign_budget"
    ad_account_id: str
    campaign_id: str
    mode: str
    amount: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SetLargestSpend(Command):
    """Set the largest single spend of the Business Center. None means that there is no limit."""

    type = "set_largest_spend"
    amount: int | None = None


COMMANDS: Final[dict[str, type[Command]]] = {
    each.type: each
    for each in (
        OpenBusinessCenter,
        OpenAdAccount,
        DepositCash,
        SetCreditLine,
        RepayCredit,
        GrantVoucher,
        GrantAdCredit,
        AllocateAdCredit,
        TransferBalance,
        EnableAutomaticAllocation,
        DisableAutomaticAllocation,
        SetBudget,
        ResetBudget,
        SetCampaignBudget,
        SetLargestSpend,
    )
}
