"""Sending quarantined records back to their shards, in portions that no transaction is too small for.

Nothing is sent back twice: of a record and its failed replays only the newest can be replayed, and only once
(`ledger.replay_quarantined`). What waits for a shard is its name, and the bytes stay where they are.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
import structlog

from services.api.context import Context
from services.api.door.errors import ApiError, invalid, not_found, permission_denied
from services.api.door.tokens import Caller
from services.api.present.quarantined import parse_id, record_id
from shared.runtime.kafka import murmur2_partition

PORTION_RECORDS: Final = 1_000
PORTION_BYTES: Final = 8 * 1024 * 1024
# Nothing outside a record changes what it is: to send it back as it came only makes it fail again.
UNCHANGING: Final = ("too_large", "malformed", "invalid")
# Behind which record to go on, and of each shard the last record that there was when the replay began.
AFTER_PATTERN: Final = r"^[0-9]{1,5}-[0-9]{1,18}:[0-9]{1,18}(\.[0-9]{1,18})*$"
_AFTER: Final = re.compile(r"([0-9]+)-([0-9]+):([0-9.]+)", re.ASCII)
_CROWDED: Final = "DD002"
_CROWDED_SECONDS: Final = 10

# A record with the first one, whose bytes it is: whether these are kept whole, and how many they are.
_WITH_FIRST: Final = """
    SELECT q.shard, q.sequence, q.reason, q.business_center_id, q.topic, q.partition, q."offset",
        coalesce(octet_length(f.key), 0) + coalesce(octet_length(f.raw), 0) + coalesce(octet_length(f.headers::text), 0)
            AS size,
        f.shard IS NOT NULL AND f.raw_bytes IS NULL AND (f.reason <> 'skipped' OR f.raw IS NOT NULL) AS is_whole
    FROM ledger.quarantine q LEFT JOIN ledger.quarantine f
        ON f.shard = coalesce(q.replay_shard, q.shard) AND f.sequence = coalesce(q.replay_sequence, q.sequence)
"""


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far the replay of a reason has got, and where it ends: what fails again is quarantined behind that."""

    shard: int
    sequence: int
    ends: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> "Cursor":
        """Of what `str` gave. Raises ApiError (400) for anything else."""
        match = _AFTER.fullmatch(text)
        if match is None or int(match[1]) > 2**15 - 1:
            raise invalid("after should be the `next` of another replay")
        return cls(int(match[1]), int(match[2]), tuple(map(int, match[3].split("."))))

    def __str__(self) -> str:
        return f"{self.shard}-{self.sequence}:{'.'.join(map(str, self.ends))}"

    def behind(self, row: Any) -> "Cursor":
        """Behind this row."""
        return Cursor(row["shard"], row["sequence"], self.ends)


async def replay_one_id(context: Context, caller: Caller, id: str, *, force: bool) -> dict[str, Any]:
    """Send one record back.

    Raises ApiError: 404; 409 where it waits or has not failed since; 422 where it would only fail again; 429.
    """
    answer = await replay_ids(context, caller, [id], force=force)
    if not answer["replayed"]:
        raise ApiError(
            409, "conflict", f"the record {id} waits for its shard, or was sent back before and has not failed since"
        )
    return answer


async def replay_ids(context: Context, caller: Caller, ids: Sequence[str], *, force: bool) -> dict[str, Any]:
    """Send records back, all at once but for those that wait or have not failed since.

    Raises ApiError, and sends none: 404 when one is unknown, or not the caller's; 413, 422, 429.
    """
    async with context.transaction() as connection:
        rows = await _by_ids(connection, caller, ids)
        _require_changing({row["reason"] for row in rows}, caller, force=force)
        _require_whole(rows)
        _require_few(rows)
        return _answer(len(rows), await send_back(context, connection, caller, rows))


async def replay_reason(
    context: Context, caller: Caller, reason: str, limit: int | None, after: str | None, *, force: bool
) -> dict[str, Any]:
    """Send back all of a reason that were not yet, a portion in each transaction, until `limit` or the end.

    Raises ApiError: 400, 403, 422; 429 where nothing was sent because too many wait.
    """
    cursor = None if after is None else Cursor.parse(after)
    _require_changing({reason}, caller, force=force)
    cursor = cursor or await _start(context, caller)
    replayed = not_whole = 0
    while limit is None or replayed < limit:
        most = PORTION_RECORDS if limit is None else min(PORTION_RECORDS, limit - replayed)
        try:
            async with context.transaction() as connection:
                rows = await _portion(connection, caller, reason, cursor, most)
                if not rows:
                    return {"replayed": replayed, "not_whole": not_whole or None}
                whole = [row for row in rows if row["is_whole"]]
                replayed += await send_back(context, connection, caller, whole)
                not_whole += len(rows) - len(whole)
        except ApiError:
            if not replayed:
                raise
            break
        cursor = cursor.behind(rows[-1])
    return {"replayed": replayed, "not_whole": not_whole or None, "next": str(cursor)}


async def send_back(
    context: Context, connection: asyncpg.Connection, caller: Caller, rows: list[asyncpg.Record]
) -> int:
    """Hand the records to their shards' owners, note that it was done, and wake the owners at the commit.

    Answers how many, without those that wait or have not failed since. Raises ApiError (429) where too many wait.
    """
    targets = [_target(row, context.shards) for row in rows]
    shards = [row["shard"] for row in rows]
    sequences = [row["sequence"] for row in rows]
    try:
        sent = await connection.fetch(
            "SELECT * FROM ledger.replay_quarantined($1, $2, $3, $4)", shards, sequences, targets, context.clock.now()
        )
    except asyncpg.PostgresError as error:
        raise _crowded(error) if error.sqlstate == _CROWDED else error from error
    for shard in sorted(set(targets)):
        await connection.execute("SELECT pg_notify('forwarded', $1)", str(shard))
    structlog.get_logger().info("replaying quarantined records", count=len(sent), by=caller.id)
    return len(sent)


def _answer(asked: int, replayed: int) -> dict[str, Any]:
    return {"replayed": replayed, "waiting": asked - replayed or None}


def _crowded(error: asyncpg.PostgresError) -> ApiError:
    return ApiError(
        429,
        "too_many_requests",
        f"{error}: send more once they are decided",
        {"Retry-After": str(_CROWDED_SECONDS)},
    )


def _require_changing(reasons: set[str], caller: Caller, *, force: bool) -> None:
    """Refuse what would only fail again, unless an administrator of all insists."""
    unchanging = sorted(reasons & set(UNCHANGING))
    if not unchanging:
        return
    if not force:
        raise ApiError(
            422,
            "not_eligible",
            f"a record that is {unchanging[0]} fails again however often it is sent back: publish a corrected one,"
            " under a new id; an administrator of all Business Centers may insist with force",
        )
    if caller.role != "admin" or caller.business_centers is not None:
        raise permission_denied("force is for an administrator of all Business Centers")


def _require_whole(rows: list[asyncpg.Record]) -> None:
    for row in rows:
        if not row["is_whole"]:
            raise ApiError(
                422,
                "not_eligible",
                f"the record {record_id(row['shard'], row['sequence'])} is not kept whole, so it cannot be sent back:"
                f" Kafka may still have it, {row['topic']}-{row['partition']}, offset {row['offset']}",
            )


def _require_few(rows: list[asyncpg.Record]) -> None:
    size = sum(row["size"] for row in rows)
    if size > PORTION_BYTES and len(rows) > 1:
        raise ApiError(
            413,
            "too_large",
            f"these records have {size} bytes, {PORTION_BYTES} are sent back at once: name fewer ids in a request",
        )


async def _start(context: Context, caller: Caller) -> Cursor:
    """Before the first record, and where those end that the caller may see: others' numbers are nobody's to learn."""
    async with context.snapshot() as connection:
        rows = await connection.fetch(
            "SELECT coalesce((SELECT max(sequence) FROM ledger.quarantine q WHERE q.shard = s.shard"
            " AND ($1::text[] IS NULL OR q.business_center_id = ANY($1))), 0) FROM ledger.shards s ORDER BY shard",
            caller.scope,
        )
    return Cursor(0, 0, tuple(row[0] for row in rows))


async def _by_ids(connection: asyncpg.Connection, caller: Caller, ids: Sequence[str]) -> list[asyncpg.Record]:
    """The rows of these ids. Raises ApiError (404) when one is unknown, or not the caller's."""
    known = {parse_id(id_) for id_ in ids}
    rows: list[asyncpg.Record] = await connection.fetch(
        _WITH_FIRST
        + "JOIN unnest($1::smallint[], $2::bigint[]) AS wanted (shard, sequence)"
        + " ON wanted.shard = q.shard AND wanted.sequence = q.sequence ORDER BY q.shard, q.sequence",
        [shard for shard, _ in known],
        [sequence for _, sequence in known],
    )
    if len(rows) < len(known) or not all(caller.sees(row["business_center_id"]) for row in rows):
        raise not_found("quarantined record" if len(ids) == 1 else "quarantined record as one of these ids")
    return rows


async def _portion(
    connection: asyncpg.Connection, caller: Caller, reason: str, cursor: Cursor, most: int
) -> list[asyncpg.Record]:
    """The next rows behind the cursor, few and small enough for one transaction; at least one where there is any."""
    rows: list[asyncpg.Record] = await connection.fetch(
        f"""
        WITH few AS MATERIALIZED (
            SELECT shard, sequence FROM ledger.quarantine q
            WHERE reason = $1 AND (shard, sequence) > ($2, $3) AND sequence <= ($4::bigint[])[shard + 1]
                AND ($5::text[] IS NULL OR business_center_id = ANY($5)) AND NOT EXISTS (
                    SELECT FROM ledger.quarantine_replays r WHERE r.shard = q.shard AND r.sequence = q.sequence)
            ORDER BY shard, sequence LIMIT $6
        )
        SELECT * FROM (
            SELECT *, sum(size) OVER (ORDER BY shard, sequence) - size AS bytes_before
            FROM ({_WITH_FIRST} JOIN few ON few.shard = q.shard AND few.sequence = q.sequence) AS found
        ) AS sized WHERE bytes_before < $7 ORDER BY shard, sequence
        """,  # noqa: S608 - a constant
        reason,
        cursor.shard,
        cursor.sequence,
        cursor.ends,
        caller.scope,
        most,
        PORTION_BYTES,
    )
    return rows


def _target(row: asyncpg.Record, shards: int) -> int:
    """The shard of the Business Center that the record names; where it names none, the one that refused it."""
    named: str | None = row["business_center_id"]
    return int(row["shard"]) if named is None else murmur2_partition(named.encode(), shards)
