"""Decodes entries from their canonical bytes, which a binary COPY returns as they were written."""

import asyncio
import struct
from dataclasses import dataclass
from typing import Final

import asyncpg

from shared.ledger.encoding import ALL_NUMBERS, COPY_HEADER, COPY_TRAILER, DAY_2000, EPOCH_2000_US, FIELDS
from shared.rules.entries import Entry, Line

ANY_SIZE: Final = 2**63
# Yield to other tasks after decoding this many entries.
_SLICE = 200
_LENGTH = struct.Struct(">i")
_LINE_FIELD = FIELDS.index("kind")
_LINE_FIELDS = len(FIELDS) - _LINE_FIELD
# The lengths of the numbers in a row that has all of them.
_ONLY_LENGTHS = struct.Struct(">2xi2xi8xi8xi8xi8xi16xi4xi4xi4x")
_ALL_LENGTHS = (2, 8, 8, 8, 8, 16, 4, 4, 4)


@dataclass(slots=True)
class StoredEntry:
    """An entry with its place and its canonical bytes. `recorded_at` is ledger time, in µs since the Unix epoch."""

    shard: int
    position: int
    recorded_at: int
    entry: Entry
    encoded: bytes

    @property
    def line(self) -> Line:
        """Return the line: kind, pocket, holder, details and the other fields that spends share."""
        return self.entry[0]

    @property
    def occurred_at(self) -> int:
        """Return the time at which it happened, in µs since the Unix epoch."""
        return self.entry[2]

    @property
    def source(self) -> bytes | None:
        """Return the id of the event or command that caused the entry.

        None: a timer caused it, or a change of the policy, the version of the rules or the time zones.
        """
        return self.entry[3]


class RangeTooLargeError(Exception):
    """The entries of a range have more bytes, `size`, than the caller takes."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the entries have {size} bytes")
        self.size = size


async def copy_entries(
    connection: asyncpg.Connection, shard: int, first: int, last: int, most_bytes: int = ANY_SIZE
) -> bytes:
    """Return a binary COPY of the entries of a shard at the positions first … last, in order.

    Raise RangeTooLargeError if they have more than `most_bytes`, and hold no more than that in memory.
    """
    chunks: list[bytes] = []
    size = 0

    async def collect(chunk: bytes) -> None:
        nonlocal size
        size += len(chunk)
        if size <= most_bytes:
            chunks.append(chunk)
        else:  # An error raised here would leave the rest of the COPY on the connection.
            chunks.clear()

    await connection.copy_from_query(
        f"SELECT {', '.join(FIELDS)} FROM ledger.entries WHERE shard = $1 AND position BETWEEN $2 AND $3"
        " ORDER BY position",
        shard,
        first,
        last,
        output=collect,
        format="binary",
    )
    if size > most_bytes:
        raise RangeTooLargeError(size)
    return b"".join(chunks)


def split_rows(data: bytes) -> list[bytes]:
    """Return the canonical bytes of each entry of a binary COPY, without decoding them."""
    rows = []
    at = len(COPY_HEADER)
    unpack, lengths = _LENGTH.unpack_from, _ONLY_LENGTHS.unpack_from
    all_fields, line_fields = range(len(FIELDS)), range(_LINE_FIELDS)
    end = len(data) - len(COPY_TRAILER)
    while at < end:
        start = at
        if end - at > ALL_NUMBERS.size and lengths(data, at) == _ALL_LENGTHS:
            at, fields = at + ALL_NUMBERS.size, line_fields
        else:
            at, fields = at + 2, all_fields
        for _ in fields:
            (length,) = unpack(data, at)
            at += 4 + length if length > 0 else 4
        rows.append(data[start:at])
    return rows


class EntryReader:
    """Decodes rows. Entries with the same line share one `Line` object."""

    def __init__(self) -> None:
        self._lines: dict[bytes, Line] = {}

    async def read(
        self, connection: asyncpg.Connection, shard: int, first: int, last: int, most_bytes: int = ANY_SIZE
    ) -> list[StoredEntry]:
        """Return the entries of a shard at the positions first … last, in order. Missing positions are left out.

        Raise RangeTooLargeError if they have more than `most_bytes`.
        """
        data = await copy_entries(connection, shard, first, last, most_bytes)
        entries: list[StoredEntry] = []
        at: int | None = len(COPY_HEADER)
        while at is not None:
            at = self._decode_some(data, at, entries)
            await asyncio.sleep(0)
        return entries

    def decode(self, data: bytes) -> list[StoredEntry]:
        """Return the entries of a binary COPY of `FIELDS`."""
        entries: list[StoredEntry] = []
        at: int | None = len(COPY_HEADER)
        while at is not None:
            at = self._decode_some(data, at, entries)
        return entries

    def _decode_some(self, data: bytes, at: int, entries: list[StoredEntry]) -> int | None:
        """Append some entries, and return where the next begins; None after the last."""
        if len(self._lines) > 500_000:
            self._lines.clear()
        for _ in range(_SLICE):
            if data[at : at + 2] == COPY_TRAILER:
                return None
            stored, at = self._decode_row(data, at)
            entries.append(stored)
        return at

    def _decode_row(self, data: bytes, start: int) -> tuple[StoredEntry, int]:
        """Return one entry, and where the next begins. Most rows have every number: one call unpacks those."""
        numbers = ALL_NUMBERS.unpack_from(data, start) if len(data) - start >= ALL_NUMBERS.size else ()
        if numbers[1::2] != _ALL_LENGTHS:
            return self._decode_sparse_row(data, start)
        _, _, shard, _, position, _, amount, _, occurred_at, _, recorded_at, _, source, _, part, _, day, _, period = (
            numbers
        )
        line, at = self._line(data, start + ALL_NUMBERS.size)
        entry: Entry = (line, amount, occurred_at + EPOCH_2000_US, source, part, day + DAY_2000, period + DAY_2000)
        return StoredEntry(shard, position, recorded_at + EPOCH_2000_US, entry, data[start:at]), at

    def _decode_sparse_row(self, data: bytes, start: int) -> tuple[StoredEntry, int]:
        values, at = _split(data, start + 2, _LINE_FIELD)
        shard, position, amount, occurred_at, recorded_at, source, part, day, period = values
        line, at = self._line(data, at)
        entry: Entry = (
            line,
            None if amount is None else _signed(amount),
            _required(occurred_at) + EPOCH_2000_US,
            source,
            _required(part),
            None if day is None else _signed(day) + DAY_2000,
            None if period is None else _signed(period) + DAY_2000,
        )
        recorded = _required(recorded_at) + EPOCH_2000_US
        return StoredEntry(_required(shard), _required(position), recorded, entry, data[start:at]), at

    def _line(self, data: bytes, start: int) -> tuple[Line, int]:
        """Return the line that begins at `start`, and where it ends."""
        at = start
        unpack = _LENGTH.unpack_from
        for _ in range(_LINE_FIELDS):
            (length,) = unpack(data, at)
            at += 4 + length if length > 0 else 4
        encoded = data[start:at]
        line = self._lines.get(encoded)
        if line is None:
            values, _ = _split(encoded, 0, _LINE_FIELDS)
            line = self._lines[encoded] = _line_of(values, encoded)
        return line, at


def _split(data: bytes, start: int, fields: int) -> tuple[list[bytes | None], int]:
    """Return the values of this many fields, and where the next field begins."""
    values: list[bytes | None] = []
    at = start
    for _ in range(fields):
        (length,) = _LENGTH.unpack_from(data, at)
        at += 4
        values.append(None if length < 0 else data[at : at + length])
        at += max(0, length)
    return values, at


def _signed(value: bytes) -> int:
    return int.from_bytes(value, "big", signed=True)


def _required(value: bytes | None) -> int:
    assert value is not None, "a field that is never null"
    return _signed(value)


def _line_of(values: list[bytes | None], encoded: bytes) -> Line:
    *texts, reverses, details = values
    kind, holder, pocket, grant_id, center, account, campaign, cause = (
        None if text is None else text.decode() for text in texts
    )
    assert kind is not None, "a field that is never null"
    assert center is not None, "a field that is never null"
    line = Line(
        kind,
        center,
        account,
        campaign,
        holder=holder,
        pocket=pocket,
        grant_id=grant_id,
        cause=cause,
        reverses=reverses,
        details=None if details is None else details.decode(),
    )
    line.encoded = encoded
    return line
