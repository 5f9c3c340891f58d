"""Deals: registered and replaced, read, and their pacing (domain page, section 7)."""

import json
from collections.abc import Mapping
from datetime import date
from itertools import accumulate, pairwise
from typing import Annotated, Any

import asyncpg
import structlog
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from services.api.context import Api
from services.api.described.openapi import BODY_PROBLEMS, READ_PROBLEMS, UNREADABLE_DEAL
from services.api.door import patterns
from services.api.door.access import FinanceReader, FinanceWriter
from services.api.door.bodies import body_schema, read_body
from services.api.door.errors import ApiError, not_found, permission_denied
from services.api.door.tokens import Caller
from services.api.models import AfterId, Day, Instant, Limit, Money, PathId, Problem, time
from services.api.pieces import unhurried
from shared.contracts.fields import Amount, Currency, Identifier
from shared.contracts.zones import installed_zones, is_zone
from shared.rules.incentives import Method, format_rate, parse_rate
from shared.rules.money import format_micros, parse_amount

SLABS_AT_MOST = 100
# A page of deals ends early rather than name more ad accounts than this.
PAGE_ACCOUNTS = 10_000
router = APIRouter(tags=["deals"], responses=READ_PROBLEMS)


def _time_zone(text: str) -> str:
    if not is_zone(text):
        raise ValueError("should be the name of a time zone of the IANA database, such as Asia/Tokyo")
    return text


Rate = Annotated[str, Field(pattern=patterns.RATE, examples=["0.03"])]
TimeZone = Annotated[
    str,
    Field(max_length=64, examples=["Asia/Tokyo"], json_schema_extra={"enum": list(installed_zones().table)}),
    AfterValidator(_time_zone),
]
Client = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,200}$", examples=["Acme"])]


class SlabTerms(BaseModel):
    """From this amount of cash spend on, this rate: a decimal fraction above 0, at most 1, with at most six places."""

    from_: Annotated[Amount, Field(alias="from", examples=["50000"])]
    rate: Rate


class DealTerms(BaseModel):
    """What a deal says. The first and the last day belong to the period; slabs ascend."""

    model_config = ConfigDict(frozen=True)
    client: Client
    ad_account_ids: Annotated[list[Identifier], Field(min_length=1, max_length=1000)]
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
            raise ValueError("slabs should ascend: each from above the one before")
        return self


class Slab(BaseModel):
    """From this amount of cash spend on, this rate."""

    from_: Annotated[Money, Field(alias="from")]
    rate: Annotated[str, Field(examples=["0.03"])]


class Deal(BaseModel):
    """A deal as it is stored."""

    id: str
    client: str
    ad_account_ids: list[str]
    starts_on: str
    ends_on: str
    time_zone: str
    currency: str
    method: Method
    slabs: list[Slab]
    registered_at: Instant
    updated_at: Instant


class Deals(BaseModel):
    """A page of deals by id; `next` is null on the last page."""

    deals: list[Deal]
    next: str | None


# With the caller's scope as $1: are all ad accounts of the deal theirs? The first tells most deals of others.
_IS_VISIBLE = """($1::text[] IS NULL OR CASE
    WHEN (SELECT business_center_id FROM balance.ad_accounts WHERE ad_account_id = deals.ad_account_ids[1]) = ANY($1)
    THEN NOT EXISTS (
        SELECT FROM unnest(deals.ad_account_ids) AS of_deal (ad_account_id)
        LEFT JOIN balance.ad_accounts a USING (ad_account_id) WHERE (a.business_center_id = ANY($1)) IS NOT TRUE)
    ELSE false END)"""

DEAL_TERMS: TypeAdapter[DealTerms] = TypeAdapter(DealTerms)
_EXAMPLE = {
    "client": "Acme",
    "ad_account_ids": ["acct-1"],
    "starts_on": "2026-10-01",
    "ends_on": "2026-12-31",
    "time_zone": "Asia/Tokyo",
    "currency": "USD",
    "method": "whole_spend",
    "slabs": [{"from": "50000", "rate": "0.03"}, {"from": "100000", "rate": "0.05"}],
}


@router.put(
    "/v1/deals/{deal_id}",
    response_model=Deal,
    summary="Register a deal, or replace it",
    openapi_extra=body_schema(DEAL_TERMS, {"deal": _EXAMPLE}),
    responses={
        **BODY_PROBLEMS,
        201: {"model": Deal, "description": "Registered: there was none"},
        422: {"model": Problem, "description": "Unknown ad accounts, or of another currency"},
    },
)
async def put_deal(deal_id: PathId, request: Request, context: Api, caller: FinanceWriter) -> JSONResponse:
    """Register a deal (201), or replace and so re-rate it (200). Its ad accounts are all the caller's."""
    terms = await read_body(request, DEAL_TERMS)
    async with context.transaction() as connection:
        await _check_accounts(connection, caller, terms)
        row = await _store(connection, caller, deal_id, terms, context)
        if row is None:
            raise permission_denied("the deal of this id has ad accounts that are not yours")
    structlog.get_logger().info("a deal is registered", id=deal_id, by=caller.id)
    return JSONResponse(_deal(row), 201 if row["is_new"] else 200)


@router.get("/v1/deals", response_model=Deals, summary="List deals")
async def list_deals(context: Api, caller: FinanceReader, limit: Limit = 100, after: AfterId = None) -> dict[str, Any]:
    """A page of the deals of which all ad accounts are the caller's, by id.

    A page may be shorter than `limit`: `next` says whether there is more.
    """
    async with context.snapshot() as connection:
        rows = await connection.fetch(
            f"""
            SELECT * FROM (
                SELECT *, sum(cardinality(ad_account_ids)) OVER (ORDER BY id) - cardinality(ad_account_ids) AS before
                FROM (
                    SELECT * FROM incentives.deals WHERE {_IS_VISIBLE} AND id > $2 ORDER BY id LIMIT $3
                ) AS few
            ) AS counted WHERE before <= $4 ORDER BY id
            """,  # noqa: S608
            caller.scope,
            after or "",
            limit + 1,
            PAGE_ACCOUNTS,
        )
    page = rows[: _fitting(rows[:limit])]
    return {
        "deals": [_deal(row) async for row in unhurried(page) if _is_readable(row)],
        "next": page[-1]["id"] if len(page) < len(rows) else None,
    }


def _fitting(rows: list[asyncpg.Record]) -> int:
    """How many of these deals a page carries: at least one, if there is one."""
    accounts = accumulate(len(row["ad_account_ids"]) for row in rows)
    return max(sum(total <= PAGE_ACCOUNTS for total in accounts), min(1, len(rows)))


@router.get("/v1/deals/{deal_id}", response_model=Deal, summary="A deal as it is stored", responses=UNREADABLE_DEAL)
async def get_deal(deal_id: PathId, context: Api, caller: FinanceReader) -> dict[str, Any]:
    """One deal."""
    async with context.snapshot() as connection:
        return _deal(await read_deal(connection, caller, deal_id))


async def read_deal(connection: asyncpg.Connection, caller: Caller, deal_id: str) -> asyncpg.Record:
    """The deal's row. Raises ApiError: 404 when there is none, or it is not the caller's; 409, it cannot be read."""
    row = await connection.fetchrow(
        f"SELECT * FROM incentives.deals WHERE {_IS_VISIBLE} AND id = $2",  # noqa: S608
        caller.scope,
        deal_id,
    )
    if row is None:
        raise not_found("deal")
    if not _is_readable(row):
        raise ApiError(409, "conflict", f"what is stored as deal {deal_id} is no deal: register it again")
    return row


def _is_readable(row: asyncpg.Record) -> bool:
    """Whether this is what could have been registered: else somebody else wrote it, and other deals must not suffer."""
    terms = {name: row[name] for name in DealTerms.model_fields}
    try:
        days = {name: terms[name].isoformat() for name in ("starts_on", "ends_on")}
        DEAL_TERMS.validate_python({**terms, **days, "slabs": json.loads(terms["slabs"])}, strict=True)
    except (ValueError, RecursionError):
        structlog.get_logger().error("a deal cannot be read", id=row["id"])
        return False
    return True


async def _check_accounts(connection: asyncpg.Connection, caller: Caller, terms: DealTerms) -> None:
    """Raises ApiError (422): an account that is not there, or one whose Business Center has another currency."""
    rows = await connection.fetch(
        """
        SELECT a.ad_account_id, b.currency
        FROM balance.ad_accounts a JOIN balance.business_centers b USING (business_center_id)
        WHERE a.ad_account_id = ANY($1) AND ($2::text[] IS NULL OR business_center_id = ANY($2))
        """,
        terms.ad_account_ids,
        caller.scope,
    )
    currencies = {row["ad_account_id"]: row["currency"] for row in rows}
    for ad_account_id in terms.ad_account_ids:
        currency = currencies.get(ad_account_id)
        if currency is None:
            raise ApiError(422, "not_found", f"there is no ad account {ad_account_id}")
        if currency != terms.currency:
            message = f"ad account {ad_account_id} has the currency {currency}, the deal {terms.currency}"
            raise ApiError(422, "currency_mismatch", message)


async def _store(
    connection: asyncpg.Connection, caller: Caller, deal_id: str, terms: DealTerms, context: Api
) -> asyncpg.Record | None:
    """The deal's row, or None: there is a deal of this id, and it is not the caller's."""
    return await connection.fetchrow(
        f"""
        INSERT INTO incentives.deals (id, client, ad_account_ids, starts_on, ends_on, time_zone, currency, method,
                                      slabs, registered_at, updated_at)
        VALUES ($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11)
        ON CONFLICT (id) DO UPDATE SET
            client = excluded.client, ad_account_ids = excluded.ad_account_ids, starts_on = excluded.starts_on,
            ends_on = excluded.ends_on, time_zone = excluded.time_zone, currency = excluded.currency,
            method = excluded.method, slabs = excluded.slabs, updated_at = excluded.updated_at
            WHERE {_IS_VISIBLE}
        RETURNING *, xmax = 0 AS is_new
        """,  # noqa: S608
        caller.scope,
        deal_id,
        terms.client,
        list(dict.fromkeys(terms.ad_account_ids)),
        date.fromisoformat(terms.starts_on),
        date.fromisoformat(terms.ends_on),
        terms.time_zone,
        terms.currency,
        terms.method,
        json.dumps([slab.model_dump(by_alias=True) for slab in terms.slabs]),
        context.clock.now(),
    )


def _deal(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("id", "client", "ad_account_ids", "time_zone", "currency", "method")
    return {
        **{name: row[name] for name in names},
        "starts_on": row["starts_on"].isoformat(),
        "ends_on": row["ends_on"].isoformat(),
        "slabs": [
            {
                "from": format_micros(parse_amount(slab["from"])),
                "rate": format_rate(parse_rate(slab["rate"])),
            }
            for slab in json.loads(row["slabs"])
        ],
        "registered_at": time(row["registered_at"]),
        "updated_at": time(row["updated_at"]),
    }
