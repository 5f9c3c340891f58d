"""Quarantined records: listed with their raw bytes, and sent back to their shard after a fix."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from services.api.commands.replaying import AFTER_PATTERN, PORTION_RECORDS, replay_ids, replay_one_id, replay_reason
from services.api.context import Api
from services.api.described.openapi import BODY_PROBLEMS, READ_PROBLEMS, present
from services.api.door import patterns
from services.api.door.access import FinanceReader, FinanceWriter
from services.api.door.bodies import body_schema, read_body
from services.api.door.errors import not_found
from services.api.models import Instant, Limit, Problem
from services.api.present import quarantined
from shared.contracts.known import known
from shared.rules.vocabulary import QUARANTINE_REASONS

# What can be asked for: also a reason of a newer version, which this one does not know.
Reason = Annotated[
    str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$", description="A reason", examples=["unknown_ad_account"])
]
RecordId = Annotated[str, Field(pattern=patterns.RECORD_ID, examples=["0-1"])]

Force = Annotated[bool, Field(description="Also where the reason cannot have changed: for an administrator of all")]
_REPLAY_PROBLEMS: dict[int | str, dict[str, Any]] = {
    422: {"model": Problem, "description": "A record that would only fail again, or whose bytes are not kept"},
    429: {"model": Problem, "description": "Too many replayed records wait: ask again a little later"},
}

router = APIRouter(tags=["quarantine"], responses=READ_PROBLEMS)


class QuarantinedRecord(BaseModel):
    """A record that was not allocated; `raw` is base64, null for a record without a value.

    A replay that failed names in `replay_of` the first record, whose raw bytes it shows. Of a record that is too large
    to be kept, `raw` is its beginning, `raw_bytes` its size and `raw_sha256` the SHA-256 of all of it; null for others.
    Of one that is kept and has more than 2 MiB, from an earlier version, the beginning and the size are shown.
    """

    id: str
    reason: Annotated[str, known(*QUARANTINE_REASONS)]
    detail: str
    topic: str
    partition: int
    offset: int
    raw: str | None
    raw_bytes: int | None
    raw_sha256: str | None
    replay_of: str | None
    recorded_at: Instant
    replayed_at: Instant | None


class QuarantinedRecords(BaseModel):
    """Records by shard and sequence; `next` goes into `after`, and is null when there is no more for now."""

    entries: list[QuarantinedRecord]
    next: str | None


class Replayed(BaseModel):
    """How many records were sent back; where a `limit` has ended it, `next` goes into `after` to go on.

    `waiting` is how many were left out: they wait for their shard, or were sent back and have not failed since.
    `not_whole` is how many of a reason were: they are not kept whole.
    """

    replayed: int
    waiting: int | None = None
    not_whole: int | None = None
    next: str | None = None


def _either(schema: dict[str, Any]) -> None:
    schema["properties"] = {name: present(of) for name, of in schema["properties"].items()}
    schema["oneOf"] = [{"required": ["ids"]}, {"required": ["reason"]}]


class ReplayRequest(BaseModel):
    """Which records: either these ids, or all of a reason that were not replayed yet.

    `limit`, how many at most, and `after`, the `next` of the answer before, belong to a reason. Records that are
    `too_large`, `malformed` or `invalid` fail again as they did: they want `force`, from an administrator of all.
    """

    model_config = ConfigDict(frozen=True, json_schema_extra=_either)
    ids: Annotated[list[RecordId], Field(min_length=1, max_length=PORTION_RECORDS)] | None = None
    reason: Reason | None = None
    limit: Annotated[int, Field(ge=1, le=100_000)] | None = None
    after: Annotated[str, Field(pattern=AFTER_PATTERN, description="The `next` of the answer before")] | None = None
    force: Force = False

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

    A page holds at most 1 MiB, or one record, and so may be shorter than `limit`: `next` says whether there is more.
    """
    start = quarantined.parse_id(after or "0-0")
    async with context.snapshot() as connection:
        rows, is_more = await quarantined.page(connection, caller, start, reason, limit)
    entries = [quarantined.answer(row) for row in rows]
    return {"entries": entries, "next": entries[-1]["id"] if is_more else None}


@router.get("/v1/quarantine/{record_id}", response_model=QuarantinedRecord, summary="One quarantined record")
async def read_record(
    record_id: Annotated[str, Path(pattern=patterns.RECORD_ID)], context: Api, caller: FinanceReader
) -> dict[str, Any]:
    """A record with its raw bytes: all that are kept, up to 2 MiB."""
    async with context.snapshot() as connection:
        row = await quarantined.record(connection, caller, record_id)
    if row is None:
        raise not_found("quarantined record")
    return quarantined.answer(row)


@router.post(
    "/v1/quarantine/replay",
    status_code=202,
    response_model=Replayed,
    response_model_exclude_none=True,
    summary="Send several records back",
    responses={**BODY_PROBLEMS, **_REPLAY_PROBLEMS},
    openapi_extra=body_schema(REPLAY_REQUEST, {"reason": {"reason": "unknown_ad_account"}, "ids": {"ids": ["0-1"]}}),
)
async def replay_several(request: Request, context: Api, caller: FinanceWriter) -> dict[str, Any]:
    """Send records back to their shard: these ids, or all of a reason that were not replayed yet.

    At most 1,000 ids, of records of 8 MiB together (413). Those of a reason are sent in the order of shard and
    sequence, a thousand at a time: what was sent stays sent if the call is broken off, and asking again goes on behind
    it. What is quarantined anew meanwhile is left alone. A record that waits for its shard, or was sent back and has
    not failed since, is left out and counted as `waiting`; one of a reason that is not kept whole as `not_whole`.
    """
    wanted = await read_body(request, REPLAY_REQUEST)
    if wanted.ids is not None:
        return await replay_ids(context, caller, wanted.ids, force=wanted.force)
    assert wanted.reason is not None
    return await replay_reason(context, caller, wanted.reason, wanted.limit, wanted.after, force=wanted.force)


@router.post(
    "/v1/quarantine/{record_id}/replay",
    status_code=202,
    response_model=Replayed,
    response_model_exclude_none=True,
    summary="Send one record back",
    responses={
        409: {"model": Problem, "description": "It waits for its shard, or was sent back and has not failed since"},
        **_REPLAY_PROBLEMS,
    },
)
async def replay_one(
    record_id: Annotated[str, Path(pattern=patterns.RECORD_ID)],
    context: Api,
    caller: FinanceWriter,
    force: Annotated[bool, Query(description="Also where the reason cannot have changed: for who has all")] = False,
) -> dict[str, Any]:
    """Send a record back to its shard, as it came; of a replay that failed, the first record."""
    return await replay_one_id(context, caller, record_id, force=force)
