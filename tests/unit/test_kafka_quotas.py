"""Quotas of Kafka's users: the requests to the broker, byte by byte, and what is changed."""

from struct import pack

import pytest

from drawdown.deployment.kafka_access import PRINCIPALS, quotas
from drawdown.deployment.kafka_quotas import _AlterClientQuotasRequest, _change, _DescribeClientQuotasRequest
from shared.runtime.settings import Settings


def text(value: str) -> bytes:
    """Return a compact string of Kafka's protocol, short enough for a length of one byte."""
    return bytes([len(value) + 1]) + value.encode()


def test_a_change_is_sent_as_the_protocol_defines_it() -> None:
    changes = {"ad-delivery": {"producer_byte_rate": 5e7, "consumer_byte_rate": None}}
    request = _AlterClientQuotasRequest(changes).prepare({49: (0, 1)})
    entity = b"\x02" + text("user") + text("ad-delivery") + b"\x00"
    kept = text("producer_byte_rate") + pack(">d", 5e7) + b"\x00\x00"
    removed = text("consumer_byte_rate") + pack(">d", 0) + b"\x01\x00"
    assert request.encode() == b"\x02" + entity + b"\x03" + kept + removed + b"\x00" + b"\x00\x00"


def test_the_quotas_of_users_of_any_name_are_asked_for() -> None:
    request = _DescribeClientQuotasRequest().prepare({48: (0, 1)})
    assert request.encode() == b"\x02" + text("user") + b"\x02\x00\x00" + b"\x01\x00"


@pytest.mark.parametrize(
    ("held", "wanted", "change"),
    [
        ({}, {"a": 1.0}, {"a": 1.0}),
        ({"a": 1.0}, {"a": 1.0}, {}),
        ({"a": 1.0, "b": 2.0}, {"a": 3.0}, {"a": 3.0, "b": None}),
        ({"b": 2.0}, {}, {"b": None}),
    ],
)
def test_only_quotas_that_differ_are_changed(
    held: dict[str, float], wanted: dict[str, float], change: dict[str, float | None]
) -> None:
    assert _change(held, wanted) == change


def test_every_user_has_a_rate_including_those_outside_the_settings() -> None:
    found = quotas(Settings(kafka_ad_delivery_bytes_per_second=7, kafka_back_office_bytes_per_second=8))
    assert set(found) == set(PRINCIPALS)
    assert all(each["producer_byte_rate"] > 0 for each in found.values())
    assert [found[name]["producer_byte_rate"] for name in ("ad-delivery", "back-office")] == [7, 8]
