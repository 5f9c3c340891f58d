"""`GET /v1/deals/{id}/spend-detail`: cash spend by day and ad account, two days late (domain page, section 7.3)."""

import csv
import io
import re
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Literal
from urllib.parse import urlencode

import asyncpg
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from services.api.answers.models import INTEGER, AsOf, Money, PathId, money
from services.api.answers.pieces import document, unhurried
from services.api.context import Api
from services.api.described.openapi import READ_PROBLEMS, UNREADABLE_DEAL
from services.api.door import patterns
from services.api.door.access import FinanceReader
from services.api.door.errors import invalid
from services.api.incentives.deals import read_deal, read_deal_checkpoints
from services.incentives import cash_spend, spend_detail
from services.incentives.deals import Deal
from shared.contracts.fields import Day
from shared.rules.calendar import date_text

JSON_ROWS, JSON_ROWS_AT_MOST, CSV_ROWS_AT_MOST = 100, 1_000, 10_000
COLUMNS = ("day", "ad_account_id", "business_center_id", "currency", "cash_spend")
# Spreadsheets take a cell that begins with one of these for a formula.
_FORMULA = tuple("=+-@\t\r")

router = APIRouter(tags=["deals"], responses={**READ_PROBLEMS, **UNREADABLE_DEAL})


class SpendDetailRow(BaseModel):
    """Cash spend of an ad account on a day of the deal's time zone, net of reversals."""

    day: str
    ad_account_id: str
    business_center_id: str
    currency: str
    cash_spend: Money


class SpendDetail(BaseModel):
    """Rows of spend detail. `data_until` is the last day with data; the totals cover all pages from `from` to `to`."""

    deal_id: str
    time_zone: str
    data_until: str
    total: Money
    totals: dict[str, Money]
    rows: list[SpendDetailRow]
    next: str | None
    as_of: AsOf


@dataclass(frozen=True, slots=True)
class _Page:
    """A page begins after the row of this day and ad account, and has at most `limit` rows."""

    after: tuple[date, str]
    limit: int


_EXAMPLE = {
    "deal_id": "deal-1",
    "time_zone": "Asia/Tokyo",
    "data_until": "2026-03-10",
    "total": "80000.000000",
    "totals": {"acct-1": "80000.000000"},
    "rows": [
        {
            "day": "2026-03-10",
            "ad_account_id": "acct-1",
            "business_center_id": "bc-1",
            "currency": "USD",
            "cash_spend": "80000.000000",
        }
    ],
    "next": None,
    "as_of": {"recorded_at": "2026-03-12T12:00:00.000000Z", "shards": [{"shard": 0, "position": 4711}]},
}
_CSV_EXAMPLE = ",".join(COLUMNS) + "\r\n2026-03-10,acct-1,bc-1,USD,80000.000000\r\n"
From = Annotated[Day | None, Query(alias="from", description="Default: the deal's first day", examples=["2026-03-01"])]
To = Annotated[Day | None, Query(description="Default: the deal's last day", examples=["2026-03-31"])]
After = Annotated[str | None, Query(pattern=patterns.ROW_CURSOR, description="The `next` of the previous page")]
Rows = Annotated[
    int | None,
    Query(
        ge=1,
        le=CSV_ROWS_AT_MOST,
        description=f"How many rows at most: by default {JSON_ROWS}, for CSV {CSV_ROWS_AT_MOST}. A page of JSON has "
        f"{JSON_ROWS_AT_MOST} rows at most.",
    ),
    INTEGER,
]
Format = Annotated[Literal["json", "csv"] | None, Query(description="Overrides the header `Accept`")]


@router.get(
    "/v1/deals/{deal_id}/spend-detail",
    response_model=SpendDetail,
    summary="Cash spend of a deal by day and ad account, up to two days ago",
    responses={
        200: {
            "content": {
                "application/json": {"example": _EXAMPLE},
                "text/csv": {"schema": {"type": "string"}, "example": _CSV_EXAMPLE},
            }
        }
    },
)
async def get_spend_detail(
    deal_id: PathId,
    request: Request,
    context: Api,
    caller: FinanceReader,
    from_: From = None,
    to: To = None,
    after: After = None,
    limit: Rows = None,
    format: Format = None,
) -> Response:
    """Return cash spend by day and ad account. Days are those of the deal's time zone; the last one is two days ago.

    Late spend and reversals count on the day of the spend, so a row may still change. With `format=csv` or
    `Accept: text/csv` the answer is CSV (RFC 4180, with a header row). The header `Link` then names the next page, and
    an id that a spreadsheet would take for a formula gets a `'` in front.
    """
    as_csv = format == "csv" or (format is None and _prefers_csv(request.headers.get("accept", "")))
    page = _parse_page(after, limit, as_csv=as_csv)
    async with context.snapshot() as connection:
        deal = await read_deal(connection, caller, deal_id)
        checkpoints = await read_deal_checkpoints(connection, deal)
        until = spend_detail.last_day(deal, checkpoints.now_us(context.clock))
        days = _days(deal, from_, to, until)
        totals = await cash_spend.read_by_account(connection, deal, days)
        rows = await cash_spend.read_by_day(connection, deal, days, page.after, page.limit + 1)
    following = _cursor(rows[page.limit - 1]) if len(rows) > page.limit else None
    answers = [_row(row, deal.currency) async for row in unhurried(rows[: page.limit])]
    if as_csv:
        return await _csv(request, deal_id, answers, following)
    answer = {
        "deal_id": deal_id,
        "time_zone": deal.time_zone,
        "data_until": date_text(until),
        "total": money(sum(totals.values())),
        "totals": {ad_account_id: money(total) for ad_account_id, total in totals.items()},
        "rows": answers,
        "next": following,
        "as_of": checkpoints.as_of(),
    }
    return await document(answer, {"Vary": "Accept"})


def _prefers_csv(accept: str) -> bool:
    """Return whether the header `Accept` (RFC 9110, section 12.5.1) prefers CSV to JSON, or likes both equally."""
    weights: dict[str, float] = {}
    for part in accept.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        quality = next((each[2:] for each in parameters if each.startswith("q=")), "1")
        weights[name] = float(quality) if re.fullmatch(r"[01](\.[0-9]{0,3})?", quality) else 0.0
    csv_weight = weights.get("text/csv", 0.0)
    return csv_weight > 0 and csv_weight >= weights.get("application/json", 0.0)


def _parse_page(after: str | None, limit: int | None, *, as_csv: bool) -> _Page:
    if limit is None:
        limit = CSV_ROWS_AT_MOST if as_csv else JSON_ROWS
    limit = limit if as_csv else min(limit, JSON_ROWS_AT_MOST)
    if not after:
        return _Page((date.min, ""), limit)
    day, _, ad_account_id = after.partition("/")
    return _Page((date.fromisoformat(day), ad_account_id), limit)


def _cursor(row: asyncpg.Record) -> str:
    return f"{row['day']}/{row['ad_account_id']}"


def _days(deal: Deal, from_: str | None, to: str | None, until: int) -> range:
    """Return the requested days that belong to the deal's period and have data."""
    first = deal.period.first_day if from_ is None else date.fromisoformat(from_).toordinal()
    last = deal.period.last_day if to is None else date.fromisoformat(to).toordinal()
    if from_ is not None and to is not None and last < first:
        raise invalid("to should not be before from")
    return spend_detail.days_with_data(deal, first, last, until)


def _row(row: asyncpg.Record, currency: str) -> dict[str, str]:
    return {
        "day": row["day"].isoformat(),
        "ad_account_id": row["ad_account_id"],
        "business_center_id": row["business_center_id"],
        "currency": currency,
        "cash_spend": money(row["amount"]),
    }


async def _csv(request: Request, deal_id: str, rows: list[dict[str, str]], following: str | None) -> Response:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    async for row in unhurried(rows):
        writer.writerow([_harmless(name, row[name]) for name in COLUMNS])
    headers = {"Vary": "Accept", "Content-Disposition": f'attachment; filename="{deal_id}-spend-detail.csv"'}
    if following is not None:
        query = {**request.query_params, "after": following}
        headers["Link"] = f'<{request.url.path}?{urlencode(query)}>; rel="next"'
    return Response(text.getvalue(), media_type="text/csv; header=present", headers=headers)


def _harmless(name: str, value: str) -> str:
    """Return a cell that no spreadsheet calculates. Amounts are numbers, even below zero, and stay as they are."""
    return f"'{value}" if name != "cash_spend" and value.startswith(_FORMULA) else value
