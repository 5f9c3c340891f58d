"""A moment of the past: the position of a shard at that time, and what moved there since the last closing.

The balance follower closes its books from time to time (`balance.closings`). The state at a position is the sum of the
closings up to it, plus the entries since the last of them. So a read touches no more entries than lie between two
closings, and only the blocks in which the entity has any.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import date, datetime
from typing import Annotated, Any, Final, TypeVar

import asyncpg
from fastapi import Query

from services.api.answers.calendars import learn_zones
from services.api.answers.checkpoints import read_checkpoints
from services.api.answers.models import time
from services.api.answers.policies import Waterfalls, read_policy
from services.api.context import READ_TIMEOUT_SECONDS, Context
from services.api.door.errors import invalid, not_found, unavailable, unreadable
from services.api.door.tokens import Caller
from services.api.past.facts import FACTS, Fact, parse_fact
from shared.contracts.fields import TIME_PATTERN, parse_time
from shared.rules.instants import from_datetime, to_datetime
from shared.rules.vocabulary import BUDGET_KINDS, DELIVERY_KINDS

T = TypeVar("T")

At = Annotated[
    str | None,
    Query(
        pattern=TIME_PATTERN,
        max_length=64,
        description="RFC 3339. Answer as the ledger stood at this ledger time, including entries recorded at it. "
        "Write the `+` of an offset as `%2B`.",
        examples=["2026-11-21T12:00:00Z"],
    ),
]

BLOCK_POSITIONS = 65_536  # of balance.entry_blocks
# Money falls into some dozens of groups. The database accepts any words there, so more groups are possible.
_GROUPS_AT_MOST: Final = 1_000
# PostgreSQL stores JSON that it cannot take apart later: half a surrogate pair, or levels up to the depth of its stack.
# A position there may be no number.
_UNREADABLE_JSON: Final = (asyncpg.DataError, asyncpg.StatementTooComplexError)


@dataclass(frozen=True, slots=True)
class Entity:
    """A Business Center (`ad_account_id` is empty) or an ad account, and when it was opened."""

    business_center_id: str
    ad_account_id: str
    shard: int
    time_zone: str
    opened_at: datetime


@dataclass(frozen=True, slots=True)
class Moment:
    """A time, and the last batch recorded by then.

    `closed` is the position of the last closing at or before `position`, or 0. `policy` is the waterfall policy of the
    batch.
    """

    at_us: int
    shard: int
    position: int
    recorded_at: datetime
    closed: int
    policy: Waterfalls

    def as_of(self) -> dict[str, Any]:
        """Return the answer's `as_of`."""
        return {
            "recorded_at": time(self.recorded_at),
            "shards": [{"shard": self.shard, "position": self.position}],
        }


async def find_business_center(connection: asyncpg.Connection, caller: Caller, business_center_id: str) -> Entity:
    """Return a Business Center. Raises ApiError (404) if there is none, or the caller may not see it."""
    row = await connection.fetchrow(
        "SELECT business_center_id, '' AS ad_account_id, shard, time_zone, opened_at FROM balance.business_centers "
        "WHERE business_center_id = $1",
        business_center_id,
    )
    if row is None or not caller.sees(business_center_id):
        raise not_found("Business Center")
    await learn_zones(connection, [row["time_zone"]])
    return Entity(**row)


async def find_ad_account(connection: asyncpg.Connection, caller: Caller, ad_account_id: str) -> Entity:
    """Return an ad account. Raises ApiError (404) if there is none, or the caller may not see it."""
    row = await connection.fetchrow(
        "SELECT business_center_id, ad_account_id, shard, time_zone, opened_at FROM balance.ad_accounts "
        "WHERE ad_account_id = $1",
        ad_account_id,
    )
    if row is None or not caller.sees(row["business_center_id"]):
        raise not_found("ad account")
    await learn_zones(connection, [row["time_zone"]])
    return Entity(**row)


Find = Callable[[asyncpg.Connection, Caller, str], Awaitable[Entity]]
Read = Callable[[asyncpg.Connection, Entity, Moment], Awaitable[T]]


async def read_at(context: Context, caller: Caller, at: str, find: Find, id_: str, read: Read[T]) -> T:
    """Return what `read` finds at that time, in one snapshot of the database.

    This waits until the balance read model has got to the moment's position, because its index of blocks must be
    complete.

    Args:
        context: the connections and the clock.
        caller: who may see the entity or not.
        at: an RFC 3339 time.
        find: returns the entity, or raises ApiError (404).
        id_: the entity's id, for `find`.
        read: reads the answer of the entity at the moment.

    Raises:
        ApiError: 400 for a time that does not exist or is in the future, 404 for an entity that did not exist then,
            409 if a stored fact or policy cannot be read, 503 if the read model does not get there in time.

    """
    at_us = _parse(at)
    try:
        async with asyncio.timeout(READ_TIMEOUT_SECONDS):
            while True:
                async with context.snapshot() as connection:
                    entity = await find(connection, caller, id_)
                    folded = await _folded(connection, context, entity, at_us)
                    moment = await _moment(connection, entity.shard, at_us)
                    if moment.position <= folded:
                        return await read(connection, entity, moment)
                await context.watcher.visible(entity.shard, moment.position)
    except TimeoutError:
        raise unavailable("the balance read model") from None


def _parse(at: str) -> int:
    try:
        return parse_time(at)
    except (ValueError, OverflowError):
        raise invalid("at is a time that does not exist") from None


async def _folded(connection: asyncpg.Connection, context: Context, entity: Entity, at_us: int) -> int:
    checkpoints = await read_checkpoints(connection, "balance", [entity.shard])
    if at_us > checkpoints.now_us(context.clock):
        raise invalid("at is in the future")
    if at_us < from_datetime(entity.opened_at):
        raise not_found("Business Center or ad account at that time")
    return checkpoints.position(entity.shard)


async def _moment(connection: asyncpg.Connection, shard: int, at_us: int) -> Moment:
    at = to_datetime(at_us)
    batch = await connection.fetchrow(
        """
        SELECT last_position, recorded_at, policy_version FROM ledger.batches
        WHERE shard = $1 AND recorded_at <= $2 ORDER BY recorded_at DESC, last_position DESC LIMIT 1
        """,
        shard,
        at,
    )
    if batch is None:  # The read model says that the entity was opened by then.
        raise not_found("Business Center or ad account at that time")
    closed = await last_closing(connection, shard, batch["last_position"])
    policy = await read_policy(connection, batch["policy_version"])
    return Moment(at_us, shard, batch["last_position"], batch["recorded_at"], closed, policy)


async def last_closing(connection: asyncpg.Connection, shard: int, position: int) -> int:
    """Return the position of a shard's last closing at or before a position; 0 if there is none."""
    found = await connection.fetchval(
        "SELECT max(position) FROM balance.closings WHERE shard = $1 AND position <= $2", shard, position
    )
    return found or 0


_MONEY: Final = """
    SELECT holder, pocket, kind = 'credit_limit_change' AS limit_changed,
           day IS NOT NULL AS is_spend, coalesce(day BETWEEN $8 AND $9, false) AS in_period,
           pocket IS NULL AND kind <> 'forfeit' AS overdelivery,
           coalesce($7::bigint < CASE
               WHEN kind IN ('reversal', 'forfeit') THEN (details ->> 'spend_position')::bigint
               ELSE position END, false) AS counted,
           sum(amount) AS amount
    FROM unnest($2::bigint[], $3::bigint[]) AS spans (first, last)
    CROSS JOIN LATERAL (
        SELECT * FROM ledger.entries e WHERE e.shard = $1 AND e.position BETWEEN spans.first AND spans.last
          AND e.amount IS NOT NULL AND e.business_center_id = $4 AND ($5 = '' OR e.ad_account_id = $5)
          AND ($6::text IS NULL OR e.campaign_id = $6)
        OFFSET 0  -- Keeps the planner to one index scan for each span.
    ) AS entries
    GROUP BY 1, 2, 3, 4, 5, 6, 7
    LIMIT $10
"""


async def money_since_closing(
    connection: asyncpg.Connection,
    entity: Entity,
    moment: Moment,
    *,
    campaign_id: str | None = None,
    custom_start: int | None = None,
    period: tuple[date, date] | None = None,
) -> list[asyncpg.Record]:
    """Return sums of the entries with money from the last closing to the moment.

    A row has `holder`, `pocket`, `is_spend`, `in_period`, `overdelivery`, `limit_changed`, `counted` and `amount` in
    micros. There are a few dozen rows at most, because days are not told apart.

    Args:
        connection: a connection in the snapshot.
        entity: the owner of the entries. Those of a Business Center include its ad accounts'.
        moment: the end.
        campaign_id: counts only entries of this campaign.
        custom_start: the position where the account's custom budget began. Charges after it are `counted`.
        period: the first and last day of a budget's period. Spend of its days is `in_period`; without one, none is.

    Raises:
        ApiError: 409 if there are more groups than the rules can write, or an entry's details cannot be read.

    """
    try:
        rows: list[asyncpg.Record] = await connection.fetch(
            _MONEY,
            moment.shard,
            *await spans_after(connection, entity, moment.closed, moment.position),
            entity.business_center_id,
            entity.ad_account_id,
            campaign_id,
            custom_start,
            *(period or (None, None)),
            _GROUPS_AT_MOST + 1,
        )
    except _UNREADABLE_JSON:
        raise unreadable("the money since the last closing") from None
    if len(rows) > _GROUPS_AT_MOST:
        raise unreadable("the money since the last closing")
    return rows


# The last position of each group of facts, and then the details of these entries alone. `->>` is null for JSON that is
# no object, so such a fact counts as one that did not restart a custom budget.
_DECIDING_FACTS: Final = """
    SELECT entry.position, entry.kind, entry.campaign_id, entry.details
    FROM (
        SELECT max(position) AS position
        FROM unnest($2::bigint[], $3::bigint[]) AS spans (first, last)
        CROSS JOIN LATERAL (
            SELECT * FROM ledger.entries e WHERE e.shard = $1 AND e.position BETWEEN spans.first AND spans.last
              AND e.amount IS NULL AND e.business_center_id = $4 AND e.ad_account_id = $5
              AND e.kind = ANY($6) AND coalesce(e.campaign_id, '') = ANY($7)
            OFFSET 0  -- Keeps the planner to one index scan for each span.
        ) AS entries
        GROUP BY kind = ANY($8), kind = ANY($9), coalesce(campaign_id, ''),
            CASE WHEN kind = ANY($8) THEN coalesce(details ->> 'restarted' = 'true', false) END
    ) AS latest
    CROSS JOIN LATERAL (
        SELECT * FROM ledger.entries e WHERE e.shard = $1 AND e.position = latest.position
        OFFSET 0  -- One look-up for each position.
    ) AS entry
    ORDER BY entry.position
"""


async def facts_since_closing(
    connection: asyncpg.Connection, entity: Entity, moment: Moment, campaign_id: str = ""
) -> list[Fact]:
    """Return the facts since the last closing that decide budget and pauses at the moment, in order.

    These are the account's last budget, the one with which its custom budget began, and its last pause or resume. With
    `campaign_id` also the last budget and the last pause or resume of this campaign. So there are a few facts, however
    many the account has.

    Raises:
        ApiError: 409 if the details of one cannot be read.

    """
    try:
        rows = await connection.fetch(
            _DECIDING_FACTS,
            moment.shard,
            *await spans_after(connection, entity, moment.closed, moment.position),
            entity.business_center_id,
            entity.ad_account_id,
            [*FACTS],
            ["", campaign_id],
            [*BUDGET_KINDS],
            [*DELIVERY_KINDS],
        )
    except _UNREADABLE_JSON:
        raise unreadable("a budget since the last closing") from None
    return [parse_fact(entity.shard, *row) for row in rows]


async def spans_after(
    connection: asyncpg.Connection, entity: Entity, closed: int, until: int
) -> tuple[list[int], list[int]]:
    """Return first and last positions of the spans, after `closed` and up to `until`, where the entity has entries."""
    after = closed + 1
    rows = await connection.fetch(
        "SELECT block FROM balance.entry_blocks WHERE business_center_id = $1 AND ad_account_id = $2 "
        "AND shard = $3 AND block BETWEEN $4 AND $5",
        entity.business_center_id,
        entity.ad_account_id,
        entity.shard,
        after // BLOCK_POSITIONS,
        until // BLOCK_POSITIONS,
    )
    starts = [row["block"] * BLOCK_POSITIONS for row in rows]
    ends = [start + BLOCK_POSITIONS - 1 for start in starts]
    return [max(start, after) for start in starts], [min(end, until) for end in ends]


def sum_spend(rows: list[Any]) -> tuple[int, int]:
    """Return what rows of `money_since_closing` billed and overdelivered, in micros."""
    spent = [row for row in rows if row["is_spend"]]
    billed = -sum(int(row["amount"]) for row in spent if not row["overdelivery"])
    return billed, sum(int(row["amount"]) for row in spent if row["overdelivery"])
