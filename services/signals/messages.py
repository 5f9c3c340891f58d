"""Turns a pause or resume of the ledger into a message of `delivery.signals`. Pure."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from shared.contracts.fields import format_time
from shared.contracts.signals import DeliverySignal
from shared.rules.instants import from_datetime


def signal_key(entry: Mapping[str, Any]) -> bytes:
    """Return the key of an entry's entity: `ad_account/{id}` or `campaign/{ad_account_id}/{id}`."""
    if entry["campaign_id"] is None:
        return f"ad_account/{entry['ad_account_id']}".encode()
    return f"campaign/{entry['ad_account_id']}/{entry['campaign_id']}".encode()


def signal(entry: Mapping[str, Any]) -> DeliverySignal:
    """Return the message for a `pause` or `resume` entry, which depends on nothing but that entry."""
    causes = json.loads(entry["details"])["causes"]
    source = entry["source_event_id"]
    return DeliverySignal(
        entity="ad_account" if entry["campaign_id"] is None else "campaign",
        business_center_id=entry["business_center_id"],
        ad_account_id=entry["ad_account_id"],
        campaign_id=entry["campaign_id"],
        change=_change(entry["kind"], len(causes)),
        cause=entry["cause"],
        delivering=not causes,
        causes=causes,
        shard=entry["shard"],
        position=entry["position"],
        source_event_id=None if source is None else str(source),
        occurred_at=_time(entry["occurred_at"]),
        recorded_at=_time(entry["recorded_at"]),
    )


def _change(kind: str, causes: int) -> Literal["paused", "resumed", "causes_changed"]:
    """Return the kind of change. An entry adds or removes one cause, so `causes`, the count after it, decides."""
    if kind == "pause" and causes == 1:
        return "paused"
    if kind == "resume" and causes == 0:
        return "resumed"
    return "causes_changed"


def _time(moment: datetime) -> str:
    return format_time(from_datetime(moment))
