"""The routes of quarantine: they list records with their raw bytes, and send them back to their shard after a fix."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from services.api.answers.models import Instant, Limit, Problem
from services.api.context import Api
from services.api.described.openapi import BODY_PROBLEMS, READ_PROBLEMS, present
from services.api.door import patterns
from services.api.door.access import FinanceReader, FinanceWriter
from services.api.door.bodies import WHOLE, body_schema, read_body
from services.api.door.errors import not_found
from services.api.quarantine import records
from services.api.quarantine.replays import (
    AFTER_PATTERN,
    MOST_REPLAYS,
    PORTION_RECORDS,
    replay_ids,
    replay_one_id,
    replay_reason,
)
from shared.contracts.known import known
from shared.rules.vocabulary import QUARANTINE_REASONS

# A filter may name any reason, because a newer version may have written reasons that this one does not know.
Reason = Annotated[
    str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$", description="A reason of quarantine", examples=["unknown_ad_account"])
]
RecordId = Annotated[str, Field(pattern=patterns.RECORD_ID, examples=["0-1"])]

Force = Annotated[
    bool,
    Field(
        description=f"Replay even records that fail again unchanged, or have failed {MOST_REPLAYS} times; for"
        " administrators of all Business Centers"
    ),
]
_AFTER = "The `next` of the previous answer, with a number for each shard"
_REPLAY_PROBLEMS: dict[int | str, dict[str, Any]] = {
    422: {
        "model": Problem,
        "description": f"A record would only fail again, has failed {MOST_REPLAYS} times, or its bytes are not stored"
        " as a whole",
    },
    429: {"model": Problem, "description": "Too many replayed records wait: try again a little later"},
}

router = APIRouter(tags=["quarantine"], responses=READ_PROBLEMS)


class QuarantinedRecord(BaseModel):
    """A record that could not be decided; `raw` is base64, and null for a record without a value.

    A replay that failed names the first record in `replay_of`, and shows its raw bytes. For a record that is too large
    to be stored, `raw` is its beginning, `raw_bytes` its size and `raw_sha256` the SHA-256 of all its bytes; for other
    records these two are null. For a stored record above 2 MiB, from an earlier version, the beginning and the size are
    shown.
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
    """Records by shard and sequence. Pass `next` as `after` for the next page; null means none for now."""

    entries: list[QuarantinedRecord]
    next: str | None


class Replayed(BaseModel):
    """How many records were sent back. If a `limit` ended the replay, pass `next` as `after` to continue.

    `waiting` counts the records that were skipped because they wait for their shard, or were sent back and have not
    failed since. Of the records of a reason, `not_whole` counts those that were skipped because they are not stored as
    a whole, and `failed_too_often` those that were sent back ten times and failed each time.
    """

    replayed: int
    waiting: int | None = None
    not_whole: int | None = None
    failed_too_often: int | None = None
    next: str | None = None


def _either(schema: dict[str, Any]) -> None:
    schema["properties"] = {name: present(of) for name, of in schema["properties"].items()}
    schema["oneOf"] = [{"required": ["ids"]}, {"required": ["reason"]}]
    schema["dependentRequired"] = {"limit": ["reason"], "after": ["reason"]}


class ReplayRequest(BaseModel):
    """The records to send back: either these ids, or all records of a reason that were not replayed yet.

    `limit` (how many at most, sent or skipped) and `after` (the `next` of the previous answer) belong to a reason.
    Records that are `too_large`, `malformed` or `invalid` fail again unchanged. They need `force`, from an
    administrator of all Business Centers, and so does a record that was sent back ten times and failed each time.
    """

    model_config = ConfigDict(frozen=True, json_schema_extra=_either)
    ids: Annotated[list[RecordId], Field(min_length=1, max_length=PORTION_RECORDS)] | None = None
    reason: Reason | None = None
    limit: Annotated[int, Field(ge=1, le=100_000), WHOLE] | None = None
    after: Annotated[str, Field(pattern=AFTER_PATTERN, description=_AFTER)] | None = None
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
        str | None, Query(pattern=patterns.RECORD_CURSOR, description="The `next` of the previous page")
    ] = None,
    limit: Limit = 100,
) -> dict[str, Any]:
    """List quarantined records by shard and sequence, a page at a time.

    A caller sees the records that name one of their Business Centers; with `"*"` in the token, all records. A page
    holds at most 1 MiB, or one record, so it may be shorter than `limit`; `next` tells whether there are more.
    """
    start = records.parse_id(after or "0-0")
    async with context.snapshot() as connection:
        rows, is_more = await records.page(connection, caller, start, reason, limit)
    entries = [records.answer(row) for row in rows]
    return {"entries": entries, "next": entries[-1]["id"] if is_more else None}


@router.get("/v1/quarantine/{record_id}", response_model=QuarantinedRecord, summary="One quarantined record")
async def read_record(
    record_id: Annotated[str, Path(pattern=patterns.RECORD_ID)], context: Api, caller: FinanceReader
) -> dict[str, Any]:
    """Return a record with its stored raw bytes, up to 2 MiB."""
    async with context.snapshot() as connection:
        row = await records.record(connection, caller, record_id)
    if row is None:
        raise not_found("quarantined record")
    return records.answer(row)


@router.post(
    "/v1/quarantine/replay",
    status_code=202,
    response_model=Replayed,
    response_model_exclude_none=True,
    summary="Replay several records",
    responses={**BODY_PROBLEMS, **_REPLAY_PROBLEMS},
    openapi_extra=body_schema(REPLAY_REQUEST, {"reason": {"reason": "unknown_ad_account"}, "ids": {"ids": ["0-1"]}}),
)
async def replay_several(request: Request, context: Api, caller: FinanceWriter) -> dict[str, Any]:
    """Send records back to their shard: these ids, or all records of a reason that were not replayed yet.

    One request takes at most 1,000 ids, whose records may have 8 MiB together (413). Records of a reason are sent in
    the order of shard and sequence, a thousand at a time. If the call is interrupted, what was sent stays sent, and
    another call continues after it. Records that are quarantined in the meantime are not sent. A record that waits for
    its shard, or was sent back and has not failed since, is skipped and counted as `waiting`. A record that is not
    stored as a whole, or was sent back ten times and failed each time, is refused (422); of the records of a reason it
    is skipped, and counted as `not_whole` or `failed_too_often`. A record and its failed replays count together.
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
    summary="Replay one record",
    responses={
        409: {
            "model": Problem,
            "description": "The record waits for its shard, or was sent back and has not failed since",
        },
        **_REPLAY_PROBLEMS,
    },
)
async def replay_one(
    record_id: Annotated[str, Path(pattern=patterns.RECORD_ID)],
    context: Api,
    caller: FinanceWriter,
    force: Annotated[
        bool,
        Query(
            description=f"Replay even a record that fails again unchanged, or has failed {MOST_REPLAYS} times; for"
            " administrators of all Business Centers"
        ),
    ] = False,
) -> dict[str, Any]:
    """Send a record back to its shard, unchanged; for a replay that failed, send the first record.

    A record that was sent back ten times, by its own id or that of a failed replay, and failed each time is refused.
    """
    return await replay_one_id(context, caller, record_id, force=force)
