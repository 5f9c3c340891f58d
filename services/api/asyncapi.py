"""The topics as an AsyncAPI document, made from the contracts' own models."""

from functools import lru_cache
from typing import Any

from fastapi import APIRouter
from faststream.kafka import KafkaBroker
from faststream.specification import AsyncAPI

from services.api.models import Outcome
from shared.contracts.commands import AnyCommand
from shared.contracts.signals import DeliverySignal
from shared.contracts.spend import SpendEvent
from shared.runtime.kafka import DELIVERY_SIGNALS, FINANCE_COMMANDS, FINANCE_OUTCOMES, SPEND_EVENTS

router = APIRouter(tags=["operations"])


@router.get("/asyncapi.json", summary="The Kafka topics, their keys and messages")
def asyncapi() -> dict[str, Any]:
    """AsyncAPI 3.0."""
    return _document()


@lru_cache(maxsize=1)
def _document() -> dict[str, Any]:
    """Nothing connects: the broker object only knows what would be read and written."""
    broker = KafkaBroker()

    @broker.subscriber(
        SPEND_EVENTS,
        title=SPEND_EVENTS,
        description="Spends and reversals. Key: business_center_id. Also CloudEvents 1.0.",
    )
    async def _spend_events(event: SpendEvent) -> None: ...

    @broker.subscriber(
        FINANCE_COMMANDS, title=FINANCE_COMMANDS, description="Top-ups, budgets and the like. Key: business_center_id."
    )
    async def _finance_commands(command: AnyCommand) -> None: ...

    broker.publisher(
        FINANCE_OUTCOMES,
        title=FINANCE_OUTCOMES,
        schema=Outcome,
        description="What became of each command. Key: command_id. At least once.",
    )
    broker.publisher(
        DELIVERY_SIGNALS,
        title=DELIVERY_SIGNALS,
        schema=DeliverySignal,
        description="Pause and resume. Key: ad_account/{id} or campaign/{ad_account_id}/{id}; compacted. At least once,"
        " in order per key: drop what has a position that was seen.",
    )
    document: dict[str, Any] = AsyncAPI(broker, title="Drawdown", version="1").to_specification().to_jsonable()
    document.pop("servers", None)
    for channel in document["channels"].values():
        channel.pop("servers", None)
    return document
