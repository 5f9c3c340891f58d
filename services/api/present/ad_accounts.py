"""Ad accounts: balance, budget, delivery and spend, from the balance read model."""

from collections import defaultdict
from collections.abc import Mapping
from datetime import date
from typing import Any

import asyncpg
import structlog
from fastapi import APIRouter, Response

from services.api.answers.balances import ad_account_balance, spend_answer
from services.api.answers.budgets import Today, budget_answer, changes_answer
from services.api.answers.calendars import has_calendar, learn_zones, unknown_zone
from services.api.answers.checkpoints import Checkpoints, read_checkpoints
from services.api.answers.models import AdAccount, AdAccounts, AfterId, Limit, PathId
from services.api.answers.pieces import page, unhurried
from services.api.answers.policies import read_policies, require_policy
from services.api.context import Api
from services.api.described.openapi import READ_PROBLEMS, UNREADABLE
from services.api.door.access import AnyRole
from services.api.door.errors import not_found
from services.api.door.tokens import Caller
from services.api.past.history import ad_account_facts_at, ad_account_spend_at, budget_at, causes_at, pockets_at
from services.api.past.moments import At, Entity, Moment, facts_since_closing, find_ad_account, read_at
from shared.runtime.clock import Clock

router = APIRouter(tags=["balances"], responses=READ_PROBLEMS)


@router.get(
    "/v1/business-centers/{business_center_id}/ad-accounts",
    response_model=AdAccounts,
    summary="List a Business Center's ad accounts",
)
async def list_ad_accounts(
    business_center_id: PathId, context: Api, caller: AnyRole, limit: Limit = 100, after: AfterId = None
) -> Response:
    """List the ad accounts of a Business Center by id, a page at a time.

    A page may be shorter than `limit`; `next` tells whether there are more.
    """
    async with context.snapshot() as connection:
        shard = await connection.fetchval(
            "SELECT shard FROM balance.business_centers WHERE business_center_id = $1", business_center_id
        )
        if shard is None or not caller.sees(business_center_id):
            raise not_found("Business Center")
        ids = await _ids_after(connection, business_center_id, after or "", limit + 1)
        checkpoints = await read_checkpoints(connection, "balance", [shard])
        found = await read_ad_accounts(connection, ids[:limit], checkpoints, context.clock)
    following = ids[limit - 1] if len(ids) > limit else None
    return await page("ad_accounts", unhurried(found.values()), next=following, as_of=checkpoints.as_of())


@router.get(
    "/v1/ad-accounts/{ad_account_id}",
    response_model=AdAccount,
    summary="Balance, budget, delivery and spend of an ad account",
    responses=UNREADABLE,
)
async def get_ad_account(ad_account_id: PathId, context: Api, caller: AnyRole, at: At = None) -> dict[str, Any]:
    """Return one ad account, now or as the ledger stood `at` a past ledger time.

    With `at`, the budget's period and the changes of the day are those of that time, by the account's calendar, and
    `as_of` names the last batch that was recorded by then. A time in the future answers 400, a time before the account
    was opened 404.
    """
    if at is not None:
        return await read_at(context, caller, at, find_ad_account, ad_account_id, _ad_account_at)
    async with context.snapshot() as connection:
        checkpoints = await account_checkpoints(connection, caller, ad_account_id)
        found = await read_ad_accounts(connection, [ad_account_id], checkpoints, context.clock)
        if not found:
            for shard in checkpoints.positions:
                await require_policy(connection, shard)
            raise unknown_zone()
    return {**found[ad_account_id], "as_of": checkpoints.as_of()}


async def account_checkpoints(connection: asyncpg.Connection, caller: Caller, ad_account_id: str) -> Checkpoints:
    """Return how far the balance read model has got in the account's shard.

    Raises:
        ApiError: 404 if there is no such ad account, or the caller may not see it.

    """
    row = await connection.fetchrow(
        "SELECT shard, business_center_id FROM balance.ad_accounts WHERE ad_account_id = $1", ad_account_id
    )
    if row is None or not caller.sees(row["business_center_id"]):
        raise not_found("ad account")
    return await read_checkpoints(connection, "balance", [row["shard"]])


async def read_ad_accounts(
    connection: asyncpg.Connection, ids: list[str], checkpoints: Checkpoints, clock: Clock
) -> dict[str, dict[str, Any]]:
    """Return the answers of these ad accounts by id, in the order of their ids.

    An ad account is left out if its time zone is unknown or its shard's policy cannot be read, so that the other ones
    are answered all the same.
    """
    stored = await connection.fetch(
        """
        SELECT a.ad_account_id, a.business_center_id, a.shard, a.billing, a.buying_type, a.time_zone,
               e.enabled_at IS NOT NULL AND l.reason IS NULL AS automatic_allocation,
               b.mode, b.amount, b.day, b.changes_today, c.started_at, coalesce(c.spent, 0) AS custom_spent,
               coalesce(p.causes, '{}') AS causes
        FROM balance.ad_accounts a
        LEFT JOIN balance.automatic_allocation e USING (business_center_id)
        LEFT JOIN balance.left_out l USING (business_center_id, ad_account_id)
        LEFT JOIN balance.budgets b USING (ad_account_id)
        LEFT JOIN balance.custom_budgets c USING (ad_account_id)
        LEFT JOIN balance.pauses p ON p.ad_account_id = a.ad_account_id AND p.campaign_id = ''
        WHERE a.ad_account_id = ANY($1) ORDER BY a.ad_account_id
        """,
        ids,
    )
    await learn_zones(connection, {row["time_zone"] for row in stored})
    policies = await read_policies(connection, sorted({row["shard"] for row in stored}))
    rows = [row for row in stored if row["shard"] in policies and _is_readable(row)]
    now_us = checkpoints.now_us(clock)
    todays = {row["ad_account_id"]: Today.at(row["time_zone"], now_us) async for row in unhurried(rows)}
    spent = await _spent_in_periods(connection, rows, todays)
    pockets = await _pockets(connection, rows)
    spend = await _spend(connection, ids)
    return {
        (id_ := row["ad_account_id"]): ad_account_answer(
            row,
            todays[id_],
            spent.get(id_, int(row["custom_spent"])),
            ad_account_balance(pockets[id_], policies[row["shard"]]),
            spend.get(id_),
        )
        async for row in unhurried(rows)
    }


def ad_account_answer(
    row: Mapping[str, Any],
    today: Today,
    spent_in_period: int,
    balance: dict[str, str],
    spend: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the answer of an ad account.

    Args:
        row: the account's own fields, its budget's setting and its pause causes.
        today: the day in the account's zone.
        spent_in_period: what the budget's current period has counted, in micros.
        balance: from `ad_account_balance`.
        spend: sums of `billed` and `overdelivered` in micros; None means none.

    """
    names = ("ad_account_id", "business_center_id", "billing", "buying_type", "time_zone", "automatic_allocation")
    return {
        **{name: row[name] for name in names},
        "balance": balance,
        "budget": {
            **budget_answer(row, today, spent_in_period),
            **changes_answer(row["day"], row["changes_today"], today),
        },
        "delivery": {"delivering": not row["causes"], "causes": row["causes"]},
        "spend": spend_answer(spend),
    }


async def _ad_account_at(connection: asyncpg.Connection, entity: Entity, moment: Moment) -> dict[str, Any]:
    today = Today.at(entity.time_zone, moment.at_us)
    facts = await facts_since_closing(connection, entity, moment)
    budget, moved = await budget_at(connection, entity, moment, today, facts)
    pockets, _ = await pockets_at(connection, entity, moment, moved)
    period = today.period(budget["mode"] or "unlimited")
    spend, spent_in_period = await ad_account_spend_at(connection, entity, moment, moved, period)
    row = {
        **await ad_account_facts_at(connection, entity, moment),
        **budget,
        "causes": await causes_at(connection, entity, "", moment, facts),
    }
    spent = budget["spent"] if period is None else spent_in_period
    answer = ad_account_answer(row, today, spent, ad_account_balance(pockets, moment.policy), spend)
    return {**answer, "as_of": moment.as_of()}


def _is_readable(row: asyncpg.Record) -> bool:
    known = has_calendar(row["time_zone"])
    if not known:
        structlog.get_logger().error("an ad account cannot be read", id=row["ad_account_id"], zone=row["time_zone"])
    return known


async def _ids_after(connection: asyncpg.Connection, business_center_id: str, after: str, limit: int) -> list[str]:
    rows = await connection.fetch(
        "SELECT ad_account_id FROM balance.ad_accounts WHERE business_center_id = $1 AND ad_account_id > $2 "
        "ORDER BY ad_account_id LIMIT $3",
        business_center_id,
        after,
        limit,
    )
    return [row["ad_account_id"] for row in rows]


async def _spent_in_periods(
    connection: asyncpg.Connection, rows: list[asyncpg.Record], todays: dict[str, Today]
) -> dict[str, int]:
    """Return what daily and monthly budgets have counted in their current period: the sum billed on its days."""
    ids: list[str] = []
    firsts: list[date] = []
    lasts: list[date] = []
    for row in rows:
        period = todays[row["ad_account_id"]].period(row["mode"] or "unlimited")
        if period is not None:
            ids.append(row["ad_account_id"])
            firsts.append(period[0])
            lasts.append(period[1])
    spent = await connection.fetch(
        """
        SELECT p.ad_account_id, coalesce(sum(d.billed), 0) AS spent
        FROM unnest($1::text[], $2::date[], $3::date[]) AS p (ad_account_id, first, last)
        LEFT JOIN balance.ad_account_days d ON d.ad_account_id = p.ad_account_id AND d.day BETWEEN p.first AND p.last
        GROUP BY p.ad_account_id
        """,
        ids,
        firsts,
        lasts,
    )
    return {row["ad_account_id"]: int(row["spent"]) for row in spent}


async def _pockets(connection: asyncpg.Connection, rows: list[asyncpg.Record]) -> dict[str, dict[str, int]]:
    found = await connection.fetch(
        """
        SELECT p.ad_account_id, p.pocket, p.amount
        FROM unnest($1::text[], $2::text[]) AS a (business_center_id, ad_account_id)
        JOIN balance.pockets p USING (business_center_id, ad_account_id)
        """,
        [row["business_center_id"] for row in rows],
        [row["ad_account_id"] for row in rows],
    )
    pockets: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for row in found:
        pockets[row["ad_account_id"]][row["pocket"]] = int(row["amount"])
    return pockets


async def _spend(connection: asyncpg.Connection, ids: list[str]) -> dict[str, asyncpg.Record]:
    rows = await connection.fetch(
        "SELECT ad_account_id, sum(billed) AS billed, sum(overdelivered) AS overdelivered "
        "FROM balance.ad_account_days WHERE ad_account_id = ANY($1) GROUP BY ad_account_id",
        ids,
    )
    return {row["ad_account_id"]: row for row in rows}
