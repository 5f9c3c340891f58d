"""Quarantined records: listed with their raw bytes, and sent back to their shard after a fix."""

import base64
from typing import Annotated, Any

import asyncpg
from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from services.api import patterns
from services.api.access import FinanceReader, FinanceWriter
from services.api.bodies import body_schema, read_body
from services.api.context import Api
from services.api.errors import not_found
from services.api.models import Instant, Limit, time
from services.api.openapi import BODY_PROBLEMS, READ_PROBLEMS, present
from services.api.replaying import AFTER_PATTERN, replay_reason, send_back
from services.api.tokens import Caller
from shared.contracts.known import known
from shared.rules.vocabulary import QUARANTINE_REASONS

# What can be asked for: also a reason of a newer version, which this one does not know.
Reason = Annotated[
    str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$", description="A reason", examples=["unknown_ad_account"])
]
RecordId = Annotated[str, Field(pattern=patterns.RECORD_ID, examples=["0-1"])]

# A page ends early rather than carry more raw bytes than this.
PAGE_BYTES = 8 * 1024 * 1024

router = APIRouter(tags=["quarantine"], responses=READ_PROBLEMS)


class QuarantinedRecord(BaseModel):
    """A record that was not allocated; `raw` is base64, null for a record without a value."""

    id: str
    reason: Annotated[str, known(*QUARANTINE_REASONS)]
    detail: str
    topic: str
    partition: int
    offset: int
    raw: str | None
    recorded_at: Instant
    replayed_at: Instant | None


class QuarantinedRecords(BaseModel):
    """Records by shard and sequence; `next` goes into `after`, and is null when there is no more for now."""

    entries: list[QuarantinedRecord]
    next: str | None


class Replayed(BaseModel):
    """How many records were sent back; where a `limit` has ended it, `next` goes into `after` to go on."""

    replayed: int
    next: str | None = None


def _either(schema: dict[str, Any]) -> None:
    schema["properties"] = {name: present(of) for name, of in schema["properties"].items()}
    schema["oneOf"] = [{"required": ["ids"]}, {"required": ["reason"]}]


class ReplayRequest(BaseModel):
    """Which records: either these ids, or all of a reason that were not replayed yet.

    `limit`, how many at most, and `after`, the `next` of the answer before, belong to a reason.
    """

    model_config = ConfigDict(frozen=True, json_schema_extra=_either)
    ids: Annotated[list[RecordId], Field(min_length=1, max_length=4000)] | None = None
    reason: Reason | None = None
    limit: Annotated[int, Field(ge=1, le=100_000)] | None = None
    after: Annotated[str, Field(pattern=AFTER_PATTERN, description="The `next` of the answer before")] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "ReplayRequest":
        if (self.ids is None) == (self.reason is None):
            raise ValueError("should have either ids or reason")
        if self.reason is None and (self.limit, self.after) != (None, None):
            raise ValueError("limit and after belong to a reason")
        return self


REPLAY_REQUEST: TypeAdapter[ReplayRequest] = TypeAdapter(ReplayRequest)


@router.get("/v1/quarantine", response_model=QuarantinedRecords, summary="List quarantined records")
async def list_quarantine(
    context: Api,
    caller: FinanceReader,
    reason: Annotated[Reason | None, Query()] = None,
    after: Annotated[
        str | None, Query(pattern=patterns.RECORD_CURSOR, description="The `next` of the page before")
    ] = None,
    limit: Limit = 100,
) -> dict[str, Any]:
    """Records by shard and sequence: those that name one of the caller's Business Centers, or all to who has all.

    A page may be shorter than `limit`: `next` says whether there is more.
    """
    start = _parse_id(after or "0-0")
    async with context.snapshot() as connection:
        rows = await _page(connection, caller, start, reason, limit + 1)
    page = rows[: _fitting(rows[:limit])]
    return {
        "entries": [_answer(row) for row in page],
        "next": _id(page[-1]) if len(page) < len(rows) else None,
    }


@router.post(
    "/v1/quarantine/replay",
    status_code=202,
    response_model=Replayed,
    response_model_exclude_none=True,
    summary="Send several records back",
    responses=BODY_PROBLEMS,
    openapi_extra=body_schema(REPLAY_REQUEST, {"reason": {"reason": "unknown_ad_account"}, "ids": {"ids": ["0-1"]}}),
)
async def replay_several(request: Request, context: Api, caller: FinanceWriter) -> dict[str, Any]:
    """Send records back to their shard: these ids, or all of a reason that were not replayed yet.

    Those of a reason are sent in the order of shard and sequence, a thousand at a time: what was sent stays sent if
    the call is broken off, and asking again goes on behind it. What is quarantined anew meanwhile is left alone.
    """
    wanted = await read_body(request, REPLAY_REQUEST)
    if wanted.reason is not None:
        return await replay_reason(context, caller, wanted.reason, wanted.limit, wanted.after)
    async with context.transaction() as connection:
        rows = await _by_ids(connection, caller, wanted.ids or [])
        return {"replayed": await send_back(context, connection, caller, rows)}


@router.post(
    "/v1/quarantine/{record_id}/replay",
    status_code=202,
    response_model=Replayed,
    response_model_exclude_none=True,
    summary="Send one record back",
)
async def replay_one(
    record_id: Annotated[str, Path(pattern=patterns.RECORD_ID)], context: Api, caller: FinanceWriter
) -> dict[str, Any]:
    """Send a record back to its shard, as it came."""
    async with context.transaction() as connection:
        rows = await _by_ids(connection, caller, [record_id])
        return {"replayed": await send_back(context, connection, caller, rows)}


def _parse_id(text: str) -> tuple[int, int]:
    shard, _, sequence = text.partition("-")
    return int(shard), int(sequence)


def _id(row: asyncpg.Record) -> str:
    return f"{row['shard']}-{row['sequence']}"


async def _page(
    connection: asyncpg.Connection, caller: Caller, start: tuple[int, int], reason: str | None, limit: int
) -> list[asyncpg.Record]:
    """Rows beyond `start`; `bytes` is the running total of raw bytes, and rows beyond a page's worth have no raw."""
    rows: list[asyncpg.Record] = await connection.fetch(
        """
        WITH page AS (
            SELECT * FROM ledger.quarantine
            WHERE (shard, sequence) > ($1, $2) AND ($3::text IS NULL OR reason = $3)
              AND ($6::text[] IS NULL OR business_center_id = ANY($6))
            ORDER BY shard, sequence LIMIT $4
        ), sized AS (
            SELECT shard, sequence, sum(coalesce(octet_length(raw), 0)) OVER (ORDER BY shard, sequence) AS bytes
            FROM page
        )
        SELECT shard, sequence, reason, detail, topic, partition, "offset", recorded_at, bytes,
               CASE WHEN bytes <= $5 OR row_number() OVER (ORDER BY shard, sequence) = 1 THEN raw END AS raw,
               (SELECT max(replayed_at) FROM ledger.quarantine_replays r
                WHERE r.shard = page.shard AND r.sequence = page.sequence) AS replayed_at
        FROM page JOIN sized USING (shard, sequence) ORDER BY shard, sequence
        """,
        *start,
        reason,
        limit,
        PAGE_BYTES,
        caller.scope,
    )
    return rows


def _fitting(rows: list[asyncpg.Record]) -> int:
    """How many of the rows a page carries: at least one, if there is one."""
    fitting = [row for row in rows if row["bytes"] <= PAGE_BYTES]
    return max(len(fitting), min(1, len(rows)))


def _answer(row: asyncpg.Record) -> dict[str, Any]:
    raw, replayed_at = row["raw"], row["replayed_at"]
    return {
        "id": _id(row),
        **{name: row[name] for name in ("reason", "detail", "topic", "partition", "offset")},
        "raw": None if raw is None else base64.b64encode(raw).decode(),
        "recorded_at": time(row["recorded_at"]),
        "replayed_at": None if replayed_at is None else time(replayed_at),
    }


async def _by_ids(connection: asyncpg.Connection, caller: Caller, ids: list[str]) -> list[asyncpg.Record]:
    """The rows of these ids. Raises ApiError (404) when one is unknown, or not the caller's: then none is replayed."""
    known = {_parse_id(id_) for id_ in ids}
    rows: list[asyncpg.Record] = await connection.fetch(
        """
        SELECT shard, sequence, business_center_id FROM ledger.quarantine
        JOIN unnest($1::smallint[], $2::bigint[]) AS wanted (shard, sequence) USING (shard, sequence)
        """,
        [shard for shard, _ in known],
        [sequence for _, sequence in known],
    )
    if len(rows) < len(known) or not all(caller.sees(row["business_center_id"]) for row in rows):
        raise not_found("quarantined record" if len(ids) == 1 else "quarantined record as one of these ids")
    return rows
