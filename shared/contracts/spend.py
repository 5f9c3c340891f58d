"""`spend.events`: the spends and reversals that ad delivery publishes."""

from typing import Annotated, Literal, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict

from shared.contracts.fields import Amount, Currency, Identifier, Time, Uuid


class Spend(TypedDict):
    """One charge. `amount` is above zero; `occurred_at` decides the budget period."""

    type: Literal["spend"]
    event_id: Uuid
    business_center_id: Identifier
    ad_account_id: Identifier
    campaign_id: Identifier
    amount: Amount
    currency: Currency
    occurred_at: Time


class Reversal(TypedDict):
    """The reversal of `amount` of the spend whose event id is `reverses`."""

    type: Literal["reversal"]
    event_id: Uuid
    reverses: Uuid
    business_center_id: Identifier
    ad_account_id: Identifier
    campaign_id: Identifier
    amount: Amount
    currency: Currency
    occurred_at: Time
    reason: NotRequired[Annotated[str, Field(max_length=256)] | None]


SpendEvent = Annotated[Spend | Reversal, Field(discriminator="type")]
# Values hardly ever repeat: caching them would take a quarter of the time of validation.
SPEND_EVENT: TypeAdapter[Spend | Reversal] = TypeAdapter(SpendEvent, config=ConfigDict(cache_strings="keys"))
