"""The terms of a deal: their fields, and the rules between the fields (domain page, section 7.1)."""

from itertools import pairwise
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from services.incentives.rating import Method
from shared.contracts.fields import Amount, Currency, Day, Identifier
from shared.contracts.patterns import RATE
from shared.contracts.zones import installed_zones, is_zone
from shared.rules.money import parse_amount

AD_ACCOUNTS_AT_MOST: Final = 1000
SLABS_AT_MOST: Final = 100


def _time_zone(text: str) -> str:
    if not is_zone(text):
        raise ValueError("should be the name of a time zone of the IANA database, such as Asia/Tokyo")
    return text


Rate = Annotated[str, Field(pattern=RATE, examples=["0.03"])]
TimeZone = Annotated[
    str,
    Field(max_length=64, examples=["Asia/Tokyo"], json_schema_extra={"enum": list(installed_zones().table)}),
    AfterValidator(_time_zone),
]
Client = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,200}$", examples=["Acme"])]


class SlabTerms(BaseModel):
    """The rate from this amount of cash spend on: a decimal fraction above 0, at most 1, with at most six places."""

    from_: Annotated[Amount, Field(alias="from", examples=["50000"])]
    rate: Rate


class DealTerms(BaseModel):
    """The terms of a deal. The first and the last day belong to the period; slabs ascend."""

    model_config = ConfigDict(frozen=True)
    client: Client
    ad_account_ids: Annotated[list[Identifier], Field(min_length=1, max_length=AD_ACCOUNTS_AT_MOST)]
    starts_on: Day
    ends_on: Day
    time_zone: TimeZone
    currency: Currency
    method: Method = "whole_spend"
    slabs: Annotated[list[SlabTerms], Field(min_length=1, max_length=SLABS_AT_MOST)]

    @model_validator(mode="after")
    def _in_order(self) -> "DealTerms":
        if self.ends_on < self.starts_on:
            raise ValueError("ends_on should not be before starts_on")
        amounts = [parse_amount(slab.from_) for slab in self.slabs]
        if any(low >= high for low, high in pairwise(amounts)):
            raise ValueError("slabs should ascend: the from of each should be above that of the slab before it")
        return self


DEAL_TERMS: Final[TypeAdapter[DealTerms]] = TypeAdapter(DealTerms)
