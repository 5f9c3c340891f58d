"""The facts that the past is read from: an ad account's budgets and pauses, as entries of the ledger hold them.

docs/ledger.md describes their details. The rules write no others, but the database accepts any JSON there, and the
writer's login could store it. The API then answers 409 and says so, instead of failing.
"""

from dataclasses import dataclass
from datetime import date
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from services.api.door.errors import unreadable
from shared.rules.vocabulary import BUDGET_KINDS, BUDGET_MODES, DELIVERY_KINDS

# Microseconds from 1970 to the year 3000, in which ledger time lies (shared/ledger/schema).
_Moment = Annotated[int, Field(ge=0, lt=32_503_680_000_000_000)]


class _Details(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class CampaignBudgetDetails(_Details):
    """A campaign's budget. `amount` is in micros, and None if it is unlimited."""

    mode: str
    amount: int | None

    @model_validator(mode="after")
    def _check_amount(self) -> Self:
        if self.mode not in BUDGET_MODES or (self.amount is None) != (self.mode == "unlimited"):
            raise ValueError("a budget has a known mode, and an amount unless it is unlimited")
        return self


class BudgetDetails(CampaignBudgetDetails):
    """An ad account's budget. `started_at` is in µs since the Unix epoch, and None if it is not a custom one."""

    started_at: _Moment | None
    restarted: bool
    day: date
    changes_today: int


class DeliveryDetails(_Details):
    """The causes for which the entity is paused after this entry."""

    causes: list[str]


Details = BudgetDetails | CampaignBudgetDetails | DeliveryDetails
FACTS: Final[dict[str, TypeAdapter[Details]]] = {
    **dict.fromkeys(BUDGET_KINDS, TypeAdapter(BudgetDetails)),
    "campaign_budget_set": TypeAdapter(CampaignBudgetDetails),
    **dict.fromkeys(DELIVERY_KINDS, TypeAdapter(DeliveryDetails)),
}


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact about an ad account, or about a campaign of it."""

    position: int
    campaign_id: str | None
    details: Details


def parse_fact(shard: int, position: int, kind: str, campaign_id: str | None, details: str | None) -> Fact:
    """Return a stored fact. Raise ApiError (409) if its details are not those of its kind."""
    try:
        return Fact(position, campaign_id, FACTS[kind].validate_json(details or "null"))
    except ValidationError:
        raise unreadable(f"the entry at position {position} of shard {shard}") from None
