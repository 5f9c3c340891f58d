"""`finance.commands` and `finance.outcomes`.

The models check form. A message that fails here is not a command: the API answers 400, and a record is quarantined.
The rules decide what a command may do, and answer with an outcome.

The models of commands have the names of the rules' classes (`command_types`), because they name the schemas of OpenAPI.
"""

from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Annotated, Any, Final, Literal, cast
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, TypeAdapter
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from shared.contracts import strict_json
from shared.contracts.fields import Amount, Currency, Identifier, Time, Uuid, parse_time, parse_uuid
from shared.rules import command_types
from shared.rules.entries import canonical_json
from shared.rules.money import parse_amount

# The fields of commands that are times.
TIMES: Final = ("issued_at", "expires_at")
# The ledger keeps only a hash of a longer refused command.
MOST_REFUSED_BYTES: Final = 1024
# The type of the pydantic error whose message is complete in itself.
NO_PREVIEW: Final = "no_preview"

TimeZone = Annotated[str, Field(pattern=r"^[A-Za-z0-9_+/-]{1,64}$")]
Role = Literal["admin", "finance_manager", "finance_analyst", "standard", "system"]


class Actor(BaseModel):
    """The sender of a command: `id` names a person or a system, and `role` decides what they may do."""

    model_config = ConfigDict(frozen=True)
    id: Identifier
    role: Role


def _no_preview(asked: Any) -> None:
    if asked is not None and asked is not False:
        raise PydanticCustomError(NO_PREVIEW, "preview is not available yet: leave it out")


class Command(BaseModel):
    """The fields of every command. `issued_at` is stored, but decides nothing.

    A preview is refused, because a command that asks for one would be executed.
    """

    model_config = ConfigDict(frozen=True)
    command_id: Uuid
    business_center_id: Identifier
    issued_at: Time
    actor: Actor
    preview: SkipJsonSchema[Annotated[Any, AfterValidator(_no_preview), Field(exclude=True)]] = None


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
    """Cash for the Business Center, or for the given account."""

    type: Literal["deposit_cash"]
    amount: Amount
    ad_account_id: Identifier | None = None


class SetCreditLine(Command):
    """The amount that the Business Center may spend before it pays."""

    type: Literal["set_credit_line"]
    limit: Amount


class RepayCredit(Command):
    """The payment of an invoice."""

    type: Literal["repay_credit"]
    amount: Amount


class GrantVoucher(Command):
    """A voucher for the Business Center, or for the given account. A voucher for an account may name campaigns."""

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
    """A part of the pool's ad credit, for one account."""

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
    """Switches the Business Center to automatic allocation: from then on its accounts draw on its balance."""

    type: Literal["enable_automatic_allocation"]


class DisableAutomaticAllocation(Command):
    """Switches back to manual allocation, which is always refused."""

    type: Literal["disable_automatic_allocation"]


class SetBudget(Command):
    """An account's budget. Every mode except `unlimited` needs an amount."""

    type: Literal["set_budget"]
    ad_account_id: Identifier
    mode: Literal["daily", "monthly", "custom", "unlimited"]
    amount: Amount | None = None


class ResetBudget(Command):
    """Starts an account's custom budget again, with nothing spent."""

    type: Literal["reset_budget"]
    ad_account_id: Identifier


class SetCampaignBudget(Command):
    """A campaign's budget. Every mode except `unlimited` needs an amount."""

    type: Literal["set_campaign_budget"]
    ad_account_id: Identifier
    campaign_id: Identifier
    mode: Literal["daily", "lifetime", "unlimited"]
    amount: Amount | None = None


class SetLargestSpend(Command):
    """The largest spend of the Business Center. A larger one is quarantined; without an amount there is no limit."""

    type: Literal["set_largest_spend"]
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
    | SetCampaignBudget
    | SetLargestSpend,
    Field(discriminator="type"),
]
FINANCE_COMMAND: TypeAdapter[Any] = TypeAdapter(AnyCommand)


def command_content(command: Command) -> dict[str, Any]:
    """Return the command as the ledger stores it: its fields as sent, without absent ones, with UUIDs in lower case.

    Raises ValueError for a time that does not exist in the calendar.
    """
    content = command.model_dump(exclude_none=True)
    content["command_id"] = content["command_id"].lower()
    for name in TIMES:
        if name in content:
            _check_time(name, content[name])
    return content


def _check_time(name: str, text: str) -> None:
    try:
        parse_time(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def command_meaning(content: dict[str, Any]) -> dict[str, Any]:
    """Return what the rules decide on: amounts in micros, times in µs, the actor's role; without `issued_at`.

    Two commands with one id are the same command if their meanings are equal.
    """
    meaning = {key: value for key, value in content.items() if key != "issued_at"}
    for key in command_types.AMOUNTS:
        if key in meaning:
            meaning[key] = parse_amount(meaning[key])
    for key in TIMES:
        if key in meaning:
            meaning[key] = parse_time(meaning[key])
    if "campaign_ids" in meaning:
        meaning["campaign_ids"] = sorted(set(meaning["campaign_ids"]))
    meaning["role"] = meaning["actor"]["role"]
    return meaning


_NAMES: Final = {type_: tuple(each.name for each in fields(kind)) for type_, kind in command_types.COMMANDS.items()}


@dataclass(frozen=True, slots=True)
class SentCommand:
    """A command as it was sent: the 16 bytes of its id, its content, what the rules decide, and its way (`ways`)."""

    id: bytes
    content: dict[str, Any]
    command: command_types.Command
    via: str


def sent_command(content: dict[str, Any], via: str) -> SentCommand:
    """Return the command of a content. Raise LookupError, TypeError, ValueError or AttributeError if it is no command.

    The ledger's contents were checked when they were sent, but the database accepts any JSON.
    """
    meaning = command_meaning(content)
    if "campaign_ids" in meaning:
        meaning["campaign_ids"] = tuple(meaning["campaign_ids"])
    named = {name: meaning[name] for name in _NAMES[content["type"]] if name in meaning}
    command = command_types.COMMANDS[content["type"]](**named)
    return SentCommand(parse_uuid(content["command_id"]), content, command, via)


def meaning_hash(content: dict[str, Any]) -> str:
    """Return the SHA-256 of a command's meaning: equal for equal commands, even if the ledger keeps only the hash."""
    if is_hash(content):
        return str(content["sha256"])
    return sha256(_canonical(command_meaning(content))).hexdigest()


def kept_content(text: str) -> dict[str, Any]:
    """Parse a command's content, or its hash, as the ledger stores it. Raises ValueError if it is neither.

    The database accepts any JSON. The result has an id, a Business Center, a type and a meaning.
    """
    content = strict_json.read(text.encode())
    try:
        if is_hash(content):
            _check_hash(content)
        else:
            command_meaning(content)
        UUID(content["command_id"])
        named = content["business_center_id"], content["type"]
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"it is not a command: {type(error).__name__}: {error}") from error
    if not all(isinstance(name, str) for name in named):
        raise ValueError("it is not a command: its Business Center and its type must be text")
    return cast("dict[str, Any]", content)


def kept_meaning_hash(text: str) -> str | None:
    """Return `meaning_hash` of what the ledger stores. None, which equals no command's, if that cannot be read."""
    try:
        return meaning_hash(kept_content(text))
    except ValueError:
        return None


def _check_hash(content: dict[str, Any]) -> None:
    if not (isinstance(content["sha256"], str) and type(content["bytes"]) is int):
        raise ValueError("it is not the hash of a command: that has a string, and a number of bytes")


def refused_content(content: dict[str, Any]) -> dict[str, Any]:
    """Return what the ledger stores of a refused command: all of a short one, only the hash of a longer one.

    Even the lowest role may cause any number of refusals, and the ledger keeps them forever.
    """
    size = len(_canonical(content))
    if size <= MOST_REFUSED_BYTES or is_hash(content):
        return content
    named = {name: content[name] for name in ("command_id", "type", "business_center_id")}
    return {**named, "sha256": meaning_hash(content), "bytes": size}


def is_hash(content: dict[str, Any]) -> bool:
    """Return whether this is the hash of a command instead of its content. No command has a field of that name."""
    return "sha256" in content


def _canonical(document: dict[str, Any]) -> bytes:
    return canonical_json(document).encode()
