"""The subscriber of `delivery.signals` takes signals, and skips all other records of the topic."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from drawdown.local.subscriber import Subscriber, signal_of

SIGNAL: dict[str, Any] = {
    "entity": "campaign",
    "ad_account_id": "a",
    "campaign_id": "c",
    "business_center_id": "b",
    "change": "paused",
    "cause": "campaign_budget",
    "delivering": False,
    "causes": ["campaign_budget"],
    "shard": 3,
    "position": 4711,
    "source_event_id": None,
    "occurred_at": "2026-11-21T12:00:00Z",
    "recorded_at": "2026-11-21T12:00:00Z",
}


def test_a_signal_with_causes_of_a_newer_version_is_accepted() -> None:
    newer = {**SIGNAL, "cause": "weather", "causes": ["weather"]}
    subscriber = Subscriber()
    for signal in (SIGNAL, {**newer, "position": 4712}):
        read = signal_of(json.dumps(signal).encode())
        assert read == signal
        subscriber.take(b"campaign/a/c", read)
    assert not subscriber.is_delivering("a", "c")


@pytest.mark.parametrize(
    "value",
    [
        b"",
        None,
        b"{",
        b"[]",
        b"1",
        b'{"pen": "test"}',
        json.dumps({**SIGNAL, "position": "x"}).encode(),
        b"\xff",
        b"null",
    ],
)
def test_a_record_that_is_not_a_signal_is_not_decoded(value: bytes | None) -> None:
    assert signal_of(value) is None


@dataclass
class Record:
    """A record of a topic, with the fields that the consumer gives it."""

    key: bytes | None
    value: bytes | None
    topic: str = "delivery.signals"
    partition: int = 0
    offset: int = 0


def test_a_record_that_is_not_a_signal_is_skipped_and_counted_and_rarely_logged() -> None:
    subscriber = Subscriber()
    with capture_logs() as logs:
        for _ in range(1000):
            subscriber.look_at(Record(b"campaign/a/c", b'{"pen": "test"}'))
            subscriber.look_at(Record(None, json.dumps(SIGNAL).encode()))
        subscriber.look_at(Record(b"campaign/a/c", None))
        subscriber.look_at(Record(b"campaign/a/c", json.dumps(SIGNAL).encode()))
    assert (subscriber.skipped, subscriber.pauses) == (2000, 1)
    assert len(logs) == 11


@given(st.fixed_dictionaries({name: st.text() | st.just(value) for name, value in SIGNAL.items()}), st.text())
@example({**SIGNAL, "recorded_at": "soon"}, "")
@example({**SIGNAL, "recorded_at": "2026-11-21T12:00:00"}, "")
@example({**SIGNAL, "position": 10**40}, "")
def test_no_content_of_a_signal_ends_the_subscriber(signal: dict[str, Any], key: str) -> None:
    subscriber = Subscriber(spending_since=datetime(2026, 1, 1, tzinfo=UTC))
    subscriber.look_at(Record(key.encode(errors="replace"), json.dumps(signal).encode()))


@given(st.binary())
def test_any_bytes_can_be_read(value: bytes) -> None:
    signal_of(value)
