"""Describes the topics as an AsyncAPI document, from the models of the contracts."""

from functools import lru_cache
from typing import Any

from fastapi import APIRouter, Request, Response
from faststream.kafka import KafkaBroker
from faststream.specification import AsyncAPI

from services.api.answers.models import Outcome
from services.api.described.documentation import page
from shared.contracts.commands import AnyCommand
from shared.contracts.signals import DeliverySignal
from shared.contracts.spend import SpendEvent
from shared.runtime.kafka import DELIVERY_SIGNALS, FINANCE_COMMANDS, FINANCE_OUTCOMES, SPEND_EVENTS

router = APIRouter(tags=["operations"])


@router.get("/asyncapi.json", summary="The Kafka topics, their keys and messages", response_model=dict[str, Any])
async def asyncapi(request: Request) -> Response:
    """Return the AsyncAPI 3.0 document."""
    return await page(request)


@lru_cache(maxsize=1)
def document() -> dict[str, Any]:
    """Return the document. The broker object only lists what would be read and written; nothing connects."""
    broker = KafkaBroker()

    @broker.subscriber(
        SPEND_EVENTS,
        title=SPEND_EVENTS,
        description="Spends and reversals. Key: business_center_id. Also CloudEvents 1.0.",
    )
    async def _spend_events(event: SpendEvent) -> None: ...

    @broker.subscriber(
        FINANCE_COMMANDS,
        title=FINANCE_COMMANDS,
        description="Top-ups, budgets and the like. Key: business_center_id. The API signs its commands in"
        " the header `drawdown-signature`. Commands without it count as the topic's, and a policy may limit them.",
    )
    async def _finance_commands(command: AnyCommand) -> None: ...

    broker.publisher(
        FINANCE_OUTCOMES,
        title=FINANCE_OUTCOMES,
        schema=Outcome,
        description="The outcome of each command. Key: command_id. At least once.",
    )
    broker.publisher(
        DELIVERY_SIGNALS,
        title=DELIVERY_SIGNALS,
        schema=DeliverySignal,
        description="Pause and resume. Key: ad_account/{id} or campaign/{ad_account_id}/{id}; compacted. At least once,"
        " in order per key: ignore positions that you have seen.",
    )
    described: dict[str, Any] = AsyncAPI(broker, title="Drawdown", version="1").to_specification().to_jsonable()
    described.pop("servers", None)
    for channel in described["channels"].values():
        channel.pop("servers", None)
    return described
