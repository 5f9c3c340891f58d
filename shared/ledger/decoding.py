"""Reading entries back from their canonical bytes, which binary COPY gives as they were written."""

import struct
from dataclasses import dataclass

import asyncpg

from shared.ledger.encoding import COPY_HEADER, COPY_TRAILER, DAY_2000, EPOCH_2000_US, FIELDS
from shared.rules.entries import Entry, Line

_LENGTH = struct.Struct(">i")
_LINE_FIELD = FIELDS.index("kind")


@dataclass(slots=True)
class StoredEntry:
    """An entry as the ledger holds it: where, when, what, and its canonical bytes. Times in µs since the Unix epoch."""

    shard: int
    position: int
    recorded_at: int
    entry: Entry
    encoded: bytes


async def copy_entries(connection: asyncpg.Connection, shard: int, first: int, last: int) -> bytes:
    """A binary COPY of the entries of a shard at the positions first … last, in order."""
    chunks: list[bytes] = []

    async def collect(chunk: bytes) -> None:
        chunks.append(chunk)

    await connection.copy_from_query(
        f"SELECT {', '.join(FIELDS)} FROM ledger.entries WHERE shard = $1 AND position BETWEEN $2 AND $3"
        " ORDER BY position",
        shard,
        first,
        last,
        output=collect,
        format="binary",
    )
    return b"".join(chunks)


def split_rows(data: bytes) -> list[bytes]:
    """The canonical bytes of each entry of a binary COPY: split, not read."""
    rows = []
    at = len(COPY_HEADER)
    unpack = _LENGTH.unpack_from
    end = len(data) - len(COPY_TRAILER)
    while at < end:
        start = at
        at += 2
        for _ in FIELDS:
            (length,) = unpack(data, at)
            at += 4 + length if length > 0 else 4
        rows.append(data[start:at])
    return rows


class Reader:
    """Decodes rows; lines that come again are made once."""

    def __init__(self) -> None:
        self._lines: dict[bytes, Line] = {}

    async def read(self, connection: asyncpg.Connection, shard: int, first: int, last: int) -> list[StoredEntry]:
        """The entries of a shard at the positions first … last, in order."""
        return self.decode(await copy_entries(connection, shard, first, last))

    def decode(self, data: bytes) -> list[StoredEntry]:
        """The entries of a binary COPY of `FIELDS`."""
        if len(self._lines) > 500_000:
            self._lines.clear()
        entries = []
        at = len(COPY_HEADER)
        while data[at : at + 2] != b"\xff\xff":
            stored, at = self._decode_row(data, at)
            entries.append(stored)
        return entries

    def _decode_row(self, data: bytes, start: int) -> tuple[StoredEntry, int]:
        values: list[bytes | None] = []
        at = start + 2
        tail = 0
        unpack = _LENGTH.unpack_from
        for field in range(len(FIELDS)):
            if field == _LINE_FIELD:
                tail = at
            (length,) = unpack(data, at)
            at += 4
            if length < 0:
                values.append(None)
            else:
                values.append(data[at : at + length])
                at += length
        shard, position, amount, occurred_at, recorded_at, source, part, day, period = values[:_LINE_FIELD]
        encoded = data[tail:at]
        line = self._lines.get(encoded)
        if line is None:
            line = self._lines[encoded] = _line_of(values[_LINE_FIELD:], encoded)
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
