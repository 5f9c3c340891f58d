"""Models of the answers, for OpenAPI. Amounts are decimal strings with six places, times are RFC 3339."""

import re
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final

from fastapi import Path, Query
from pydantic import BaseModel, BeforeValidator, Field

from shared.contracts.fields import IDENTIFIER_PATTERN, format_time
from shared.contracts.known import known
from shared.contracts.signals import Cause
from shared.rules import vocabulary
from shared.rules.instants import from_datetime
from shared.rules.money import format_micros

_INTEGER = re.compile(r"0|[1-9][0-9]*")


def _written_as_in_json(text: Any) -> Any:
    if isinstance(text, str) and _INTEGER.fullmatch(text) is None:
        raise ValueError("should be an integer as JSON writes it, such as 100")
    return text


# Stands last in the annotation of an integer of the query: pydantic alone would also accept "+1", "1.0", "01" and " 1".
INTEGER: Final = BeforeValidator(_written_as_in_json)
Money = Annotated[str, Field(examples=["12.345678"])]
Instant = Annotated[str, Field(examples=["2026-11-21T12:00:00.000000Z"])]
PathId = Annotated[str, Path(pattern=IDENTIFIER_PATTERN)]
Limit = Annotated[int, Query(ge=1, le=1000, description="The largest number of items"), INTEGER]
AfterId = Annotated[str | None, Query(pattern=IDENTIFIER_PATTERN, description="The `next` of the previous page")]


def time(moment: datetime) -> str:
    """Format a moment as RFC 3339, in UTC."""
    return format_time(from_datetime(moment))


def money(micros: Decimal | int) -> str:
    """Format micros, as the database returns them, as a decimal string."""
    return format_micros(int(micros))


class Problem(BaseModel):
    """The answer of every error."""

    code: Annotated[str, Field(examples=["not_found"])]
    message: Annotated[str, Field(examples=["there is no such ad account"])]


class Outcome(BaseModel):
    """The outcome of a command; `code` is null if it was accepted.

    `via` says how the decided command came: `api`, or `topic`, where every writer of `finance.commands` may
    name any actor. It is null for commands that an older version decided.
    """

    command_id: str
    business_center_id: str
    type: str
    status: Annotated[str, known(*vocabulary.OUTCOME_STATUSES)]
    code: Annotated[str, known(*vocabulary.OUTCOME_CODES)] | None
    message: str
    shard: int
    position: int
    recorded_at: Instant
    via: Annotated[str, known(*vocabulary.WAYS)] | None


class ShardPosition(BaseModel):
    """How far one shard was read."""

    shard: int
    position: int


class AsOf(BaseModel):
    """How far the read model has got; `recorded_at` is null until it has read something."""

    recorded_at: Instant | None
    shards: list[ShardPosition]


class Spend(BaseModel):
    """Spend net of reversals: gross = billed + overdelivered."""

    gross: Money
    billed: Money
    overdelivered: Money


class CreditLine(BaseModel):
    """available = limit - used. Both `available` and `used` may be negative."""

    limit: Money
    used: Money
    available: Money


class BusinessCenterBalance(BaseModel):
    """The balance of a Business Center. `available` can be drawn; it does not include the pool of ad credit."""

    cash: Money
    voucher: Money
    credit_line: CreditLine
    available: Money
    ad_credit: Money


class LeftOut(BaseModel):
    """An ad account that automatic allocation left out, and why."""

    ad_account_id: str
    reason: Annotated[str, known(*vocabulary.LEFT_OUT_REASONS)]


class AutomaticAllocation(BaseModel):
    """Automatic Balance Allocation of a Business Center."""

    enabled: bool
    enabled_at: Instant | None
    left_out: list[LeftOut]


class BusinessCenterFields(BaseModel):
    """A Business Center as the list shows it.

    A spend above `largest_spend` waits in quarantine, as `amount_unusual`; null means no bound.
    """

    business_center_id: str
    currency: str
    time_zone: str
    balance: BusinessCenterBalance
    automatic_allocation: AutomaticAllocation
    largest_spend: Money | None
    spend: Spend


class BusinessCenter(BusinessCenterFields):
    """A Business Center: the company that owns ad accounts and a shared balance."""

    as_of: AsOf


class BusinessCenters(BaseModel):
    """A page of Business Centers by id; `next` is null on the last page."""

    business_centers: list[BusinessCenterFields]
    next: str | None
    as_of: AsOf


class AdAccountBalance(BaseModel):
    """The balance of an ad account itself."""

    voucher: Money
    ad_credit: Money
    cash: Money
    credit: Money
    available: Money


class Budget(BaseModel):
    """A budget and what its current period has spent; the amounts of an unlimited budget are null."""

    mode: Annotated[str, known(*vocabulary.BUDGET_MODES)]
    amount: Money | None = None
    spent: Money | None = None
    remaining: Money | None = None
    period_start: Instant | None = None


class AdAccountBudget(Budget):
    """The budget of an ad account. It can be changed ten times on a day of the account."""

    changes_today: int
    changes_remaining: int


class Delivery(BaseModel):
    """An ad account delivers while it has no causes."""

    delivering: bool
    causes: list[Cause]


class CampaignDelivery(Delivery):
    """A campaign delivers while neither it nor its ad account has causes."""

    ad_account_causes: list[Cause]


class AdAccountFields(BaseModel):
    """An ad account as the list shows it."""

    ad_account_id: str
    business_center_id: str
    billing: str
    buying_type: str
    time_zone: str
    automatic_allocation: bool
    balance: AdAccountBalance
    budget: AdAccountBudget
    delivery: Delivery
    spend: Spend


class AdAccount(AdAccountFields):
    """An ad account: it buys ads."""

    as_of: AsOf


class AdAccounts(BaseModel):
    """A page of a Business Center's ad accounts by id; `next` is null on the last page."""

    ad_accounts: list[AdAccountFields]
    next: str | None
    as_of: AsOf


class Campaign(BaseModel):
    """A campaign of an ad account."""

    ad_account_id: str
    campaign_id: str
    business_center_id: str
    budget: Budget
    delivery: CampaignDelivery
    spend: Spend
    as_of: AsOf


class Entry(BaseModel):
    """An entry of the ledger; `amount` is signed, and null for facts without money."""

    shard: int
    position: int
    kind: Annotated[str, known(*vocabulary.ENTRY_KINDS)]
    holder: Annotated[str, known(*vocabulary.HOLDERS)] | None
    pocket: Annotated[str, known(*vocabulary.POCKETS)] | None
    grant_id: str | None
    amount: Money | None
    business_center_id: str
    ad_account_id: str | None
    campaign_id: str | None
    source_event_id: str | None
    part: int
    occurred_at: Instant
    recorded_at: Instant
    day: str | None
    period: str | None
    cause: Cause | None
    causes: list[Cause] | None
    reverses: str | None
    details: dict[str, Any] | None


class Entries(BaseModel):
    """Entries by shard and position. Pass `next` as `after` for the next page; null means none for now."""

    entries: list[Entry]
    next: str | None
