"""`delivery.signals`: pause and resume, one message for each cause added or removed."""

from typing import Literal

from pydantic import BaseModel

Cause = Literal["ad_account_balance", "ad_account_budget", "business_center_balance", "campaign_budget"]


class DeliverySignal(BaseModel):
    """One change of an entity's set of pause causes, in the ledger's order per key."""

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
