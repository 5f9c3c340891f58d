"""A subscriber of `delivery.signals`: knows the accounts and campaigns that deliver, and the latest changes."""

import asyncio
import itertools
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer
from pydantic import ValidationError

from shared.contracts.signals import DeliverySignal
from shared.runtime import fetched
from shared.runtime.kafka import DELIVERY_SIGNALS, start_client, stop_client
from shared.runtime.settings import Settings

_REMEMBERED = 200
MOST_RECORDS = 1_000  # taken at once
REST_SECONDS = 0.01  # after a look that found none


def signal_of(value: bytes | None) -> dict[str, Any] | None:
    """Return the signal in a record's value, or None if it is not a signal."""
    try:
        return DeliverySignal.model_validate_json(value or b"").model_dump()
    except ValidationError:
        return None


@dataclass
class Subscriber:
    """Keeps the state of accounts and campaigns, and ignores signals whose position it has seen.

    `first_pause` is the first since `spending_since`; before that, accounts pause only because they are opened empty.
    `skipped` is the number of records that were not signals.
    """

    latest: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))
    spending_since: datetime | None = None
    first_pause: dict[str, Any] | None = None
    pauses: int = 0
    resumes: int = 0
    skipped: int = 0
    _positions: dict[bytes, int] = field(default_factory=dict)
    _paused: dict[bytes, tuple[str, ...]] = field(default_factory=dict)

    def is_delivering(self, ad_account_id: str, campaign_id: str) -> bool:
        """Return whether neither the campaign nor its account is paused, according to the signals so far."""
        keys = (f"ad_account/{ad_account_id}".encode(), f"campaign/{ad_account_id}/{campaign_id}".encode())
        return not any(key in self._paused for key in keys)

    @property
    def paused(self) -> int:
        """Return the number of accounts and campaigns that have a pause cause of their own."""
        return len(self._paused)

    def look_at(self, record: Any) -> None:
        """Take the signal in a record. Skips and counts other records, and logs the 1st, 2nd, 4th, 8th … of them."""
        signal = None if record.key is None else signal_of(record.value)
        if record.key is not None and signal is not None:
            self.take(record.key, signal)
        elif record.value is not None:
            self.skipped += 1
            if self.skipped.bit_count() == 1:
                structlog.get_logger().warning(
                    "skipped a record that is not a signal",
                    topic=record.topic,
                    partition=record.partition,
                    offset=record.offset,
                    skipped=self.skipped,
                )

    def take(self, key: bytes, signal: dict[str, Any]) -> None:
        """Apply one signal, unless a newer one of its key was applied."""
        if signal["position"] <= self._positions.get(key, 0):
            return
        self._positions[key] = signal["position"]
        if signal["delivering"]:
            self._paused.pop(key, None)
        else:
            self._paused[key] = tuple(signal["causes"])
        self.pauses += signal["change"] == "paused"
        self.resumes += signal["change"] == "resumed"
        self.latest.append(signal)
        if self.first_pause is None and signal["change"] == "paused" and self._is_of_spend(signal):
            self.first_pause = signal

    def _is_of_spend(self, signal: dict[str, Any]) -> bool:
        since = self.spending_since
        try:
            return since is not None and datetime.fromisoformat(signal["recorded_at"]) >= since
        except (ValueError, TypeError):  # It has no time, or no offset, so it is not one of our signals.
            return False

    async def follow(self, settings: Settings) -> None:
        """Take every signal from the beginning of the topic, until cancelled."""
        fetched.install()
        consumer = await start_client(
            settings,
            partial(AIOKafkaConsumer, DELIVERY_SIGNALS),
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            fetch_max_wait_ms=settings.kafka_fetch_wait_ms,
        )
        try:
            while True:
                found = await consumer.getmany(timeout_ms=0, max_records=MOST_RECORDS)
                for record in itertools.chain(*found.values()):
                    self.look_at(record)
                if not found:
                    await asyncio.sleep(REST_SECONDS)
        finally:
            await asyncio.shield(stop_client(consumer))
