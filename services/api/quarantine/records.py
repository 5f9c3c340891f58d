"""Reads rows of quarantine and makes their answers. The bytes of a failed replay are stored with its first record."""

import base64
from typing import Any, Final

import asyncpg

from services.api.answers.models import time
from services.api.door.tokens import Caller

# A page ends early so that its answer is not longer than this.
PAGE_BYTES = 1024 * 1024
# At most this much of an entry in JSON is neither its detail nor its raw bytes.
_REST_BYTES: Final = 1024

# Rows of earlier versions, without bounds, may have any size. Of those with more bytes only the beginning is shown.
_WHOLE_BYTES: Final = 2 * 1024 * 1024
_BEGINNING_BYTES: Final = 4 * 1024
_DETAIL_CHARACTERS: Final = 2000

_RECORDS: Final = f"""
    SELECT q.shard, q.sequence, q.reason, left(q.detail, {_DETAIL_CHARACTERS}) AS detail, q.topic, q.partition,
        q."offset", q.recorded_at, q.replay_shard, q.replay_sequence, q.business_center_id,
        CASE WHEN octet_length(h.raw) > {_WHOLE_BYTES} THEN substr(h.raw, 1, {_BEGINNING_BYTES}) ELSE h.raw END AS raw,
        CASE WHEN octet_length(h.raw) > {_WHOLE_BYTES} THEN coalesce(h.raw_bytes, octet_length(h.raw)) ELSE h.raw_bytes
            END AS raw_bytes,
        h.raw_sha256,
        (SELECT max(replayed_at) FROM ledger.quarantine_replays r
         WHERE r.shard = q.shard AND r.sequence = q.sequence AND r.recorded_at = q.recorded_at) AS replayed_at
    FROM ledger.quarantine q
        LEFT JOIN ledger.quarantine f ON f.shard = q.replay_shard AND f.sequence = q.replay_sequence,
        LATERAL (SELECT CASE WHEN q.replay_shard IS NULL THEN q.raw ELSE f.raw END AS raw,
            CASE WHEN q.replay_shard IS NULL THEN q.raw_bytes ELSE f.raw_bytes END AS raw_bytes,
            CASE WHEN q.replay_shard IS NULL THEN q.raw_sha256 ELSE f.raw_sha256 END AS raw_sha256) AS h
"""  # noqa: S608 - constants


def parse_id(text: str) -> tuple[int, int]:
    """Return the shard and the sequence of a record's id."""
    shard, _, sequence = text.partition("-")
    return int(shard), int(sequence)


def record_id(shard: int, sequence: int) -> str:
    """Return the id of a record, as the API shows it."""
    return f"{shard}-{sequence}"


async def page(
    connection: asyncpg.Connection, caller: Caller, start: tuple[int, int], reason: str | None, limit: int
) -> tuple[list[asyncpg.Record], bool]:
    """Return the caller's records after `start`, as many as fit on a page, and whether there are more.

    A page has at least one record if there is any, because none shows more than `_WHOLE_BYTES`. PostgreSQL does not
    read the bytes of records beyond the page.
    """
    rows: list[asyncpg.Record] = await connection.fetch(
        f"""
        WITH page AS ({_RECORDS}
            WHERE (q.shard, q.sequence) > ($1, $2) AND ($3::text IS NULL OR q.reason = $3)
              AND ($6::text[] IS NULL OR q.business_center_id = ANY($6))
            ORDER BY q.shard, q.sequence LIMIT $4
        ), sized AS (
            SELECT shard, sequence, row_number() OVER records = 1 OR sum({_REST_BYTES}
                + octet_length(to_json(detail)::text) + 4 * ((coalesce(octet_length(raw), 0) + 2) / 3)
            ) OVER records <= $5 AS fits
            FROM page WINDOW records AS (ORDER BY shard, sequence)
        )
        SELECT page.*, fits FROM page JOIN sized USING (shard, sequence) WHERE fits ORDER BY shard, sequence
        """,  # noqa: S608 - constants
        *start,
        reason,
        limit + 1,
        PAGE_BYTES,
        caller.scope,
    )
    if len(rows) > limit:
        return rows[:limit], True
    return rows, await _is_more(connection, caller, rows, reason)


async def _is_more(
    connection: asyncpg.Connection, caller: Caller, rows: list[asyncpg.Record], reason: str | None
) -> bool:
    if not rows:
        return False
    found: bool = await connection.fetchval(
        """
        SELECT EXISTS (SELECT FROM ledger.quarantine WHERE (shard, sequence) > ($1, $2)
            AND ($3::text IS NULL OR reason = $3) AND ($4::text[] IS NULL OR business_center_id = ANY($4)))
        """,
        rows[-1]["shard"],
        rows[-1]["sequence"],
        reason,
        caller.scope,
    )
    return found


async def record(connection: asyncpg.Connection, caller: Caller, id: str) -> asyncpg.Record | None:
    """Return one record; None if there is none, or the caller may not see it."""
    row: asyncpg.Record | None = await connection.fetchrow(
        _RECORDS + " WHERE q.shard = $1 AND q.sequence = $2", *parse_id(id)
    )
    return row if row is not None and caller.sees(row["business_center_id"]) else None


def answer(row: asyncpg.Record) -> dict[str, Any]:
    """Return the answer of a record, ready for JSON."""
    raw, sha256, replayed_at, first = row["raw"], row["raw_sha256"], row["replayed_at"], row["replay_sequence"]
    return {
        "id": record_id(row["shard"], row["sequence"]),
        **{name: row[name] for name in ("reason", "detail", "topic", "partition", "offset", "raw_bytes")},
        "raw": None if raw is None else base64.b64encode(raw).decode(),
        "raw_sha256": None if sha256 is None else sha256.hex(),
        "replay_of": None if first is None else record_id(row["replay_shard"], first),
        "recorded_at": time(row["recorded_at"]),
        "replayed_at": None if replayed_at is None else time(replayed_at),
    }
