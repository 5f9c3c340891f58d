"""Sends a file of ad spend, and reports the outcome."""

import asyncio
import hashlib
import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from itertools import islice
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError

from drawdown.api_client import ApiClient
from drawdown.local.spend_files import IPINYOU_BUSINESS_CENTER, Row, Summary, read, shifted, summarise
from drawdown.local.spend_outcomes import Outcomes, Say, Sent, Tally, event_id_of
from shared.runtime.clock import Clock
from shared.runtime.kafka import SPEND_EVENTS, create_producer, stop_client
from shared.runtime.settings import Settings

# Called with the number of rows sent so far, and the number of decided ones.
Progress = Callable[[int, int], None]
# A row's number, the row, and the record to send.
Numbered = tuple[int, tuple[Row, bytes]]

_NAMESPACE = uuid.UUID("0d0a6b1e-52c1-4a0c-8f2e-2f4f3b7f9a55")
_REMEMBERED = "sent-files.json"
_PROGRESS_SECONDS = 2.0
_WINDOW_ROWS = 10_000
# How long to wait until the read models show all that was decided.
_PATIENCE_SECONDS = 60.0
_COMMANDS_AT_ONCE = 16
# An account is opened with this many times the cash that its file spends.
_AMPLE = 10


@dataclass(frozen=True)
class File:
    """A file of spend: its path, its SHA-256, its summary, and the shift of its times."""

    path: Path
    digest: str
    summary: Summary
    shift: timedelta

    def records(self) -> Iterator[tuple[Row, bytes]]:
        """Yield each row with the record to send."""
        for row in read(self.path):
            yield row, shifted(row, self.shift)


def prepare(settings: Settings, path: Path, *, keep_times: bool, say: Say) -> File:
    """Read the file, and choose the shift that makes its last event happen now.

    A file that was sent before gets the same shift, so that its events are recognised as duplicates.

    Raises:
        UnreadableFileError: the file contains no spend.

    """
    digest = _digest(path)
    summary = summarise(path)
    say(f"{path.name}: {summary.rows:,} rows, {len(summary.accounts):,} ad accounts, {_span(summary)}")
    now = Clock(settings).now()
    shift = timedelta()
    if keep_times:
        say("its times are kept")
    elif summary.last is not None:
        shift, before = _chosen_shift(settings, digest, summary.last, now)
        how = "as when it was sent before" if before else "so that its last event is now"
        say(f"its times are shifted by {shift}, {how} (--keep-times keeps them)")
    window = timedelta(days=settings.deduplication_days)
    if summary.first is not None and summary.first - now + shift < -window:
        say(f"events older than DRAWDOWN_DEDUPLICATION_DAYS={settings.deduplication_days} will be quarantined: too_old")
    return File(path, digest, summary, shift)


async def send(settings: Settings, file: File, client: ApiClient, say: Say, progress: Progress) -> Tally:
    """Send every row in the file's order, keyed by Business Center, and wait until each is decided.

    Sends a window of rows at a time, so that memory does not grow with the file, and so that a row that is repeated
    later is found in the ledger.
    """
    outcomes, tally = Outcomes(client, say), Tally()
    producer = await create_producer(settings, linger_ms=5)
    try:
        for window in _windows(enumerate(file.records(), 1)):
            ids = [event_id_of(row.event) for _, (row, _) in window]
            before = await outcomes.before(ids)
            rows = await _publish(producer, window, ids, tally)
            progress(tally.sent, tally.decided)
            answers = await outcomes.of(rows, before)
            tally.take(rows, answers, frozenset() if before is None else before.charged)
            progress(tally.sent, tally.decided)
    finally:
        await stop_client(producer)
    return tally


def _windows(records: Iterator[Numbered]) -> Iterator[list[Numbered]]:
    while window := list(islice(records, _WINDOW_ROWS)):
        yield window


async def _publish(
    producer: AIOKafkaProducer, window: list[Numbered], ids: list[str | None], tally: Tally
) -> list[Sent]:
    """Send rows; return those that the broker has acknowledged, in their order."""
    sending = []
    for (number, (row, record)), event_id in zip(window, ids, strict=True):
        try:
            sending.append((number, event_id, await producer.send(SPEND_EVENTS, record, key=row.key)))
        except MessageSizeTooLargeError:
            tally.unsent += 1
    await producer.flush()
    tally.sent += len(sending)
    rows = []
    for number, event_id, acknowledged in sending:
        kept = await acknowledged
        rows.append(Sent(number, event_id, kept.partition, kept.offset))
    return rows


async def open_accounts(settings: Settings, client: ApiClient, file: File, say: Say) -> None:
    """Open the file's Business Centers and ad accounts, each account with ample cash. Idempotent."""
    limit = asyncio.Semaphore(_COMMANDS_AT_ONCE)
    by_center: dict[str, list[str]] = {}
    for center, account in file.summary.accounts:
        by_center.setdefault(center, []).append(account)

    async def open_center(center: str, accounts: list[str]) -> None:
        async with limit:
            for command in _opening(file, center, accounts, Clock(settings).now()):
                outcome = await client.command(command)
                if outcome.get("status") != "accepted":
                    say(f"{center}: {command['type']}: {outcome.get('message', outcome)}")

    await asyncio.gather(*(open_center(center, accounts) for center, accounts in by_center.items()))
    say(
        f"opened {len(by_center):,} Business Centers, {len(file.summary.accounts):,} prepay ad accounts with ample cash"
    )


async def send_and_report(
    settings: Settings, client: ApiClient, file: File, say: Say, progress: Progress | None = None
) -> int:
    """Send a file and report the outcome; return the exit code, which is 1 if a row is undecided or unsent."""
    tally = await send(settings, file, client, say, progress or _said_now_and_then(file, say))
    for line in tally.lines(file.path.name):
        say(line)
    return 0 if tally.is_complete else 1


async def open_send_and_report(settings: Settings, client: ApiClient, file: File, say: Say) -> None:
    """Open the file's accounts, send it, and report the outcome and the spend of the Business Centers."""
    await open_accounts(settings, client, file, say)
    await send_and_report(settings, client, file, say)
    await client.wait_until_idle(_PATIENCE_SECONDS)
    for center in sorted({center for center, _ in file.summary.accounts}):
        model = await client.read(f"/v1/business-centers/{center}")
        if model is not None:
            spend = model["spend"]
            say(
                f"  {center}: gross {spend['gross']}, billed {spend['billed']}, "
                f"overdelivered {spend['overdelivered']} {model['currency']} in all"
            )


def _said_now_and_then(file: File, say: Say) -> Progress:
    said_at = time.monotonic()

    def progress(sent: int, decided: int) -> None:
        nonlocal said_at
        if time.monotonic() - said_at > _PROGRESS_SECONDS:
            said_at = time.monotonic()
            say(f"sent {sent:,} of {file.summary.rows:,}, decided {decided:,}")

    return progress


def _opening(file: File, center: str, accounts: list[str], now: datetime) -> Iterator[dict[str, Any]]:
    def command(key: str, **fields: Any) -> dict[str, Any]:
        return {
            "command_id": str(uuid.uuid5(_NAMESPACE, key)),
            "business_center_id": center,
            "issued_at": now.astimezone(UTC).isoformat(),
            "actor": {"id": "spend-file", "role": "admin"},
            **fields,
        }

    time_zone = "Asia/Shanghai" if file.summary.format == "ipinyou" and center == IPINYOU_BUSINESS_CENTER else "UTC"
    currency = file.summary.accounts[center, accounts[0]]
    yield command(f"open/{center}", type="open_business_center", currency=currency, time_zone=time_zone)
    for account in accounts:
        opening = {"billing": "prepay", "buying_type": "auction", "time_zone": time_zone}
        yield command(f"open/{center}/{account}", type="open_ad_account", ad_account_id=account, **opening)
        spent = file.summary.totals.get((center, account), Decimal(0))
        amount = str((max(spent, Decimal(1)) * _AMPLE).to_integral_value(ROUND_CEILING))
        key = f"cash/{file.digest}/{center}/{account}"
        yield command(key, type="deposit_cash", ad_account_id=account, amount=amount)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _chosen_shift(settings: Settings, digest: str, last: datetime, now: datetime) -> tuple[timedelta, bool]:
    """Return the shift, and whether it is an earlier one, which is reused within the window of deduplication."""
    path = settings.data_dir / _REMEMBERED
    try:
        remembered: dict[str, int] = json.loads(path.read_text())
    except (OSError, ValueError):
        remembered = {}
    microsecond = timedelta(microseconds=1)
    if digest in remembered:
        shift = remembered[digest] * microsecond
        if now - timedelta(days=settings.deduplication_days) < last + shift <= now:
            return shift, True
    remembered[digest] = (now - last) // microsecond
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(remembered))
    return remembered[digest] * microsecond, False


def _span(summary: Summary) -> str:
    if summary.first is None or summary.last is None:
        return "without times"
    return f"from {summary.first.isoformat(' ', 'seconds')} to {summary.last.isoformat(' ', 'seconds')}"
