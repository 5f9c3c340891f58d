"""`drawdown spend send` reports the outcome of what it sent, from the API alone, and exits accordingly."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from drawdown.api_client import ApiClient
from drawdown.local import spend_sending
from drawdown.local.spend_outcomes import Tally
from shared.runtime.kafka import SPEND_EVENTS, create_producer
from shared.runtime.settings import Settings
from tests.integration.api import command
from tests.servers import RunningSystem, free_ports, run_to_its_end

NOW = "2030-01-01T00:00:00Z"  # The last event of every file. It is shifted to now.


def spend(center: str, **fields: Any) -> dict[str, Any]:
    return {
        "type": "spend",
        "event_id": str(uuid4()),
        "business_center_id": center,
        "ad_account_id": f"{center}-a",
        "campaign_id": "c",
        "amount": "0.01",
        "currency": "USD",
        "occurred_at": NOW,
        **fields,
    }


def written(path: Path, rows: Iterable[dict[str, Any] | str]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


async def opened(system: RunningSystem) -> str:
    """Open a Business Center with an account that has 1,000.00."""
    center = f"send-{uuid4().hex[:8]}"
    opening = {"billing": "prepay", "buying_type": "auction", "time_zone": "UTC"}
    async with ApiClient({"api": system.url}) as door:
        for each in (
            command("open_business_center", center, currency="USD", time_zone="UTC"),
            command("open_ad_account", center, ad_account_id=f"{center}-a", **opening),
            command("deposit_cash", center, ad_account_id=f"{center}-a", amount="1000"),
        ):
            assert (await door.command(each))["status"] == "accepted"
    return center


async def test_every_row_is_reported_by_its_outcome(system: RunningSystem, tmp_path: Path) -> None:
    center = await opened(system)
    first = spend(center)
    rows: list[dict[str, Any] | str] = [
        *(first, spend(center), first, {**first, "amount": "0.02"}, "no JSON", {**spend(center), "amount": "x"}),
        *(spend("send-nobody"), spend(center, ad_account_id="send-nobody"), spend(center, currency="EUR")),
        spend(center, occurred_at="2029-12-01T00:00:00Z"),
    ]
    path = written(tmp_path / "spend.jsonl", rows)
    ended = await run_to_its_end(f"spend send {path}", system.settings)
    assert "spend.jsonl: 10 sent, 2 charged, 1 duplicate, 7 quarantined\n" in ended.stdout, ended
    assert "quarantined, content_conflict: 1; see: drawdown quarantine list --reason content_conflict" in ended.stdout
    assert "    row 5, record " in ended.stdout
    for reason in (
        "malformed",
        "invalid",
        "unknown_business_center",
        "unknown_ad_account",
        "currency_mismatch",
        "too_old",
    ):
        assert f"quarantined, {reason}: 1;" in ended.stdout
    assert ended.returncode == 0

    again = await run_to_its_end(f"spend send {path}", system.settings)
    assert "spend.jsonl: 10 sent, 0 charged, 3 duplicate, 7 quarantined\n" in again.stdout, again


async def test_a_window_of_a_large_file_knows_the_events_of_earlier_windows(
    system: RunningSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spend_sending, "_WINDOW_ROWS", 700)
    center = await opened(system)
    rows = [spend(center) for _ in range(1_000)]
    path = written(tmp_path / "spend.jsonl", [*rows, *rows, {**rows[0], "amount": "0.02"}])
    tally, progress = await sent(system, path)
    assert (tally.sent, tally.charged, tally.duplicate, dict(tally.quarantined)) == (
        *(2_001, 1_000, 1_000),
        {"content_conflict": 1},
    )
    assert progress[-1] == (2_001, 2_001)
    assert progress == sorted(progress)


async def sent(system: RunningSystem, path: Path) -> tuple[Tally, list[tuple[int, int]]]:
    file = spend_sending.prepare(system.settings, path, keep_times=False, say=print)
    progress: list[tuple[int, int]] = []
    async with ApiClient({"api": system.url}) as door:
        tally = await spend_sending.send(system.settings, file, door, print, lambda *so_far: progress.append(so_far))
    return tally, progress


async def test_everything_is_sent_and_reported_as_undecided_without_the_api(
    system: RunningSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("drawdown.api_client._ATTEMPTS", 1)
    center = await opened(system)
    path = written(tmp_path / "spend.jsonl", [spend(center) for _ in range(3)])
    file = spend_sending.prepare(system.settings, path, keep_times=False, say=print)
    async with ApiClient({"api": f"http://127.0.0.1:{free_ports(1)}"}) as nowhere:
        code = await spend_sending.send_and_report(system.settings, nowhere, file, print)
    said = capsys.readouterr().out
    assert "the API does not report the outcomes" in said
    assert "spend.jsonl: 3 sent, 0 charged, 0 duplicate, 0 quarantined, 3 undecided" in said
    assert code == 1


async def test_a_row_that_the_broker_refuses_is_reported_and_the_rest_is_sent(
    system: RunningSystem, tmp_path: Path
) -> None:
    center = await opened(system)
    path = written(tmp_path / "spend.jsonl", [spend(center, note="x" * 2_000_000), spend(center)])
    tally, _ = await sent(system, path)
    assert (tally.sent, tally.unsent, tally.charged, tally.is_complete) == (1, 1, 1, False)


@pytest.mark.embedded
async def test_a_broker_without_idempotent_producers_is_reported_at_once_and_used(
    system: RunningSystem, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(kafka_bootstrap_servers=system.bootstrap_servers, kafka_idempotence=True)
    begun = time.monotonic()
    producer = await create_producer(settings)
    try:
        await producer.send_and_wait(SPEND_EVENTS, b"{}", b"key")
    finally:
        await producer.stop()
    assert time.monotonic() - begun < 10
    assert "DRAWDOWN_KAFKA_IDEMPOTENCE=false" in "".join(capfd.readouterr())
