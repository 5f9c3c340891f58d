"""Deals: registered and replaced, and read (domain page, section 7.1)."""

from typing import Annotated, Any

import asyncpg
import structlog
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from services.api.checkpoints import Checkpoints, read_checkpoints
from services.api.context import Api
from services.api.described.openapi import BODY_PROBLEMS, READ_PROBLEMS, UNREADABLE_DEAL
from services.api.door.access import FinanceReader, FinanceWriter
from services.api.door.bodies import body_schema, read_body
from services.api.door.errors import ApiError, not_found, permission_denied
from services.api.door.tokens import Caller
from services.api.models import AfterId, Instant, Limit, Money, PathId, Problem, money, time
from services.api.pieces import unhurried
from services.incentives import cash_spend, deals
from services.incentives.rating import Method, format_rate
from services.incentives.terms import DEAL_TERMS
from shared.rules.calendar import date_text
from shared.rules.refusal import Refused

router = APIRouter(tags=["deals"], responses=READ_PROBLEMS)


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
        try:
            written = await deals.register_deal(connection, caller.scope, deal_id, terms, context.clock.now())
        except Refused as refused:
            raise ApiError(422, refused.code, refused.message) from None
        if written is None:
            raise permission_denied("the deal of this id has ad accounts that are not yours")
    structlog.get_logger().info("a deal is registered", id=deal_id, by=caller.id)
    return JSONResponse(_answer(written.deal), 201 if written.is_new else 200)


@router.get("/v1/deals", response_model=Deals, summary="List deals")
async def list_deals(context: Api, caller: FinanceReader, limit: Limit = 100, after: AfterId = None) -> dict[str, Any]:
    """A page of the deals of which all ad accounts are the caller's, by id.

    A page may be shorter than `limit`: `next` says whether there is more.
    """
    async with context.snapshot() as connection:
        page = await deals.read_page(connection, caller.scope, after or "", limit)
    found = [_answer(deal) async for deal in unhurried(map(_parse, page.rows)) if deal is not None]
    return {"deals": found, "next": page.next}


@router.get("/v1/deals/{deal_id}", response_model=Deal, summary="A deal as it is stored", responses=UNREADABLE_DEAL)
async def get_deal(deal_id: PathId, context: Api, caller: FinanceReader) -> dict[str, Any]:
    """One deal."""
    async with context.snapshot() as connection:
        return _answer(await read_deal(connection, caller, deal_id))


async def read_deal(connection: asyncpg.Connection, caller: Caller, deal_id: str) -> deals.Deal:
    """Return the deal that a route names.

    Raises:
        ApiError: 404 if there is none of this id, or it is not the caller's; 409 if what is stored is no deal.

    """
    try:
        deal = await deals.read_deal(connection, caller.scope, deal_id)
    except deals.UnreadableDealError:
        message = f"what is stored as deal {deal_id} is no deal: register it again"
        raise ApiError(409, "conflict", message) from None
    if deal is None:
        raise not_found("deal")
    return deal


async def read_deal_checkpoints(connection: asyncpg.Connection, deal: deals.Deal) -> Checkpoints:
    """Return how far cash spend had been read in the shards of the deal's ad accounts."""
    return await read_checkpoints(connection, "incentives", await cash_spend.read_shards(connection, deal))


def _parse(row: asyncpg.Record) -> deals.Deal | None:
    """Return the deal of a row, or None for a row that is no deal: other deals must not suffer from it."""
    try:
        return deals.parse_deal(row)
    except deals.UnreadableDealError:
        return None


def _answer(deal: deals.Deal) -> dict[str, Any]:
    return {
        "id": deal.id,
        "client": deal.client,
        "ad_account_ids": deal.ad_account_ids,
        "time_zone": deal.time_zone,
        "currency": deal.currency,
        "method": deal.method,
        "starts_on": date_text(deal.period.first_day),
        "ends_on": date_text(deal.period.last_day),
        "slabs": [{"from": money(slab.from_micros), "rate": format_rate(slab.rate_millionths)} for slab in deal.slabs],
        "registered_at": time(deal.registered_at),
        "updated_at": time(deal.updated_at),
    }
