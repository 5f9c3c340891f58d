"""The canonical bytes of entries, version 1 (docs/ledger.md).

They are the rows of PostgreSQL's binary COPY, so that one encoding serves both the hash and the write. This is the hot
path: each line is encoded once, and one call packs the numbers of a spend.
"""

import struct
from collections.abc import Sequence
from datetime import UTC, date, datetime

from shared.rules.entries import Entry, Line

FIELDS = (
    "shard",
    "position",
    "amount",
    "occurred_at",
    "recorded_at",
    "source_event_id",
    "part",
    "day",
    "period",
    "kind",
    "holder",
    "pocket",
    "grant_id",
    "business_center_id",
    "ad_account_id",
    "campaign_id",
    "cause",
    "reverses",
    "details",
)
COPY_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
COPY_TRAILER = b"\xff\xff"
EPOCH_2000_US = int(datetime(2000, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
# The most canonical bytes of an entry, so that formats with 16-bit lengths can hold it.
MOST_BYTES = 65_535
# The first version of the rules had no such bound.
UNBOUNDED_BYTES = 2**31 - 1
DAY_2000 = date(2000, 1, 1).toordinal()

_NULL = struct.pack(">i", -1)
ALL_NUMBERS = struct.Struct(">hihiqiqiqiqi16siiiiii")
_LENGTH = struct.Struct(">i")
_PLACE = struct.Struct(">2x4xh4xq")


def encode_entries(
    entries: Sequence[Entry],
    shard: int,
    first_position: int,
    recorded_at_us: int,
    most_bytes: int = MOST_BYTES,
) -> list[bytes]:
    """Return the canonical bytes of each entry. The first one gets the position `first_position`, the others follow.

    `recorded_at_us` is the ledger time of the batch, in µs since the Unix epoch. No entry is longer than `most_bytes`:
    the rules ensure that, and an assertion checks it once for each line.
    """
    pack = ALL_NUMBERS.pack
    recorded = recorded_at_us - EPOCH_2000_US
    rows = []
    position = first_position
    for entry in entries:
        line, amount, occurred_at, source, part, day, period = entry
        tail = line.encoded
        if tail is None:
            tail = _encode_line(line)
            assert len(tail) + ALL_NUMBERS.size <= most_bytes, f"an entry of the kind {line.kind} is too long"
            line.encoded = tail
        if amount is None or source is None or day is None or period is None:
            rows.append(_encode_numbers(entry, shard, position, recorded) + tail)
        else:
            numbers = pack(
                19,
                2,
                shard,
                8,
                position,
                8,
                amount,
                8,
                occurred_at - EPOCH_2000_US,
                8,
                recorded,
                16,
                source,
                4,
                part,
                4,
                day - DAY_2000,
                4,
                period - DAY_2000,
            )
            rows.append(numbers + tail)
        position += 1
    return rows


def place_of(row: bytes) -> tuple[int, int]:
    """Return the shard and the position that an entry's canonical bytes begin with."""
    shard, position = _PLACE.unpack_from(row)
    return shard, position


def _encode_numbers(entry: Entry, shard: int, position: int, recorded: int) -> bytes:
    _, amount, occurred_at, source, part, day, period = entry
    return b"".join(
        (
            struct.pack(">hihiq", len(FIELDS), 2, shard, 8, position),
            _NULL if amount is None else struct.pack(">iq", 8, amount),
            struct.pack(">iqiq", 8, occurred_at - EPOCH_2000_US, 8, recorded),
            _NULL if source is None else _LENGTH.pack(16) + source,
            struct.pack(">ii", 4, part),
            _NULL if day is None else struct.pack(">ii", 4, day - DAY_2000),
            _NULL if period is None else struct.pack(">ii", 4, period - DAY_2000),
        )
    )


def _encode_line(line: Line) -> bytes:
    texts = [
        line.kind,
        line.holder,
        line.pocket,
        line.grant_id,
        line.business_center_id,
        line.ad_account_id,
        line.campaign_id,
        line.cause,
    ]
    values = [None if text is None else text.encode() for text in texts]
    values += [line.reverses, None if line.details is None else line.details.encode()]
    return b"".join(_NULL if value is None else _LENGTH.pack(len(value)) + value for value in values)
