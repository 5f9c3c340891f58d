"""`delivery.signals`: pauses and resumes, one message for each cause that is added or removed."""

from typing import Annotated, Literal

from pydantic import BaseModel

from shared.contracts.known import known
from shared.rules.vocabulary import CAUSES

Cause = Annotated[str, known(*CAUSES)]


class DeliverySignal(BaseModel):
    """One change of an entity's set of pause causes. The signals of one key are in the ledger's order."""

    entity: Literal["ad_account", "campaign"]
    business_center_id: str
    ad_account_id: str
    campaign_id: str | None
    change: Literal["paused", "resumed", "causes_changed"]
    cause: Cause
    delivering: bool
    causes: list[Cause]
    shard: int
    position: int
    source_event_id: str | None
    occurred_at: str
    recorded_at: str
