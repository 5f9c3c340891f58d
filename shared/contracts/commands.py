"""`finance.commands` and `finance.outcomes`.

The models check form: a message that fails here is no command (HTTP 400, quarantine on the topic).
What a command may do is decided by the rules, which answer with an outcome.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, TypeAdapter

from shared.contracts.fields import Amount, Currency, Identifier, Time, Uuid, parse_time
from shared.rules.money import parse_amount

TimeZone = Annotated[str, Field(pattern=r"^[A-Za-z0-9_+/-]{1,64}$")]
Role = Literal["admin", "finance_manager", "finance_analyst", "standard", "system"]


class Actor(BaseModel):
    """Who asks: the id names a person or system, the role decides what they may do."""

    model_config = ConfigDict(frozen=True)
    id: Identifier
    role: Role


class Command(BaseModel):
    """What every command carries. `issued_at` is kept and decides nothing."""

    model_config = ConfigDict(frozen=True)
    command_id: Uuid
    business_center_id: Identifier
    issued_at: Time
    actor: Actor


class OpenBusinessCenter(Command):
    """A company that will own ad accounts and a shared balance."""

    type: Literal["open_business_center"]
    currency: Currency
    time_zone: TimeZone
    finance_roles: StrictBool = True


class OpenAdAccount(Command):
    """An account of the Business Center."""

    type: Literal["open_ad_account"]
    ad_account_id: Identifier
    billing: Literal["monthly_invoicing", "prepay", "autopay"]
    buying_type: Literal["auction", "reservation"]
    time_zone: TimeZone
    owned: StrictBool = True


class DepositCash(Command):
    """Cash for the Business Center, or for the account named."""

    type: Literal["deposit_cash"]
    amount: Amount
    ad_account_id: Identifier | None = None


class SetCreditLine(Command):
    """What the Business Center may spend before it pays."""

    type: Literal["set_credit_line"]
    limit: Amount


class RepayCredit(Command):
    """An invoice was paid."""

    type: Literal["repay_credit"]
    amount: Amount


class GrantVoucher(Command):
    """A voucher for the Business Center, or for the account named; tied to campaigns with an account only."""

    type: Literal["grant_voucher"]
    voucher_id: Identifier
    amount: Amount
    expires_at: Time | None = None
    ad_account_id: Identifier | None = None
    campaign_ids: Annotated[list[Identifier], Field(max_length=1000)] | None = None


class GrantAdCredit(Command):
    """An ad credit for the Business Center's pool."""

    type: Literal["grant_ad_credit"]
    ad_credit_id: Identifier
    amount: Amount
    expires_at: Time | None = None


class AllocateAdCredit(Command):
    """Ad credit of the pool for one account."""

    type: Literal["allocate_ad_credit"]
    ad_credit_id: Identifier
    ad_account_id: Identifier
    amount: Amount


class TransferBalance(Command):
    """Cash or credit between the Business Center and one of its accounts."""

    type: Literal["transfer_balance"]
    ad_account_id: Identifier
    direction: Literal["to_ad_account", "to_business_center"]
    pocket: Literal["cash", "credit"]
    amount: Amount


class EnableAutomaticAllocation(Command):
    """From now on accounts draw on the Business Center."""

    type: Literal["enable_automatic_allocation"]


class DisableAutomaticAllocation(Command):
    """Always refused: there is no way back."""

    type: Literal["disable_automatic_allocation"]


class SetBudget(Command):
    """An account's budget; `amount` for all modes but `unlimited`."""

    type: Literal["set_budget"]
    ad_account_id: Identifier
    mode: Literal["daily", "monthly", "custom", "unlimited"]
    amount: Amount | None = None


class ResetBudget(Command):
    """A custom budget starts again."""

    type: Literal["reset_budget"]
    ad_account_id: Identifier


class SetCampaignBudget(Command):
    """A campaign's budget; `amount` for all modes but `unlimited`."""

    type: Literal["set_campaign_budget"]
    ad_account_id: Identifier
    campaign_id: Identifier
    mode: Literal["daily", "lifetime", "unlimited"]
    amount: Amount | None = None


AnyCommand = Annotated[
    OpenBusinessCenter
    | OpenAdAccount
    | DepositCash
    | SetCreditLine
    | RepayCredit
    | GrantVoucher
    | GrantAdCredit
    | AllocateAdCredit
    | TransferBalance
    | EnableAutomaticAllocation
    | DisableAutomaticAllocation
    | SetBudget
    | ResetBudget
    | SetCampaignBudget,
    Field(discriminator="type"),
]
FINANCE_COMMAND: TypeAdapter[Any] = TypeAdapter(AnyCommand)


def command_content(command: Command) -> dict[str, Any]:
    """The command as it is kept in the ledger: its fields as sent, without absent ones.

    UUIDs are lower case. Raises ValueError for a time that no calendar has.
    """
    content = command.model_dump(exclude_none=True)
    content["command_id"] = content["command_id"].lower()
    for name in ("issued_at", "expires_at"):
        if name in content:
            _check_time(name, content[name])
    return content


def _check_time(name: str, text: str) -> None:
    try:
        parse_time(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def command_meaning(content: dict[str, Any]) -> dict[str, Any]:
    """What a command's content means: amounts in micros, times in µs, the actor's role; `issued_at` decides nothing.

    This is what the rules decide on, and what two commands with one id must share to be the same.
    """
    meaning = {key: value for key, value in content.items() if key != "issued_at"}
    for key in ("amount", "limit"):
        if key in meaning:
            meaning[key] = parse_amount(meaning[key])
    if "expires_at" in meaning:
        meaning["expires_at"] = parse_time(meaning["expires_at"])
    if "campaign_ids" in meaning:
        meaning["campaign_ids"] = sorted(set(meaning["campaign_ids"]))
    meaning["role"] = meaning["actor"]["role"]
    return meaning


def same_content(content: dict[str, Any]) -> str:
    """A text that two commands share if they mean the same."""
    return json.dumps(command_meaning(content), sort_keys=True, separators=(",", ":"))
