"""`GET /v1/ledger`: filtered entries in the order of shard and position.

The ledger has no index by entity, because that would slow down every write. The balance read model notes in which
blocks of 65,536 positions an entity has entries. Only these blocks are searched, and the entries that the read model
has not read yet.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

import asyncpg
from fastapi import APIRouter, Query, Response

from services.api.answers.models import Entries, Limit, money, time
from services.api.answers.pieces import page, unhurried
from services.api.context import Api
from services.api.described.openapi import READ_PROBLEMS
from services.api.door import patterns
from services.api.door.access import FinanceReader
from services.api.past.moments import BLOCK_POSITIONS
from shared.contracts.fields import IDENTIFIER_PATTERN, UUID_PATTERN
from shared.ledger.details import shown_causes, shown_details
from shared.runtime.kafka import murmur2_partition

# After this many blocks a page ends early, and `next` continues from there.
BLOCKS_AT_MOST = 64
_LAST_POSITION = 2**63 - 1

Filter = Annotated[str | None, Query(pattern=IDENTIFIER_PATTERN)]
Source = Annotated[str | None, Query(pattern=UUID_PATTERN, description="An event id or a command id")]
After = Annotated[
    str | None,
    Query(
        pattern=patterns.POSITION_CURSOR,
        description="The `next` of the previous page, or a position: then the entries after it, of each shard",
    ),
]

router = APIRouter(tags=["ledger"], responses=READ_PROBLEMS)


@dataclass(frozen=True, slots=True)
class Search:
    """The filters of a request; None means any. `scope` has the caller's Business Centers."""

    business_center_id: str | None
    ad_account_id: str | None
    source: UUID | None
    scope: list[str] | None

    def sees(self, business_center_id: str) -> bool:
        """Return whether the caller may see entries of this Business Center."""
        return self.scope is None or business_center_id in self.scope


@dataclass(frozen=True, slots=True)
class Span:
    """A range of positions of a shard, both ends included."""

    shard: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Cursor:
    """A page begins after this position, of one shard or (`shard` is None) of each."""

    shard: int | None
    position: int

    def clip(self, span: Span) -> Span | None:
        """Return the part of a span after the cursor; None if there is none."""
        if self.shard is not None and span.shard != self.shard:
            return span if span.shard > self.shard else None
        first = max(span.first, self.position + 1)
        return Span(span.shard, first, span.last) if first <= span.last else None

    def first_block(self, shard: int) -> int | None:
        """Return the first block of a shard that the page may need; None if it needs none."""
        if self.shard is None or shard == self.shard:
            return (self.position + 1) // BLOCK_POSITIONS
        return 0 if shard > self.shard else None


@router.get("/v1/ledger", response_model=Entries, summary="Entries of the ledger")
async def get_ledger(
    context: Api,
    caller: FinanceReader,
    business_center_id: Filter = None,
    ad_account_id: Filter = None,
    source_event_id: Source = None,
    after: After = None,
    limit: Limit = 100,
) -> Response:
    """List entries of the caller's Business Centers by shard and position, a page at a time.

    A page may be shorter than `limit`; `next` tells whether there are more.
    """
    cursor = _parse_cursor(after)
    source = UUID(source_event_id) if source_event_id else None
    search = Search(business_center_id, ad_account_id, source, caller.scope)
    async with context.snapshot() as connection:
        spans = await _spans(connection, search, cursor, context.shards)
        clipped = [part for span in spans if (part := cursor.clip(span))]
        rows, stopped_at = await _scan(connection, search, clipped, limit)
    return await page("entries", (_entry(row) async for row in unhurried(rows)), next=stopped_at)


def _parse_cursor(after: str | None) -> Cursor:
    shard, _, position = (after or "0").rpartition("-")
    return Cursor(int(shard) if shard else None, min(int(position), _LAST_POSITION))


async def _scan(
    connection: asyncpg.Connection, search: Search, spans: list[Span], limit: int
) -> tuple[list[asyncpg.Record], str | None]:
    """Return at most `limit` entries, and the cursor of the next page; None if there are no more."""
    found: list[asyncpg.Record] = []
    for number, span in enumerate(_blocks(spans)):
        if number == BLOCKS_AT_MOST:
            return found, f"{span.shard}-{span.first - 1}"
        found += await _search_span(connection, search, span, limit + 1 - len(found))
        if len(found) > limit:
            last = found[limit - 1]
            return found[:limit], f"{last['shard']}-{last['position']}"
    return found, None


def _blocks(spans: list[Span]) -> Iterator[Span]:
    """Cut the spans into pieces of at most one block."""
    for span in spans:
        for first in range(span.first, span.last + 1, BLOCK_POSITIONS):
            yield Span(span.shard, first, min(first + BLOCK_POSITIONS - 1, span.last))


async def _search_span(connection: asyncpg.Connection, search: Search, span: Span, limit: int) -> list[asyncpg.Record]:
    rows: list[asyncpg.Record] = await connection.fetch(
        """
        SELECT * FROM ledger.entries
        WHERE shard = $1 AND position BETWEEN $2 AND $3
          AND ($4::text IS NULL OR business_center_id = $4)
          AND ($5::text IS NULL OR ad_account_id = $5)
          AND ($6::uuid IS NULL OR source_event_id = $6)
          AND ($7::text[] IS NULL OR business_center_id = ANY($7))
        ORDER BY position LIMIT $8
        """,
        span.shard,
        span.first,
        span.last,
        search.business_center_id,
        search.ad_account_id,
        search.source,
        search.scope,
        limit,
    )
    return rows


async def _spans(connection: asyncpg.Connection, search: Search, cursor: Cursor, shards: int) -> list[Span]:
    """Return the page's spans that may have matching entries, by shard and position.

    There are none for what the caller may not see.
    """
    if search.business_center_id is not None and not search.sees(search.business_center_id):
        return []
    if search.source is not None:
        return await _spans_of_source(connection, search.source, search.scope)
    if search.business_center_id is not None:
        shard = murmur2_partition(search.business_center_id.encode(), shards)
        return await _spans_of_entity(connection, cursor, shard, search.business_center_id, search.ad_account_id or "")
    if search.ad_account_id is not None:
        account = await connection.fetchrow(
            "SELECT shard, business_center_id FROM ledger.ad_accounts WHERE ad_account_id = $1",
            search.ad_account_id,
        )
        if account is None or not search.sees(account["business_center_id"]):
            return []
        shard, center = account["shard"], account["business_center_id"]
        return await _spans_of_entity(connection, cursor, shard, center, search.ad_account_id)
    if search.scope is not None:
        return await _spans_of_scope(connection, cursor, search.scope, shards)
    rows = await connection.fetch("SELECT shard, position FROM ledger.shards ORDER BY shard")
    return [Span(row["shard"], 1, row["position"]) for row in rows]


async def _spans_of_entity(
    connection: asyncpg.Connection, cursor: Cursor, shard: int, business_center_id: str, ad_account_id: str
) -> list[Span]:
    """Return the blocks that the read model names for an entity, and all positions that it has not read yet.

    At most one block more is returned than a page searches, beginning at the cursor.
    """
    head = await connection.fetchrow(
        """
        SELECT s.position, coalesce(c.position, 0) AS indexed
        FROM ledger.shards s LEFT JOIN ledger.checkpoints_balance c USING (shard)
        WHERE s.shard = $1
        """,
        shard,
    )
    first_block = cursor.first_block(shard)
    # The ledger may say that the ad account is of a shard that does not exist.
    if head is None or first_block is None:
        return []
    rows = await connection.fetch(
        "SELECT block FROM balance.entry_blocks WHERE business_center_id = $1 AND ad_account_id = $2 "
        "AND shard = $3 AND block BETWEEN $4 AND $5 ORDER BY block LIMIT $6",
        business_center_id,
        ad_account_id,
        shard,
        first_block,
        head["indexed"] // BLOCK_POSITIONS,
        BLOCKS_AT_MOST + 1,
    )
    starts = [row["block"] * BLOCK_POSITIONS for row in rows]
    spans = [Span(shard, start, min(start + BLOCK_POSITIONS - 1, head["indexed"])) for start in starts]
    if head["position"] > head["indexed"]:
        spans.append(Span(shard, head["indexed"] + 1, head["position"]))
    return spans


async def _spans_of_scope(connection: asyncpg.Connection, cursor: Cursor, scope: list[str], shards: int) -> list[Span]:
    """Return the blocks of each of these Business Centers; those of one shard may share some."""
    spans: set[Span] = set()
    for business_center_id in scope:
        shard = murmur2_partition(business_center_id.encode(), shards)
        spans.update(await _spans_of_entity(connection, cursor, shard, business_center_id, ""))
    return _in_order(spans)


async def _spans_of_source(connection: asyncpg.Connection, source: UUID, scope: list[str] | None) -> list[Span]:
    """Return the spans of the entries that a command or event caused; such entries are consecutive in its shard."""
    commands = await connection.fetch(
        "SELECT shard, first_position, position FROM ledger.outcomes "
        "WHERE command_id = $1 AND first AND first_position IS NOT NULL "
        "AND ($2::text[] IS NULL OR business_center_id = ANY($2))",
        source,
        scope,
    )
    events = await connection.fetch(
        """
        SELECT e.shard, e.position AS first_position, coalesce(
            (SELECT o.position - 1 FROM ledger.entries o WHERE o.shard = e.shard AND o.position > e.position
             AND o.source_event_id IS DISTINCT FROM $1 ORDER BY o.position LIMIT 1), s.position) AS position
        FROM ledger.entries e JOIN ledger.shards s ON s.shard = e.shard
        WHERE e.source_event_id = $1 AND e.part = 0 AND e.day IS NOT NULL
          AND ($2::text[] IS NULL OR e.business_center_id = ANY($2))
        """,
        source,
        scope,
    )
    spans = {Span(row["shard"], row["first_position"], row["position"]) for row in [*commands, *events]}
    return _in_order(spans)


def _in_order(spans: set[Span]) -> list[Span]:
    return sorted(spans, key=lambda span: (span.shard, span.first))


def _entry(row: asyncpg.Record) -> dict[str, Any]:
    details = _details(row["details"])
    texts = ("kind", "holder", "pocket", "grant_id", "business_center_id", "ad_account_id", "campaign_id", "cause")
    return {
        **{name: row[name] for name in ("shard", "position", "part", *texts)},
        "amount": None if row["amount"] is None else money(row["amount"]),
        "source_event_id": _text(row["source_event_id"]),
        "reverses": _text(row["reverses"]),
        "occurred_at": time(row["occurred_at"]),
        "recorded_at": time(row["recorded_at"]),
        "day": _text(row["day"]),
        "period": _text(row["period"]),
        "causes": shown_causes(row["kind"], details),
        "details": details,
    }


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _details(kept: str | None) -> dict[str, Any] | None:
    """Return an entry's details; None also if they are unreadable, so that the rest of the page is still answered.

    The audits report such an entry.
    """
    try:
        return shown_details(kept)
    except ValueError:
        return None
