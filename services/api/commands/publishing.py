"""`POST /v1/commands`: publishes a finance command, waits for its outcome, and until reads show its effect."""

import asyncio
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from services.api.answers.models import Outcome, Problem, time
from services.api.commands.refusing import first_decision, refused_by_role
from services.api.context import Api, Context
from services.api.described.openapi import BODY_PROBLEMS
from services.api.door.access import ANYBODY, AnyRole
from services.api.door.bodies import body_schema, read_body
from services.api.door.errors import ApiError, invalid, permission_denied, unavailable
from shared.contracts.commands import FINANCE_COMMAND, Command, command_content, kept_meaning_hash, meaning_hash
from shared.rules.entries import canonical_json
from shared.runtime.kafka import FINANCE_COMMANDS, murmur2_partition

DECISION_TIMEOUT_SECONDS = 10.0
PUBLISH_TIMEOUT_SECONDS = 6.0

_EXAMPLE = {
    "command_id": "01936d3e-0000-7000-8000-000000000001",
    "type": "deposit_cash",
    "business_center_id": "bc-1",
    "amount": "100.00",
    "issued_at": "2026-11-21T12:00:00Z",
    "actor": {"id": "maria", "role": "finance_manager"},
}
_BOUND = {
    **_EXAMPLE,
    "command_id": "01936d3e-0000-7000-8000-000000000002",
    "type": "set_largest_spend",
    "amount": "500.00",
}

router = APIRouter(tags=["commands"])


@router.post(
    "/v1/commands",
    response_model=Outcome,
    summary="Send a finance command and wait for its outcome",
    openapi_extra=body_schema(FINANCE_COMMAND, {"deposit_cash": _EXAMPLE, "set_largest_spend": _BOUND}),
    responses={
        400: {"model": Problem, "description": "The body is not a command"},
        **BODY_PROBLEMS,
        422: {"model": Outcome, "description": "The command was rejected; the outcome has the code"},
        503: {"model": Problem, "description": "The broker or the database is unavailable: try again"},
        504: {"model": Problem, "description": "Not decided in time: try again with the same command_id"},
    },
)
async def post_command(request: Request, context: Api, caller: AnyRole) -> JSONResponse:
    """Answer with the command's outcome once it is in the ledger; later reads show its effect.

    The token names the actor; an actor in the body is ignored and may be left out. Without authentication, the
    body's actor counts.

    A command that the caller's role may never give is refused at once and leaves no trace in the ledger.

    The same `command_id` with the same content may be sent any number of times. The command is applied once, and each
    call answers with the first outcome.
    """
    known = {} if caller is ANYBODY else {"actor": caller.actor()}
    content = _content(await read_body(request, FINANCE_COMMAND, tagged=True, known=known))
    if not caller.sees(content["business_center_id"]):
        raise permission_denied("this Business Center is not yours")
    shard = murmur2_partition(content["business_center_id"].encode(), context.shards)
    row = await refused_by_role(context, shard, content) or await _decide(context, shard, content)
    return JSONResponse(_outcome(row), 200 if row["status"] == "accepted" else 422)


def _content(command: Command) -> dict[str, Any]:
    try:
        content = command_content(command)
    except ValueError as error:
        raise invalid(str(error)) from None
    if "\x00" in content.get("time_zone", ""):
        raise invalid("time_zone should be the name of a time zone")
    return content


async def _decide(context: Context, shard: int, content: dict[str, Any]) -> Mapping[str, Any]:
    """Return the row of the outcome once the read model shows its effect.

    Raises:
        ApiError: 504 after ten seconds; 503 if the broker or the database is unavailable.

    """
    try:
        async with asyncio.timeout(DECISION_TIMEOUT_SECONDS) as limit:
            row = await _outcome_row(context, shard, content)
            await context.watcher.visible(shard, row["position"])
            return row
    except TimeoutError:
        if not limit.expired():
            raise
        within = f"within {DECISION_TIMEOUT_SECONDS:.0f} s"
        told = f"the command was not decided, or its effect not visible, {within}: try again with the same command_id"
        raise ApiError(504, "timeout", told) from None


async def _outcome_row(context: Context, shard: int, content: dict[str, Any]) -> Mapping[str, Any]:
    command_id, meaning = UUID(content["command_id"]), meaning_hash(content)
    async with context.snapshot() as connection:
        after = await connection.fetchval("SELECT outcome_sequence FROM ledger.shards WHERE shard = $1", shard)
        first = await first_decision(connection, shard, command_id)
    if first is not None and kept_meaning_hash(first["content"]) == meaning:
        return first
    await _publish(context, shard, content)
    row: Mapping[str, Any] = await context.watcher.outcome(shard, command_id, meaning, after or 0)
    return row


async def _publish(context: Context, shard: int, content: dict[str, Any]) -> None:
    """Send the command to the broker and wait until it is acknowledged. Raises KafkaError or ApiError (503)."""
    value = canonical_json(content).encode()
    key = content["business_center_id"].encode()
    headers = None if context.signer is None else [context.signer.header(value)]
    try:
        async with asyncio.timeout(PUBLISH_TIMEOUT_SECONDS):
            acknowledged = await context.producer.send(FINANCE_COMMANDS, value, key, partition=shard, headers=headers)
            # The shield keeps the producer's own future intact after a timeout, because it still belongs to its batch.
            await asyncio.shield(acknowledged)
    except TimeoutError:
        raise unavailable("the broker") from None


def _outcome(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("business_center_id", "type", "status", "code", "message", "shard", "position")
    return {
        "command_id": str(row["command_id"]),
        **{name: row[name] for name in names},
        "recorded_at": time(row["recorded_at"]),
        "via": row["via"],
    }
