"""Daily series for charts: the balance at the end of each day, and the spend of each day."""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Final

import asyncpg
from fastapi import APIRouter, Query, Response
from pydantic import BaseModel

from services.api.answers import balances
from services.api.answers.calendars import calendar
from services.api.answers.checkpoints import Checkpoints, read_checkpoints
from services.api.answers.models import AdAccountBalance, AsOf, BusinessCenterBalance, PathId, Spend
from services.api.answers.pieces import page, unhurried
from services.api.answers.policies import DEFAULT_POLICY, Waterfalls, read_versions
from services.api.context import Api
from services.api.described.openapi import READ_PROBLEMS, UNREADABLE
from services.api.door.access import FinanceReader
from services.api.door.errors import invalid, unreadable
from services.api.past.moments import Entity, find_ad_account, find_business_center, last_closing, spans_after
from shared.contracts.fields import Day
from shared.rules.calendar import date_text
from shared.rules.instants import from_datetime, to_datetime
from shared.runtime.clock import Clock

DAYS_AT_MOST = 400
# There is one for each pocket and day, from closings and from entries. The database accepts any words for pockets.
_MOVEMENTS_AT_MOST = 10_000
# A policy changes rarely, if at all. The ledger's writer may name another one in each batch.
_POLICIES_AT_MOST: Final = 100
_POLICIES: Final = "the waterfall policies of its shard"

router = APIRouter(tags=["history"], responses={**READ_PROBLEMS, **UNREADABLE})

From = Annotated[Day, Query(alias="from", description="The first day", examples=["2026-11-01"])]
To = Annotated[Day, Query(description=f"The last day; at most {DAYS_AT_MOST} days", examples=["2026-11-30"])]
Balance = Callable[[Counter[str], int, dict[str, Any]], dict[str, Any]]


class _SeriesFields(BaseModel):
    """The requested days, without those before the opening and those that have not begun."""

    time_zone: str
    as_of: AsOf


class BusinessCenterDay(BaseModel):
    """The balance at the day's end (now, for the present day), and the spend that belongs to the day."""

    day: str
    balance: BusinessCenterBalance
    spend: Spend


class BusinessCenterSeries(_SeriesFields):
    """A Business Center day by day."""

    business_center_id: str
    days: list[BusinessCenterDay]


class AdAccountDay(BaseModel):
    """The balance at the day's end (now, for the present day), and the spend that belongs to the day."""

    day: str
    balance: AdAccountBalance
    spend: Spend


class AdAccountSeries(_SeriesFields):
    """An ad account day by day."""

    ad_account_id: str
    business_center_id: str
    days: list[AdAccountDay]


_SPEND = {"gross": "70.000000", "billed": "65.000000", "overdelivered": "5.000000"}
_AS_OF = {"recorded_at": "2026-11-21T12:00:00.000000Z", "shards": [{"shard": 0, "position": 4711}]}
_CREDIT_LINE = {"limit": "100.000000", "used": "20.000000", "available": "80.000000"}
_POCKETS = {"cash": "30.000000", "voucher": "0.000000", "ad_credit": "0.000000"}
_BUSINESS_CENTER_EXAMPLE = {
    "business_center_id": "bc-1",
    "time_zone": "Asia/Tokyo",
    "days": [
        {
            "day": "2026-11-20",
            "balance": {**_POCKETS, "credit_line": _CREDIT_LINE, "available": "110.000000"},
            "spend": _SPEND,
        }
    ],
    "as_of": _AS_OF,
}
_AD_ACCOUNT_EXAMPLE = {
    "ad_account_id": "acct-1",
    "business_center_id": "bc-1",
    "time_zone": "Asia/Tokyo",
    "days": [
        {
            "day": "2026-11-20",
            "balance": {**_POCKETS, "credit": "0.000000", "available": "30.000000"},
            "spend": _SPEND,
        }
    ],
    "as_of": _AS_OF,
}


def _example(value: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {"application/json": {"example": value}}}}


@dataclass(frozen=True, slots=True)
class _Days:
    """The days of a series, and the instants at which they end, in µs since the Unix epoch."""

    days: list[int]
    ends: list[int]


@router.get(
    "/v1/business-centers/{business_center_id}/series",
    response_model=BusinessCenterSeries,
    summary="A Business Center day by day: closing balance and spend",
    responses=_example(_BUSINESS_CENTER_EXAMPLE),
)
async def get_business_center_series(
    business_center_id: PathId, context: Api, caller: FinanceReader, from_: From, to: To
) -> Response:
    """Return one row for each day of the Business Center's time zone.

    `balance` is the closing balance: it includes what was recorded by the day's end. `spend` goes by the spend's own
    day, in its ad account's time zone, net of reversals. So late spend and reversals change the spend of a past day,
    but never its balance. Days before the opening and days that have not begun are left out.
    """
    days = _parse_days(from_, to)
    async with context.snapshot() as connection:
        entity = await find_business_center(connection, caller, business_center_id)
        checkpoints = await read_checkpoints(connection, "balance", [entity.shard])
        series = await _read_series(connection, entity, days, checkpoints, context.clock, _business_center_balance)
    rest = {"business_center_id": business_center_id, "time_zone": entity.time_zone, "as_of": checkpoints.as_of()}
    return await page("days", unhurried(series), **rest)


@router.get(
    "/v1/ad-accounts/{ad_account_id}/series",
    response_model=AdAccountSeries,
    summary="An ad account day by day: closing balance and spend",
    responses=_example(_AD_ACCOUNT_EXAMPLE),
)
async def get_ad_account_series(
    ad_account_id: PathId, context: Api, caller: FinanceReader, from_: From, to: To
) -> Response:
    """Return one row for each day of the ad account's time zone.

    `balance` is the closing balance: it includes what was recorded by the day's end. `spend` goes by the spend's own
    day, net of reversals. So late spend and reversals change the spend of a past day, but never its balance. Days
    before the opening and days that have not begun are left out.
    """
    days = _parse_days(from_, to)
    async with context.snapshot() as connection:
        entity = await find_ad_account(connection, caller, ad_account_id)
        checkpoints = await read_checkpoints(connection, "balance", [entity.shard])
        series = await _read_series(connection, entity, days, checkpoints, context.clock, _ad_account_balance)
    rest = {
        "business_center_id": entity.business_center_id,
        "time_zone": entity.time_zone,
        "as_of": checkpoints.as_of(),
    }
    return await page("days", unhurried(series), ad_account_id=ad_account_id, **rest)


def _business_center_balance(pockets: Counter[str], limit: int, policy: dict[str, Any]) -> dict[str, Any]:
    return balances.business_center_balance(pockets, limit, policy)


def _ad_account_balance(pockets: Counter[str], _limit: int, policy: dict[str, Any]) -> dict[str, Any]:
    return balances.ad_account_balance(pockets, policy)


def _parse_days(from_: str, to: str) -> range:
    first, last = date.fromisoformat(from_).toordinal(), date.fromisoformat(to).toordinal()
    if last < first:
        raise invalid("to should not be before from")
    if last - first >= DAYS_AT_MOST:
        raise invalid(f"from and to should be at most {DAYS_AT_MOST} days apart")
    return range(first, last + 1)


async def _read_series(
    connection: asyncpg.Connection,
    entity: Entity,
    asked: range,
    checkpoints: Checkpoints,
    clock: Clock,
    balance: Balance,
) -> list[dict[str, Any]]:
    days = _existing(entity, asked, checkpoints.now_us(clock))
    if not days.days:
        return []
    moved, limits = await _movements(connection, entity, days, checkpoints.position(entity.shard))
    policies = await _policies(connection, entity.shard, days)
    spend = await _spend(connection, entity, days)
    rows, pockets, limit = [], Counter[str](), 0
    async for number, day in unhurried(enumerate(days.days)):
        pockets.update(moved[number])
        limit += limits[number]
        rows.append(
            {
                "day": date_text(day),
                "balance": balance(pockets, limit, policies.get(number, DEFAULT_POLICY)),
                "spend": balances.spend_answer(spend.get(date.fromordinal(day))),
            }
        )
    return rows


def _existing(entity: Entity, asked: range, now_us: int) -> _Days:
    """Return the requested days that have begun, from the day of the opening on."""
    zone = calendar(entity.time_zone)
    opened, today = zone.day(from_datetime(entity.opened_at)), zone.day(now_us)
    days = [day for day in asked if opened <= day <= today]
    return _Days(days, [zone.start(day + 1) for day in days])


async def _movements(
    connection: asyncpg.Connection, entity: Entity, days: _Days, position: int
) -> tuple[dict[int, Counter[str]], dict[int, int]]:
    """Return what moved in each pocket and in the credit limit, up to the first day's end and on each later day.

    Movements up to the last closing are summed by quarters of an hour; the entries after it are read one by one.

    Raises:
        ApiError: 409 if there are more pockets than the rules can write.

    """
    closed = await last_closing(connection, entity.shard, position)
    rows = await connection.fetch(
        """
        SELECT width_bucket(m.quarter, $5::timestamptz[]) AS number, m.pocket, sum(m.amount) AS amount,
               sum(m.limit_change) AS limit_change
        FROM balance.closings c JOIN balance.pocket_movements m ON m.shard = c.shard AND m.closing = c.position
        WHERE c.shard = $1 AND c.position <= $2 AND m.business_center_id = $3 AND m.ad_account_id = $4
        GROUP BY 1, 2
        UNION ALL
        SELECT width_bucket(e.recorded_at, $5::timestamptz[]), e.pocket, sum(e.amount),
               coalesce(sum(e.amount) FILTER (WHERE e.kind = 'credit_limit_change'), 0)
        FROM unnest($6::bigint[], $7::bigint[]) AS spans (first, last)
        CROSS JOIN LATERAL (
            SELECT * FROM ledger.entries e WHERE e.shard = $1 AND e.position BETWEEN spans.first AND spans.last
              AND e.pocket IS NOT NULL AND e.business_center_id = $3
              AND CASE $4 WHEN '' THEN e.holder = 'business_center'
                  ELSE e.holder = 'ad_account' AND e.ad_account_id = $4 END
            OFFSET 0
        ) AS e
        GROUP BY 1, 2
        LIMIT $8
        """,
        entity.shard,
        closed,
        entity.business_center_id,
        entity.ad_account_id,
        [to_datetime(end) for end in days.ends],
        *await spans_after(connection, entity, closed, position),
        _MOVEMENTS_AT_MOST + 1,
    )
    if len(rows) > _MOVEMENTS_AT_MOST:
        raise unreadable("the movements of the pockets")
    moved: defaultdict[int, Counter[str]] = defaultdict(Counter)
    limits: defaultdict[int, int] = defaultdict(int)
    for row in rows:
        moved[row["number"]][row["pocket"]] += int(row["amount"])
        limits[row["number"]] += int(row["limit_change"])
    return moved, limits


async def _policies(connection: asyncpg.Connection, shard: int, days: _Days) -> dict[int, Waterfalls]:
    """Return the policy of the last batch by the end of each day.

    Raises:
        ApiError: 409 if one cannot be read, or if there are more than one answer reads.

    """
    rows = await connection.fetch(
        """
        SELECT ends.number, latest.policy_version
        FROM unnest($2::timestamptz[]) WITH ORDINALITY AS ends (instant, number)
        CROSS JOIN LATERAL (
            SELECT policy_version FROM ledger.batches b
            WHERE b.shard = $1 AND b.recorded_at < ends.instant
            ORDER BY b.recorded_at DESC, b.last_position DESC LIMIT 1
        ) AS latest
        """,
        shard,
        [to_datetime(end) for end in days.ends],
    )
    versions = {row["policy_version"] for row in rows}
    if len(versions) > _POLICIES_AT_MOST:
        raise unreadable(_POLICIES)
    policies = await read_versions(connection, versions)
    found = {row["number"] - 1: policies[row["policy_version"]] for row in rows}
    readable = {number: policy for number, policy in found.items() if policy is not None}
    if len(readable) < len(found):
        raise unreadable(_POLICIES)
    return readable


async def _spend(connection: asyncpg.Connection, entity: Entity, days: _Days) -> dict[date, asyncpg.Record]:
    if entity.ad_account_id:
        query = "SELECT day, billed, overdelivered FROM balance.ad_account_days WHERE ad_account_id = $1"
    else:
        query = "SELECT day, billed, overdelivered FROM balance.business_center_days WHERE business_center_id = $1"
    rows = await connection.fetch(
        query + " AND day BETWEEN $2 AND $3",
        entity.ad_account_id or entity.business_center_id,
        date.fromordinal(days.days[0]),
        date.fromordinal(days.days[-1]),
    )
    return {row["day"]: row for row in rows}
