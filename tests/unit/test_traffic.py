"""The traffic generator makes valid records, and a few invalid ones on purpose."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from drawdown.api_client import ApiClient
from drawdown.local.subscriber import Subscriber
from drawdown.local.traffic import CAST, Spends, Traffic, set_up_commands
from shared.contracts.commands import FINANCE_COMMAND
from shared.contracts.spend import SPEND_EVENT
from shared.runtime.settings import Settings

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
RECORDS = 20_000


@pytest.fixture(scope="module")
def records() -> list[tuple[bytes, bytes, bool]]:
    spends = Spends(lambda: NOW)
    return [record for record in (spends.next() for _ in range(RECORDS)) if record is not None]


def readable(records: list[tuple[bytes, bytes, bool]]) -> Iterator[dict[str, str]]:
    for _, value, _ in records:
        try:
            event = json.loads(value)
            SPEND_EVENT.validate_json(value)
        except (ValueError, ValidationError):
            continue
        yield event


def test_the_setup_consists_of_commands_and_is_always_the_same() -> None:
    first = list(set_up_commands(CAST, "2026-11-22T12:00:00Z"))
    again = list(set_up_commands(CAST, "2026-11-23T12:00:00Z"))
    for command in first:
        FINANCE_COMMAND.validate_python(command)
    assert len({command["command_id"] for command in first}) == len(first)
    without_time = [[{**command, "issued_at": None} for command in commands] for commands in (first, again)]
    assert without_time[0] == without_time[1]


def test_nearly_all_records_are_valid_events(records: list[tuple[bytes, bytes, bool]]) -> None:
    bad = len(records) - len(list(readable(records)))
    assert len(records) == RECORDS
    assert 5 <= bad <= 100


def test_every_record_has_the_key_of_its_business_center(records: list[tuple[bytes, bytes, bool]]) -> None:
    keys = {key for key, _, _ in records}
    assert keys == {center.id.encode() for center in CAST}


def test_there_are_duplicates_reversals_late_and_misdirected_events(records: list[tuple[bytes, bytes, bool]]) -> None:
    events = list(readable(records))
    ids = Counter(event["event_id"] for event in events)
    assert 100 <= sum(count - 1 for count in ids.values()) <= 400
    assert 50 <= sum(event["type"] == "reversal" for event in events) <= 200
    late = sum(datetime.fromisoformat(event["occurred_at"]) < NOW - timedelta(seconds=60) for event in events)
    assert 200 <= late <= 800
    assert 50 <= sum(misdirected for _, _, misdirected in records) <= 200


def test_a_second_run_makes_the_same_spends_with_other_ids() -> None:
    runs = [[spends.next() for _ in range(20)] for spends in (Spends(lambda: NOW), Spends(lambda: NOW))]
    first, second = ([json.loads(record[1]) for record in run if record] for run in runs)
    assert [event["amount"] for event in first] == [event["amount"] for event in second]
    assert not {event["event_id"] for event in first} & {event["event_id"] for event in second}


def signal(position: int, change: str, causes: list[str]) -> dict[str, object]:
    return {
        "entity": "ad_account",
        "ad_account_id": "northwind-us",
        "campaign_id": None,
        "business_center_id": "northwind",
        "change": change,
        "cause": "business_center_balance",
        "delivering": not causes,
        "causes": causes,
        "shard": 0,
        "position": position,
        "recorded_at": NOW.isoformat(),
    }


KEY = b"ad_account/northwind-us"


def test_a_subscriber_keeps_the_state_and_drops_what_it_has_seen() -> None:
    subscriber = Subscriber()
    subscriber.take(KEY, signal(5, "paused", ["business_center_balance"]))
    assert not subscriber.is_delivering("northwind-us", "brand")
    assert subscriber.is_delivering("northwind-ca", "brand")
    subscriber.take(KEY, signal(7, "resumed", []))
    subscriber.take(KEY, signal(5, "paused", ["business_center_balance"]))
    assert subscriber.is_delivering("northwind-us", "brand")
    assert (subscriber.pauses, subscriber.resumes, subscriber.paused) == (1, 1, 0)


def test_only_a_pause_after_spending_began_counts_as_the_first() -> None:
    subscriber = Subscriber()
    subscriber.take(KEY, signal(1, "paused", ["ad_account_balance"]))
    assert subscriber.first_pause is None
    subscriber.spending_since = NOW
    subscriber.take(KEY, signal(2, "paused", ["ad_account_balance"]))
    assert subscriber.first_pause is not None


def test_a_paused_account_gets_no_spend_once_nothing_is_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(10_000_000))
    monkeypatch.setattr("drawdown.local.traffic.time.monotonic", lambda: float(next(seconds)))
    subscriber = Subscriber()
    spends = Spends(lambda: NOW, subscriber)
    subscriber.take(KEY, signal(1, "paused", ["business_center_balance"]))
    drawn = [spends.next() for _ in range(2_000)]
    values = [json.loads(record[1]) for record in drawn[500:] if record and record[1].endswith(b"}")]
    fresh = [event for event in values if event["type"] == "spend" and event["ad_account_id"] == "northwind-us"]
    assert len({event["event_id"] for event in fresh}) < 20  # Only repeats of earlier ones.


class ClosedApi(ApiClient):
    """An API that answers with these status codes, one after the other."""

    def __init__(self, *codes: str | None) -> None:
        super().__init__({})
        self.codes = list(codes)

    async def command(self, command: Mapping[str, Any]) -> dict[str, Any]:
        code = self.codes.pop(0)
        return {"status": "rejected" if code else "accepted", "code": code, "message": f"it is {code}"}


async def test_an_expired_token_is_reported_once_until_it_is_replaced() -> None:
    codes = ("unauthenticated", "unauthenticated", None, "unauthenticated", "conflict", "insufficient_funds")
    said: list[str] = []
    client = ClosedApi(*codes)
    traffic = Traffic(Settings(), client, Subscriber(), rate=1, say=said.append)
    command = next(set_up_commands(CAST, "2026-11-22T12:00:00Z"))
    while client.codes:
        await traffic.send_in_order([command])
    ended = "it is unauthenticated; nothing is opened or topped up until `make up` issues a new token"
    assert said == [ended, ended, "northwind: open_business_center: it is insufficient_funds"]
