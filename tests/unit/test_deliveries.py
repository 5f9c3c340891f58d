"""The subscriber of `delivery.signals` takes signals and skips whatever else lies in the topic."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawdown.deliveries import Deliveries, signal_of

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


def test_a_signal_is_taken_with_causes_of_a_newer_version_too() -> None:
    newer = {**SIGNAL, "cause": "weather", "causes": ["weather"]}
    deliveries = Deliveries()
    for signal in (SIGNAL, {**newer, "position": 4712}):
        read = signal_of(json.dumps(signal).encode())
        assert read == signal
        deliveries.take(b"campaign/a/c", read)
    assert not deliveries.is_delivering("a", "c")


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
def test_what_is_no_signal_is_none(value: bytes | None) -> None:
    assert signal_of(value) is None


@given(st.binary())
def test_whatever_the_bytes_reading_them_ends_well(value: bytes) -> None:
    signal_of(value)
