"""`audit export`: the ledger as files that anybody can check without our software.

The export is a folder with `manifest.json` and, for each shard, its entries and its batches. An entry has the fields
of `GET /v1/ledger` and `encoded`, its canonical bytes in hexadecimal: the batches' roots follow from their hashes.
"""

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal
from uuid import UUID

import asyncpg

from services.auditor.baseline import Head, heads_of
from services.auditor.chain import Link, grow, links
from services.auditor.difference import DifferenceError
from services.auditor.report import ProgressLine, Report
from shared.contracts.fields import format_time
from shared.ledger.decoding import EntryReader, StoredEntry
from shared.ledger.details import shown_causes, shown_details
from shared.ledger.encoding import COPY_HEADER, COPY_TRAILER
from shared.ledger.merkle import HASH_BYTES, CompactRange, leaf_hashes
from shared.ledger.replay import StoredBatch
from shared.rules.calendar import date_text
from shared.rules.money import format_micros

Format = Literal["ndjson", "csv", "ndjson.gz", "csv.gz"]
Row = dict[str, Any]

ENTRY_FIELDS = (
    *("shard", "position", "kind", "holder", "pocket", "grant_id", "amount", "business_center_id", "ad_account_id"),
    *("campaign_id", "cause", "source_event_id", "part", "reverses", "occurred_at", "recorded_at", "day", "period"),
    *("causes", "details", "encoded"),
)
BATCH_FIELDS = (
    *("shard", "first_position", "last_position", "recorded_at"),
    *("policy_version", "rules_version", "zones_release", "root"),
)


@dataclass(frozen=True, slots=True)
class Selection:
    """The shards and positions to export (`shard` None: all, `last` None: to the end), and a new or empty folder.

    The export continues to the end of the batch that holds `last`, because a root covers whole batches only.
    """

    out: Path
    format: Format = "ndjson"
    shard: int | None = None
    first: int = 1
    last: int | None = None


async def write_export(connection: asyncpg.Connection, report: Report, selection: Selection) -> None:
    """Write the files, and check the chain on the way.

    Raise DifferenceError if the chain is broken, ValueError if the shard does not exist or the folder is not empty.
    """
    heads = await heads_of(connection)
    if selection.shard is not None:
        heads = [head for head in heads if head.shard == selection.shard]
    if not heads:
        raise ValueError(f"there is no shard {selection.shard}")
    selection.out.mkdir(parents=True, exist_ok=True)
    if any(selection.out.iterdir()):
        raise ValueError(f"{selection.out} is not empty")
    progress = ProgressLine(sum(head.position for head in heads))
    shards = []
    try:
        for head in heads:
            progress.shard(head.shard, report.entries)
            shards.append(await _export_shard(connection, head, selection, report, progress))
    finally:
        progress.end()
    policies = await connection.fetch("SELECT version, content FROM ledger.policies ORDER BY version")
    manifest = {
        "encoding": 1,
        "hash": "RFC 6962, SHA-256",
        "shards": shards,
        "policies": {row["version"]: row["content"] for row in policies},
        "roots": [{"shard": shard, "position": at, "root": root} for shard, at, root in report.roots],
    }
    (selection.out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")


async def _export_shard(
    connection: asyncpg.Connection, head: Head, selection: Selection, report: Report, progress: ProgressLine
) -> Row:
    last = head.position if selection.last is None else min(selection.last, head.position)
    end: int = await connection.fetchval(
        "SELECT coalesce(min(last_position), 0) FROM ledger.batches WHERE shard = $1 AND last_position >= $2",
        head.shard,
        last,
    )
    export = _ShardExport(head.shard, selection, end)
    with export:
        async for link in links(connection, head.shard, end, progress):
            export.add(link)
    report.entries += export.entries.rows
    report.count("entries", export.entries.rows, "entries written")
    report.count("batches", export.batches.rows, "batches written, their roots recomputed")
    if export.last_root is not None:
        report.roots.append((head.shard, *export.last_root))
    return export.summary()


class _ShardExport:
    """The two files of a shard."""

    def __init__(self, shard: int, selection: Selection, last: int) -> None:
        self.entries = _File(selection.out / f"entries-{shard}.{selection.format}", ENTRY_FIELDS)
        self.batches = _File(selection.out / f"batches-{shard}.{selection.format}", BATCH_FIELDS)
        self.last_root: tuple[int, str] | None = None
        self._shard = shard
        self._first, self._last = selection.first, last
        self._tree, self._before = CompactRange(), CompactRange()
        self._reader = EntryReader()
        self._stack = ExitStack()

    def __enter__(self) -> "_ShardExport":
        self._stack.enter_context(self.entries)
        self._stack.enter_context(self.batches)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, link: Link) -> None:
        """Write the selected entries of a batch, and the batch itself if its end is selected."""
        grow(self._tree, link, self._shard)
        first, last = link.batch.first, link.batch.last
        earlier = link.rows[: max(0, self._first - first)]
        self._before.append(leaf_hashes(earlier))
        rows = link.rows[len(earlier) : max(0, self._last - first + 1)]
        data = b"".join((COPY_HEADER, *rows, COPY_TRAILER))
        self.entries.write([_entry(stored) for stored in self._reader.decode(data)])
        if self._first <= last <= self._last:
            self.batches.write([_batch(self._shard, link.batch)])
            self.last_root = (last, link.batch.root.hex())

    def summary(self) -> Row:
        """Return what the manifest says about the shard.

        `frontier` holds the roots of the perfect subtrees over the entries before the first exported one.
        """
        frontier = self._before.frontier()
        hashes = [frontier[start : start + HASH_BYTES].hex() for start in range(0, len(frontier), HASH_BYTES)]
        return {
            "shard": self._shard,
            "first_position": self._before.size + 1,
            "last_position": self._before.size + self.entries.rows,
            "frontier": hashes,
            "entries": self.entries.summary(),
            "batches": self.batches.summary(),
        }


class _File:
    """A file of rows: lines of JSON or CSV, compressed if its name ends in .gz."""

    def __init__(self, path: Path, fields: tuple[str, ...]) -> None:
        self.rows = 0
        self._path = path
        self._fields = fields
        self._stack = ExitStack()
        self._text: IO[str] | None = None

    def __enter__(self) -> "_File":
        file: IO[bytes] | gzip.GzipFile = self._stack.enter_context(self._path.open("wb"))
        if self._path.suffix == ".gz":
            # gzip stores no name and no time here, so that the same rows give the same bytes.
            packed = gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0)
            file = self._stack.enter_context(packed)
        self._text = self._stack.enter_context(io.TextIOWrapper(file, "utf-8", newline=""))
        if self._is_csv:
            csv.writer(self._text, lineterminator="\n").writerow(self._fields)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def _is_csv(self) -> bool:
        return ".csv" in self._path.suffixes

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows, each with the fields of this file."""
        assert self._text is not None, "the file is open"
        writer = csv.writer(self._text, lineterminator="\n")
        for row in rows:
            values = [row[field] for field in self._fields]
            if self._is_csv:
                writer.writerow(
                    json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value for value in values
                )
            else:
                self._text.write(json.dumps(dict(zip(self._fields, values, strict=True))) + "\n")
            self.rows += 1

    def summary(self) -> Row:
        """Return the name, the number of rows and the SHA-256 of the closed file."""
        with self._path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"file": self._path.name, "rows": self.rows, "sha256": digest}


def _batch(shard: int, batch: StoredBatch) -> Row:
    return {
        "shard": shard,
        "first_position": batch.first,
        "last_position": batch.last,
        "recorded_at": format_time(batch.recorded_at),
        "policy_version": batch.policy_version,
        "rules_version": batch.rules_version,
        "zones_release": batch.zones_release,
        "root": batch.root.hex(),
    }


def _entry(stored: StoredEntry) -> Row:
    line, amount, occurred_at, source, part, day, period = stored.entry
    details = _details(stored)
    return {
        "shard": stored.shard,
        "position": stored.position,
        "kind": line.kind,
        "holder": line.holder,
        "pocket": line.pocket,
        "grant_id": line.grant_id,
        "amount": None if amount is None else format_micros(amount),
        "business_center_id": line.business_center_id,
        "ad_account_id": line.ad_account_id,
        "campaign_id": line.campaign_id,
        "cause": line.cause,
        "source_event_id": _uuid(source),
        "part": part,
        "reverses": _uuid(line.reverses),
        "occurred_at": format_time(occurred_at),
        "recorded_at": format_time(stored.recorded_at),
        "day": None if day is None else date_text(day),
        "period": None if period is None else date_text(period),
        "causes": shown_causes(line.kind, details),
        "details": details,
        "encoded": stored.encoded.hex(),
    }


def _details(stored: StoredEntry) -> Row | None:
    """Return an entry's details as the API shows them. Raise DifferenceError if they cannot be read."""
    try:
        return shown_details(stored.line.details)
    except ValueError as error:
        where = f"shard {stored.shard}, position {stored.position}"
        raise DifferenceError(f"{where}: the details of the entry cannot be read: {error}") from error


def _uuid(value: bytes | None) -> str | None:
    return None if value is None else str(UUID(bytes=value))
