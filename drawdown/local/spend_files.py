"""Files of real ad spend: JSON lines, CSV, or iPinYou's impression log; plain, gz, bz2, xz or zst.

JSON lines and CSV have the field names of `spend.events`. iPinYou's log (from its 2013 bidding contest) has one row for
each impression won, with or without a header row. Its prices are fen per 1,000 impressions, and its times are China's.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal

import cramjam

from shared.contracts.fields import CURRENCY_PATTERN, IDENTIFIER_PATTERN, is_time, parse_time
from shared.rules.instants import to_datetime

Format = Literal["json", "csv", "ipinyou"]
Event = dict[str, Any]

IPINYOU_BUSINESS_CENTER = "ipinyou"
_IPINYOU_NAMESPACE = uuid.UUID("b3f0a7d4-4c0b-4a53-9c37-5b8f4d1d6a0e")
_IPINYOU_TIME_ZONE = timezone(timedelta(hours=8))
# Fen per 1,000 impressions to yuan per impression.
_IPINYOU_PRICE_UNITS = Decimal(100_000)
# The columns of the published log, which has no header row.
_IPINYOU_COLUMNS = (
    *("bid_id", "timestamp", "log_type", "ipinyou_id", "user_agent", "ip", "region", "city", "ad_exchange", "domain"),
    *("url", "anonymous_url", "slot", "slot_width", "slot_height", "slot_visibility", "slot_format", "floor_price"),
    *("creative_id", "bidding_price", "paying_price", "key_page", "advertiser_id", "user_tags"),
)
# The names of the columns that we need in other editions of the log.
_IPINYOU_ALIASES = {
    "bidid": "bid_id",
    "creative": "creative_id",
    "advertiser": "advertiser_id",
    "payprice": "paying_price",
}
MOST_DIGITS = 18
_IS_ID = re.compile(IDENTIFIER_PATTERN).fullmatch
_IS_CURRENCY = re.compile(CURRENCY_PATTERN).fullmatch
_MAGIC = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zst"}


_UNPACKERS: dict[str, Callable[[Any], Any]] = {
    "gz": lambda file: gzip.GzipFile(fileobj=file),
    "bz2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "zst": lambda file: io.BytesIO(bytes(cramjam.zstd.decompress(file.read()))),
}


class UnreadableFileError(Exception):
    """The file is in none of those formats. The text is one line for the person who named it."""


@dataclass
class Summary:
    """The result of a first reading of a file.

    `accounts` has the currency by Business Center and ad account, and `totals` the sum of the amounts that could be
    read.
    """

    format: Format
    rows: int = 0
    first: datetime | None = None
    last: datetime | None = None
    accounts: dict[tuple[str, str], str] = field(default_factory=dict)
    totals: dict[tuple[str, str], Decimal] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One event of a file. `raw` is the record to send; `event` is None if that is not a JSON object."""

    event: Event | None
    raw: bytes

    @property
    def key(self) -> bytes | None:
        """Return the record's key, which is the Business Center, or None if the event names none."""
        center = self.event.get("business_center_id") if self.event else None
        return center.encode(errors="replace") if isinstance(center, str) else None

    @property
    def occurred_at(self) -> datetime | None:
        """Return the time of the event; None if it has no time in the contract's form."""
        text: Any = self.event.get("occurred_at") if self.event else None
        try:
            return to_datetime(parse_time(text)) if is_time(text) else None
        except ValueError:
            return None


def read(path: Path) -> Iterator[Row]:
    """Read the events of a file one by one, in its order.

    Raises:
        UnreadableFileError: the file is empty, broken, or in none of the formats.

    """
    with _opened(path) as lines:
        kind, lines = _recognised(path, lines)
        reader = {"json": _json_rows, "csv": _csv_rows, "ipinyou": _ipinyou_rows}[kind]
        yield from reader(lines)


def summarise(path: Path) -> Summary:
    """Read a file once, and return its number of rows, its accounts with their totals, and its first and last time."""
    with _opened(path) as lines:
        summary = Summary(_recognised(path, lines)[0])
    for row in read(path):
        summary.rows += 1
        instant = row.occurred_at
        if instant is not None:
            summary.first = min(summary.first or instant, instant)
            summary.last = max(summary.last or instant, instant)
        if row.event is not None:
            _count(summary, row.event)
    return summary


def shifted(row: Row, shift: timedelta) -> bytes:
    """Return the record of a row with its time shifted. A row without a time is unchanged."""
    instant = row.occurred_at
    if row.event is None or instant is None or not shift:
        return row.raw
    try:
        moved = (instant + shift).isoformat().replace("+00:00", "Z")
    except OverflowError:  # Outside the calendar, because another event of the file is thousands of years away.
        return row.raw
    event = {**row.event, "occurred_at": moved}
    try:
        return json.dumps(event, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        # It holds bytes that are no UTF-8, with which it is refused at any time, or the escape of a lone surrogate.
        return json.dumps(event).encode() if _is_utf8(row.raw) else row.raw


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _count(summary: Summary, event: Event) -> None:
    center, account, currency = (event.get(name) for name in ("business_center_id", "ad_account_id", "currency"))
    if not (isinstance(center, str) and isinstance(account, str) and isinstance(currency, str)):
        return
    if not (_IS_ID(center) and _IS_ID(account) and _IS_CURRENCY(currency)):
        return  # No such account can be opened.
    summary.accounts.setdefault((center, account), currency)
    try:
        amount = Decimal(str(event.get("amount")))
    except InvalidOperation:
        return
    # A spend has at most 18 digits. A longer amount is sent and refused, so it needs no cash.
    if event.get("type") == "spend" and amount.is_finite() and amount.adjusted() < MOST_DIGITS:
        total = summary.totals.get((center, account), Decimal(0))
        summary.totals[center, account] = total + amount


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[str]]:
    """Open a file, unpack it, and yield its lines."""
    try:
        with path.open("rb") as file:
            start = file.read(6)
            file.seek(0)
            packing = next((name for magic, name in _MAGIC.items() if start.startswith(magic)), None)
            unpacked = _UNPACKERS[packing](file) if packing else file
            with io.TextIOWrapper(unpacked, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
                yield lines
    except (OSError, EOFError, lzma.LZMAError, cramjam.DecompressionError, csv.Error) as error:
        raise UnreadableFileError(f"{path}: {error}") from error


def _recognised(path: Path, lines: Iterator[str]) -> tuple[Format, Iterator[str]]:
    """Return the format of a file, and all its lines."""
    first = next((line for line in lines if line.strip()), "")
    if first.lstrip().startswith("{"):
        return "json", _chained(first, lines)
    columns = _columns(first, "\t")
    if {"bid_id", "timestamp", "paying_price"} <= set(columns):
        return "ipinyou", _chained(first, lines)
    if len(columns) == len(_IPINYOU_COLUMNS) and columns[1].isdecimal() and len(columns[1]) == 17:
        return "ipinyou", _chained("\t".join(_IPINYOU_COLUMNS), _chained(first, lines))
    if {"event_id", "business_center_id"} <= set(_columns(first, _delimiter(first))):
        return "csv", _chained(first, lines)
    raise UnreadableFileError(
        f"{path}: neither JSON lines, nor CSV with a header row of the contract's field names, nor an iPinYou log"
    )


def _chained(first: str, rest: Iterable[str]) -> Iterator[str]:
    yield first
    yield from rest


def _columns(line: str, delimiter: str) -> list[str]:
    names = [name.strip().strip('"').lower() for name in line.rstrip("\r\n").split(delimiter)]
    return [_IPINYOU_ALIASES.get(name, name) for name in names]


def _delimiter(header: str) -> str:
    return max(",;\t", key=header.count)


def _json_rows(lines: Iterator[str]) -> Iterator[Row]:
    for line in lines:
        text = line.strip()
        if not text:
            continue
        try:
            event = json.loads(text)
        except (ValueError, RecursionError):
            event = None  # It is sent unchanged, because the ledger decides what is wrong with it.
        yield Row(event if isinstance(event, dict) else None, text.encode(errors="surrogateescape"))


def _csv_rows(lines: Iterator[str]) -> Iterator[Row]:
    header = next(lines)
    delimiter = _delimiter(header)
    for cells in csv.DictReader(lines, fieldnames=_columns(header, delimiter), delimiter=delimiter, restkey=""):
        event = {name: text for name, text in cells.items() if name and text}
        event.setdefault("type", "spend")
        yield _row(event)


def _ipinyou_rows(lines: Iterator[str]) -> Iterator[Row]:
    columns = _columns(next(lines), "\t")
    for line in lines:
        if line.strip():
            yield _row(_ipinyou_event(dict(zip(columns, line.rstrip("\r\n").split("\t"), strict=False))))


def _ipinyou_event(cells: dict[str, str]) -> Event:
    """Return the spend of one impression, without the fields of missing or broken cells, so that it becomes `invalid`.

    The event id is derived from the bid id. So a second row of the same bid is a duplicate, or a conflict if its time
    differs.
    """
    event: Event = {
        "type": "spend",
        "event_id": str(uuid.uuid5(_IPINYOU_NAMESPACE, cells.get("bid_id", ""))),
        "business_center_id": IPINYOU_BUSINESS_CENTER,
        "ad_account_id": f"advertiser-{cells.get('advertiser_id', '')}",
        "campaign_id": f"creative-{cells.get('creative_id', '')}",
        "currency": "CNY",
    }
    price, time = cells.get("paying_price", ""), cells.get("timestamp", "")
    if price.isdecimal():
        event["amount"] = f"{Decimal(price) / _IPINYOU_PRICE_UNITS:f}"
    try:
        instant = datetime.strptime(time, "%Y%m%d%H%M%S%f").replace(tzinfo=_IPINYOU_TIME_ZONE)
        event["occurred_at"] = instant.isoformat(timespec="milliseconds")
    except ValueError:
        pass
    return event


def _row(event: Event) -> Row:
    return Row(event, json.dumps(event, ensure_ascii=False).encode(errors="surrogateescape"))
