"""`POST /v1/events/lookup`: tells a publisher what became of many events."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from uuid import UUID

import asyncpg
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from services.api.answers.cursors import parse_numbers
from services.api.context import Api
from services.api.described.openapi import BODY_PROBLEMS, READ_PROBLEMS
from services.api.door.access import FinanceReader
from services.api.door.bodies import WHOLE, body_schema, read_body
from shared.contracts.fields import Uuid
from shared.contracts.known import known
from shared.rules.vocabulary import QUARANTINE_REASONS
from shared.runtime.kafka import SPEND_EVENTS

EVENTS_AT_MOST = 500  # Their ids and offsets fit into a body.
_CURSOR = r"^[0-9]{1,18}(\.[0-9]{1,18}){0,1023}$"
_EXACT = "From 2^53 on, written without a fraction or an exponent"
_AFTER = "The `next` of an earlier lookup, with a number for each shard"
CHARGED, QUARANTINED, WAITING, UNKNOWN = "charged", "quarantined", "waiting", "unknown"

router = APIRouter(tags=["ledger"], responses=READ_PROBLEMS)


class PublishedEvent(BaseModel):
    """An event, named by its id, by its place on the topic, or by both; leave out what you do not know."""

    model_config = ConfigDict(frozen=True)
    event_id: Uuid | None = None
    partition: Annotated[int, Field(ge=0, le=2**15 - 1), WHOLE] | None = None
    offset: Annotated[int, Field(ge=0, le=2**63 - 1, description=_EXACT), WHOLE] | None = None


class EventsLookup(BaseModel):
    """The events to look up, and where to start in quarantine; without `after`, quarantine is not searched."""

    model_config = ConfigDict(frozen=True)
    events: Annotated[list[PublishedEvent], Field(min_length=1, max_length=EVENTS_AT_MOST)]
    after: Annotated[str, Field(pattern=_CURSOR, description=_AFTER)] | None = None


class FoundEvent(BaseModel):
    """What became of an event; for a quarantined one also the id of the record, the reason and the detail."""

    state: Annotated[str, known(CHARGED, QUARANTINED, WAITING, UNKNOWN)]
    record_id: str | None = None
    reason: Annotated[str, known(*QUARANTINE_REASONS)] | None = None
    detail: str | None = None


class FoundEvents(BaseModel):
    """One answer for each event, in the order of the request. Pass `next` as `after` in a later lookup."""

    events: list[FoundEvent]
    next: str


EVENTS_LOOKUP: TypeAdapter[EventsLookup] = TypeAdapter(EventsLookup)
_EVENT = {"event_id": "0193b0a5-7c00-7000-8000-000000000001", "partition": 0, "offset": 4711}


@router.post(
    "/v1/events/lookup",
    response_model=FoundEvents,
    response_model_exclude_none=True,
    summary="Look up what became of events",
    responses=BODY_PROBLEMS,
    openapi_extra=body_schema(EVENTS_LOOKUP, {"events": {"events": [_EVENT], "after": "12.0.3.4"}}),
)
async def look_up_events(request: Request, context: Api, caller: FinanceReader) -> dict[str, Any]:
    """Tell for each event of the caller's Business Centers whether it is in the ledger or in quarantine.

    `charged` means that the ledger has an event of this id, this one or an earlier one. `quarantined` means that the
    record at this partition and offset of `spend.events` was quarantined after `after`. Offsets start again with
    another broker, so make one lookup before you publish and pass its `next`. `waiting` means that the record was not
    read yet. `unknown` means none of these.
    """
    asked = await read_body(request, EVENTS_LOOKUP)
    after = None if asked.after is None else parse_numbers(asked.after, context.shards)
    async with context.snapshot() as connection:
        shards = await _shards(connection, caller.scope)
        charged = await _charged(connection, asked.events, caller.scope)
        quarantined = {} if after is None else await _quarantined(connection, asked.events, after, caller.scope)
    read_up_to = {row["shard"]: row["spend_offset"] for row in shards}
    return {
        "events": [_found(event, charged, quarantined, read_up_to) for event in asked.events],
        "next": ".".join(str(row["quarantine_sequence"]) for row in shards),
    }


def _found(
    event: PublishedEvent,
    charged: set[UUID],
    quarantined: Mapping[tuple[int | None, int | None], dict[str, str]],
    read_up_to: Mapping[int | None, int],
) -> dict[str, str]:
    """Decide the state of an event. Quarantine goes first, because the ledger may have another event of the same id.

    A record at a partition that the topic does not have never waits.
    """
    refused = quarantined.get((event.partition, event.offset))
    if refused is not None:
        return {"state": QUARANTINED, **refused}
    next_offset = read_up_to.get(event.partition)
    if event.offset is not None and next_offset is not None and event.offset >= next_offset:
        return {"state": WAITING}
    is_charged = event.event_id is not None and UUID(event.event_id) in charged
    return {"state": CHARGED if is_charged else UNKNOWN}


async def _shards(connection: asyncpg.Connection, scope: list[str] | None) -> list[asyncpg.Record]:
    """Return how far each shard has read its topic, and its last quarantined record within the scope."""
    rows: list[asyncpg.Record] = await connection.fetch(
        """
        SELECT s.shard, s.spend_offset, CASE WHEN $1::text[] IS NULL THEN s.quarantine_sequence ELSE coalesce((
            SELECT max(q.sequence) FROM ledger.quarantine q
            WHERE q.shard = s.shard AND q.business_center_id = ANY($1)), 0) END AS quarantine_sequence
        FROM ledger.shards s ORDER BY 1
        """,
        scope,
    )
    return rows


async def _charged(
    connection: asyncpg.Connection, events: Sequence[PublishedEvent], scope: list[str] | None
) -> set[UUID]:
    rows = await connection.fetch(
        """
        SELECT source_event_id FROM ledger.entries
        WHERE source_event_id = ANY($1) AND part = 0 AND day IS NOT NULL
          AND ($2::text[] IS NULL OR business_center_id = ANY($2))
        """,
        [UUID(event.event_id) for event in events if event.event_id is not None],
        scope,
    )
    return {row["source_event_id"] for row in rows}


async def _quarantined(
    connection: asyncpg.Connection, events: Sequence[PublishedEvent], after: Sequence[int], scope: list[str] | None
) -> dict[tuple[int | None, int | None], dict[str, str]]:
    """Return the records that were quarantined after these sequences, one of each shard, by partition and offset.

    Of a record that was quarantined several times, it is the last.
    """
    rows = await connection.fetch(
        """
        SELECT q.shard, q.sequence, q.reason, q.detail, q.partition, q."offset"
        FROM unnest($1::bigint[]) WITH ORDINALITY AS seen (sequence, number)
        JOIN ledger.quarantine q ON q.shard = seen.number - 1 AND q.sequence > seen.sequence
        WHERE q.topic = $2 AND (q.partition, q."offset") IN (SELECT * FROM unnest($3::integer[], $4::bigint[]))
          AND ($5::text[] IS NULL OR q.business_center_id = ANY($5))
        ORDER BY q.shard, q.sequence
        """,
        after,
        SPEND_EVENTS,
        [event.partition for event in events],
        [event.offset for event in events],
        scope,
    )
    return {
        (row["partition"], row["offset"]): {
            "record_id": f"{row['shard']}-{row['sequence']}",
            "reason": row["reason"],
            "detail": row["detail"],
        }
        for row in rows
    }
