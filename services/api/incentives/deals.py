"""Deals: routes to register, replace and read them (domain page, section 7.1)."""

from typing import Annotated, Any

import asyncpg
import structlog
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from services.api.answers.checkpoints import Checkpoints, read_checkpoints
from services.api.answers.models import AfterId, Instant, Limit, Money, PathId, Problem, money, time
from services.api.answers.pieces import page, unhurried
from services.api.context import Api
from services.api.described.openapi import BODY_PROBLEMS, READ_PROBLEMS, UNREADABLE_DEAL
from services.api.door.access import FinanceReader, FinanceWriter
from services.api.door.bodies import body_schema, read_body
from services.api.door.errors import ApiError, not_found, permission_denied
from services.api.door.tokens import Caller
from services.incentives import cash_spend, deals
from services.incentives.rating import Method, format_rate
from services.incentives.terms import DEAL_TERMS
from shared.rules.calendar import date_text
from shared.rules.refusal import Refused

router = APIRouter(tags=["deals"], responses=READ_PROBLEMS)


class Slab(BaseModel):
    """The rate from this amount of cash spend on."""

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
    """A page of deals, by id; `next` is null on the last page."""

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
        201: {"model": Deal, "description": "Registered; there was no deal of this id"},
        422: {"model": Problem, "description": "An ad account is unknown, or its currency is not the deal's"},
    },
)
async def put_deal(deal_id: PathId, request: Request, context: Api, caller: FinanceWriter) -> JSONResponse:
    """Register a deal (201), or replace it and so rate it again (200). The caller must see all its ad accounts."""
    terms = await read_body(request, DEAL_TERMS)
    async with context.transaction() as connection:
        try:
            written = await deals.register_deal(connection, caller.scope, deal_id, terms, context.clock.now())
        except Refused as refused:
            raise ApiError(422, refused.code, refused.message) from None
        if written is None:
            raise permission_denied("the deal of this id has ad accounts that you may not see")
    structlog.get_logger().info("a deal was registered", id=deal_id, by=caller.id)
    return JSONResponse(_answer(written.deal), 201 if written.is_new else 200)


@router.get("/v1/deals", response_model=Deals, summary="List deals")
async def list_deals(context: Api, caller: FinanceReader, limit: Limit = 100, after: AfterId = None) -> Response:
    """List the deals of which the caller may see every ad account, by id, a page at a time.

    A page may be shorter than `limit`; `next` tells whether there are more.
    """
    async with context.snapshot() as connection:
        stored = await deals.read_page(connection, caller.scope, after or "", limit)
    found = (_answer(deal) async for deal in unhurried(map(_parse, stored.rows)) if deal is not None)
    return await page("deals", found, next=stored.next)


@router.get("/v1/deals/{deal_id}", response_model=Deal, summary="Read a deal", responses=UNREADABLE_DEAL)
async def get_deal(deal_id: PathId, context: Api, caller: FinanceReader) -> dict[str, Any]:
    """Return one deal."""
    async with context.snapshot() as connection:
        return _answer(await read_deal(connection, caller, deal_id))


async def read_deal(connection: asyncpg.Connection, caller: Caller, deal_id: str) -> deals.Deal:
    """Return the deal that a route names.

    Raises:
        ApiError: 404 if there is no such deal or the caller may not see it; 409 if the stored row is not a deal.

    """
    try:
        deal = await deals.read_deal(connection, caller.scope, deal_id)
    except deals.UnreadableDealError:
        message = f"the stored deal {deal_id} cannot be read: register it again"
        raise ApiError(409, "conflict", message) from None
    if deal is None:
        raise not_found("deal")
    return deal


async def read_deal_checkpoints(connection: asyncpg.Connection, deal: deals.Deal) -> Checkpoints:
    """Return how far cash spend had been read in the shards of the deal's ad accounts."""
    return await read_checkpoints(connection, "incentives", await cash_spend.read_shards(connection, deal))


def _parse(row: asyncpg.Record) -> deals.Deal | None:
    """Return the deal of a row; None for an unreadable row, so that the other deals are answered all the same."""
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
