"""Records for quarantine: those too large or broken are cut short, with the size and SHA-256 of the whole.

Nobody repairs a record of a megabyte by hand, and nobody may delete from the quarantine table. So producers must not
fill it. A record within the bounds is kept whole, because it can be repaired and replayed.
"""

from collections.abc import Iterable
from hashlib import sha256
from typing import Any, Final

from services.allocation.records.batch_bounds import HEADER_BYTES, KEPT_BYTES, LARGEST_RECORD_BYTES, LARGEST_VALUE_BYTES
from services.allocation.records.record_decoding import Cut, Fault, Raw, printable
from shared.rules.instants import to_datetime

Bytes = bytes | memoryview
_LONGEST_WHY: Final = 200


def weight(record: Any) -> int:
    """Return the bytes of a record, with `HEADER_BYTES` more for each header."""
    return len(record.key or b"") + len(record.value or b"") + sum(map(_header_weight, record.headers))


def is_too_large(record: Any) -> bool:
    """Return whether the value, or the whole record, is above its bound."""
    return len(record.value or b"") > LARGEST_VALUE_BYTES or weight(record) > LARGEST_RECORD_BYTES


def short_record(record: Any, topic: str, partition: int, forwarded_id: int | None = None) -> Raw:
    """Return a record that is too large, cut short."""
    place, key, value = (topic, partition), record.key, record.value
    return short_frame(place, record.offset, key, value, record.headers, weight(record), forwarded_id)


def short_frame(
    place: tuple[str, int],
    offset: int,
    key: Bytes | None,
    value: Bytes | None,
    headers: Iterable[tuple[str, bytes | None]],
    size: int,
    forwarded_id: int | None = None,
) -> Raw:
    """Return a record that is too large, cut short, from its fields. Only the headers that are kept are read."""
    digest = sha256(value or b"")
    detail = (
        f"the record has {size} bytes, its value {len(value or b'')}: {LARGEST_VALUE_BYTES} are allowed for the value,"
        f" {LARGEST_RECORD_BYTES} with key and headers, of which each header counts {HEADER_BYTES} more; SHA-256 of"
        f" the value {digest.hexdigest()}"
    )
    fault = Fault("too_large", detail)
    return _short((*place, offset), key, value, headers, fault, digest.digest(), forwarded_id)


def unreadable_record(
    place: tuple[str, int, int], key: bytes | None, value: bytes | None, why: str, forwarded_id: int
) -> Raw:
    """Return a forwarded record that cannot be read: its first bytes, without its headers."""
    detail = f"the record waited for this shard and cannot be read: {printable(why)[:_LONGEST_WHY]}"
    return _short(place, key, value, (), Fault("malformed", detail), sha256(value or b"").digest(), forwarded_id)


def _short(
    place: tuple[str, int, int],
    key: Bytes | None,
    value: Bytes | None,
    headers: Iterable[tuple[str, bytes | None]],
    fault: Fault,
    digest: bytes,
    forwarded_id: int | None,
) -> Raw:
    """Return the first bytes of a record, with the fault for which no more of it is kept."""
    kept = None if value is None else bytes(value[:KEPT_BYTES])
    cut = Cut(fault, place[2], len(value or b""), digest, kept)
    short_key = None if key is None else bytes(key[:KEPT_BYTES])
    first = list(_first(headers, KEPT_BYTES - len(short_key or b"")))
    return Raw(*place, short_key, None, first, forwarded_id, cut)


def short_batch(place: tuple[str, int], first: int, last: int, packed: memoryview, reason: str, why: str) -> Raw:
    """Return one record that stands for the undecided rest of a batch, from its first to its last offset."""
    digest = sha256(packed)
    detail = (
        f"none of the records from offset {first} to {last} was decided; their batch has {len(packed)} bytes with"
        f" {printable(why)[:_LONGEST_WHY]}; its SHA-256 is {digest.hexdigest()}"
    )
    cut = Cut(Fault(reason, detail), first, len(packed), digest.digest(), bytes(packed[:KEPT_BYTES]), is_batch=True)
    return Raw(*place, last, None, None, [], cut=cut)


def kept_bytes(raw: Raw) -> int:
    """Return how many bytes a record takes in quarantine; 0 for a replay, because the bytes are there already."""
    if raw.replay_of is not None:
        return 0
    return weight(raw) + (len(raw.cut.kept or b"") if raw.cut else 0)


def quarantine_row(
    raw: Raw, fault: Fault, headers: list[list[str | None]] | None, center: str | None, recorded_at: int
) -> tuple[Any, ...]:
    """Return a record as a row of `BatchWrite.quarantined`, with size and SHA-256 of the whole if it was cut short."""
    cut = raw.cut if raw.replay_of is None else None
    return (
        fault.reason,
        fault.detail,
        raw.topic,
        raw.partition,
        cut.first_offset if cut else raw.offset,
        *kept_columns(raw, cut.kept if cut else raw.value, headers),
        center,
        to_datetime(recorded_at),
        cut.whole_bytes if cut else None,
        cut.whole_sha256 if cut else None,
    )


def kept_columns(raw: Raw, value: bytes | None, headers: list[list[str | None]] | None) -> tuple[Any, ...]:
    """Return key, value and headers; for a replay only shard and sequence of the quarantined record with these."""
    if raw.replay_of is None:
        return raw.key, value, headers, None, None
    return None, None, None, *raw.replay_of


def _first(headers: Iterable[tuple[str, bytes | None]], room: int) -> Iterable[tuple[str, bytes | None]]:
    """Yield the headers as long as there is room for them, in bytes."""
    for header in headers:
        room -= _header_weight(header)
        if room < 0:
            return
        yield header


def _header_weight(header: tuple[str, bytes | None]) -> int:
    name, value = header
    return HEADER_BYTES + len(name) + len(value or b"")
