"""Business Centers: balance, automatic allocation and spend, from the balance read model."""

from collections import Counter, defaultdict
from itertools import accumulate
from typing import Any, Final

import asyncpg
import structlog
from fastapi import APIRouter, Response

from services.api.answers.balances import business_center_balance, spend_answer
from services.api.answers.checkpoints import read_checkpoints
from services.api.answers.models import AfterId, BusinessCenter, BusinessCenters, Limit, PathId, money, time
from services.api.answers.pieces import document, page, unhurried
from services.api.answers.policies import read_policies, require_policy
from services.api.context import Api
from services.api.described.openapi import READ_PROBLEMS, UNREADABLE
from services.api.door.access import FinanceReader
from services.api.door.errors import not_found, unreadable
from services.api.past.history import business_center_facts_at, business_center_spend_at, pockets_at
from services.api.past.moments import At, Entity, Moment, find_business_center, money_since_closing, read_at
from shared.rules.memory_bounds import MOST_AD_ACCOUNTS

router = APIRouter(tags=["balances"], responses=READ_PROBLEMS)

_LEFT_OUT: Final = "the ad accounts that it leaves out of automatic allocation"


@router.get("/v1/business-centers", response_model=BusinessCenters, summary="List Business Centers")
async def list_business_centers(
    context: Api, caller: FinanceReader, limit: Limit = 100, after: AfterId = None
) -> Response:
    """List the caller's Business Centers by id, a page at a time.

    A page may be shorter than `limit`; `next` tells whether there are more.
    """
    async with context.snapshot() as connection:
        rows = await connection.fetch(
            "SELECT business_center_id FROM balance.business_centers WHERE business_center_id > $1 "
            "AND ($3::text[] IS NULL OR business_center_id = ANY($3)) ORDER BY business_center_id LIMIT $2",
            after or "",
            limit + 1,
            caller.scope,
        )
        ids = [row["business_center_id"] for row in rows]
        fitting = await _fitting(connection, ids[:limit])
        found = await read_business_centers(connection, ids[:fitting])
        checkpoints = await read_checkpoints(connection, "balance", caller.shards(context.shards))
    following = ids[fitting - 1] if len(ids) > fitting else None
    return await page("business_centers", unhurried(found.values()), next=following, as_of=checkpoints.as_of())


@router.get(
    "/v1/business-centers/{business_center_id}",
    response_model=BusinessCenter,
    summary="Balance, automatic allocation and spend of a Business Center",
    responses=UNREADABLE,
)
async def get_business_center(
    business_center_id: PathId, context: Api, caller: FinanceReader, at: At = None
) -> Response:
    """Return one Business Center, now or as the ledger stood `at` a past ledger time.

    With `at`, `as_of` names the last batch that was recorded by then. A time in the future answers 400, a time before
    the Business Center was opened 404.
    """
    if at is not None:
        past = await read_at(context, caller, at, find_business_center, business_center_id, _business_center_at)
        return await document(past)
    async with context.snapshot() as connection:
        mine = [business_center_id] if caller.sees(business_center_id) else []
        found = await read_business_centers(connection, mine)
        if not mine:  # After the same reads as for one that does not exist, so that an answer's time tells nothing.
            raise not_found("Business Center")
        entity = await find_business_center(connection, caller, business_center_id)
        if not found:
            await require_policy(connection, entity.shard)
            raise unreadable(_LEFT_OUT)
        checkpoints = await read_checkpoints(connection, "balance", [entity.shard])
    return await document({**found[business_center_id], "as_of": checkpoints.as_of()})


async def read_business_centers(connection: asyncpg.Connection, ids: list[str]) -> dict[str, dict[str, Any]]:
    """Return the answers of those Business Centers that exist, by id, in the order of their ids.

    A Business Center is left out if its shard's policy cannot be read, or if it leaves out more ad accounts than it may
    have, so that the other ones are answered all the same.
    """
    stored = await connection.fetch(
        """
        SELECT b.business_center_id, b.shard, b.currency, b.time_zone, a.enabled_at,
               coalesce(l.amount, 0) AS credit_limit,
               (SELECT s.amount FROM balance.largest_spends s WHERE s.business_center_id = b.business_center_id
                ORDER BY s.position DESC LIMIT 1) AS largest_spend
        FROM balance.business_centers b
        LEFT JOIN balance.automatic_allocation a USING (business_center_id)
        LEFT JOIN balance.credit_limits l USING (business_center_id)
        WHERE b.business_center_id = ANY($1) ORDER BY b.business_center_id
        """,
        ids,
    )
    policies = await read_policies(connection, sorted({row["shard"] for row in stored}))
    counts = await _count_left_out(connection, ids)
    rows = [row for row in stored if row["shard"] in policies and _is_readable(row["business_center_id"], counts)]
    pockets = await _pockets(connection, ids)
    left_out = await _left_out(connection, [row["business_center_id"] for row in rows])
    spend = await _spend(connection, ids)
    return {
        (id_ := row["business_center_id"]): {
            "business_center_id": id_,
            "currency": row["currency"],
            "time_zone": row["time_zone"],
            "balance": business_center_balance(pockets[id_], int(row["credit_limit"]), policies[row["shard"]]),
            "automatic_allocation": _allocation(row, left_out[id_]),
            "largest_spend": _largest_spend(row),
            "spend": spend_answer(spend.get(id_)),
        }
        async for row in unhurried(rows)
    }


async def _business_center_at(connection: asyncpg.Connection, entity: Entity, moment: Moment) -> dict[str, Any]:
    row, left_out = await business_center_facts_at(connection, entity, moment)
    moved = await money_since_closing(connection, entity, moment)
    pockets, credit_limit = await pockets_at(connection, entity, moment, moved)
    return {
        **{name: row[name] for name in ("business_center_id", "currency", "time_zone")},
        "balance": business_center_balance(pockets, credit_limit, moment.policy),
        "automatic_allocation": _allocation(row, left_out),
        "largest_spend": _largest_spend(row),
        "spend": spend_answer(await business_center_spend_at(connection, entity, moment, moved)),
        "as_of": moment.as_of(),
    }


def _allocation(row: asyncpg.Record, left_out: list[dict[str, str]]) -> dict[str, Any]:
    enabled_at = row["enabled_at"]
    if enabled_at is None:
        return {"enabled": False, "enabled_at": None, "left_out": []}
    return {"enabled": True, "enabled_at": time(enabled_at), "left_out": left_out}


def _largest_spend(row: asyncpg.Record) -> str | None:
    amount = row["largest_spend"]
    return None if amount is None else money(amount)


async def _pockets(connection: asyncpg.Connection, ids: list[str]) -> dict[str, dict[str, int]]:
    rows = await connection.fetch(
        "SELECT business_center_id, pocket, amount FROM balance.pockets "
        "WHERE business_center_id = ANY($1) AND ad_account_id = ''",
        ids,
    )
    pockets: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for row in rows:
        pockets[row["business_center_id"]][row["pocket"]] = int(row["amount"])
    return pockets


async def _fitting(connection: asyncpg.Connection, ids: list[str]) -> int:
    """Return how many of these Business Centers fit on a page: at least one, if there is one.

    Together they leave out no more ad accounts than one Business Center may have.
    """
    counts = await _count_left_out(connection, ids)
    shown = (counts[id_] if counts[id_] <= MOST_AD_ACCOUNTS else 0 for id_ in ids)
    return max(sum(total <= MOST_AD_ACCOUNTS for total in accumulate(shown)), min(1, len(ids)))


async def _count_left_out(connection: asyncpg.Connection, ids: list[str]) -> Counter[str]:
    """Return how many ad accounts each Business Center leaves out, counted up to one more than it may have."""
    rows = await connection.fetch(
        """
        SELECT id, count(*) FROM unnest($1::text[]) AS id CROSS JOIN LATERAL (
            SELECT FROM balance.left_out WHERE business_center_id = id LIMIT $2
        ) AS each GROUP BY id
        """,
        ids,
        MOST_AD_ACCOUNTS + 1,
    )
    return Counter(dict(rows))


def _is_readable(business_center_id: str, left_out: Counter[str]) -> bool:
    few = left_out[business_center_id] <= MOST_AD_ACCOUNTS
    if not few:
        structlog.get_logger().error("a Business Center leaves out too many ad accounts", id=business_center_id)
    return few


async def _left_out(connection: asyncpg.Connection, ids: list[str]) -> dict[str, list[dict[str, str]]]:
    rows = await connection.fetch(
        "SELECT business_center_id, ad_account_id, reason FROM balance.left_out "
        "WHERE business_center_id = ANY($1) ORDER BY ad_account_id",
        ids,
    )
    left_out: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    async for row in unhurried(rows):
        left_out[row["business_center_id"]].append({"ad_account_id": row["ad_account_id"], "reason": row["reason"]})
    return left_out


async def _spend(connection: asyncpg.Connection, ids: list[str]) -> dict[str, asyncpg.Record]:
    rows = await connection.fetch(
        "SELECT business_center_id, sum(billed) AS billed, sum(overdelivered) AS overdelivered "
        "FROM balance.business_center_days WHERE business_center_id = ANY($1) GROUP BY business_center_id",
        ids,
    )
    return {row["business_center_id"]: row for row in rows}
