"""Sends quarantined records back to their shards, in portions that fit into one transaction.

No record is sent back twice: of a record and its failed replays only the newest can be replayed, and only once
(`ledger.replay_quarantined`). A record that failed `MOST_REPLAYS` times stays where it is. Only a record's name waits
for the shard; the bytes stay where they are.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
import structlog

from services.api.answers.cursors import parse_numbers
from services.api.context import Context
from services.api.door.errors import ApiError, invalid, not_found, permission_denied
from services.api.door.tokens import Caller
from services.api.quarantine.records import parse_id, record_id
from shared.runtime.kafka import murmur2_partition

PORTION_RECORDS: Final = 1_000
PORTION_BYTES: Final = 8 * 1024 * 1024
# These reasons depend on the record alone, so an unchanged record fails again.
UNCHANGING: Final = ("too_large", "malformed", "invalid")
# A record that failed this often lacks something that sending it back does not bring. Each failed replay leaves rows in
# an append-only ledger, so without a bound any finance manager could fill the database with a few records.
MOST_REPLAYS: Final = 10
# The record after which to continue, and for each shard the last record when the replay began.
AFTER_PATTERN: Final = r"^[0-9]{1,5}-[0-9]{1,18}:[0-9]{1,18}(\.[0-9]{1,18})*$"
_AFTER: Final = re.compile(r"([0-9]+)-([0-9]+):([0-9.]+)", re.ASCII)
_CROWDED: Final = "DD002"
_CROWDED_SECONDS: Final = 10

# A record with the size of its bytes, which are stored with the first record, and whether they are all stored. LIMIT
# makes PostgreSQL look up each record in an index. A join may read all of quarantine instead.
_WITH_FIRST: Final = """
    SELECT q.shard, q.sequence, q.reason, q.business_center_id, q.topic, q.partition, q."offset",
        coalesce(octet_length(f.key), 0) + coalesce(octet_length(f.raw), 0) + coalesce(octet_length(f.headers::text), 0)
            AS size,
        f.shard IS NOT NULL AND f.raw_bytes IS NULL AND (f.reason <> 'skipped' OR f.raw IS NOT NULL) AS is_whole
    FROM {wanted} AS wanted (shard, sequence)
        CROSS JOIN LATERAL (SELECT * FROM ledger.quarantine q
            WHERE q.shard = wanted.shard AND q.sequence = wanted.sequence LIMIT 1) AS q
        LEFT JOIN LATERAL (SELECT * FROM ledger.quarantine f
            WHERE f.shard = coalesce(q.replay_shard, q.shard) AND f.sequence = coalesce(q.replay_sequence, q.sequence)
            LIMIT 1) AS f ON true
"""


@dataclass(frozen=True, slots=True)
class ReplayCursor:
    """How far the replay of a reason has got, and where it ends; what fails again is quarantined after that."""

    shard: int
    sequence: int
    ends: tuple[int, ...]

    @classmethod
    def parse(cls, text: str, shards: int) -> "ReplayCursor":
        """Return the cursor of a text that `str` made. Raises ApiError (400) for any other text."""
        match = _AFTER.fullmatch(text)
        if match is None or int(match[1]) >= shards:
            raise invalid("after should be the `next` of another replay")
        return cls(int(match[1]), int(match[2]), tuple(parse_numbers(match[3], shards)))

    def __str__(self) -> str:
        return f"{self.shard}-{self.sequence}:{'.'.join(map(str, self.ends))}"

    def behind(self, row: Any) -> "ReplayCursor":
        """Return the cursor after this row."""
        return ReplayCursor(row["shard"], row["sequence"], self.ends)


@dataclass(frozen=True, slots=True)
class Sent:
    """How many records were sent back, and the ids of those that were not because they had failed too often."""

    replayed: int
    failed_too_often: list[str]


@dataclass(slots=True)
class _Passed:
    """What became of the records that the replay of a reason has passed."""

    records: int = 0
    replayed: int = 0
    not_whole: int = 0
    failed_too_often: int = 0

    def add(self, rows: list[asyncpg.Record], whole: list[asyncpg.Record], sent: Sent) -> None:
        self.records += len(rows)
        self.replayed += sent.replayed
        self.not_whole += len(rows) - len(whole)
        self.failed_too_often += len(sent.failed_too_often)

    def answer(self) -> dict[str, Any]:
        return {
            "replayed": self.replayed,
            "not_whole": self.not_whole or None,
            "failed_too_often": self.failed_too_often or None,
        }


async def replay_one_id(context: Context, caller: Caller, id: str, *, force: bool) -> dict[str, Any]:
    """Replay one record.

    Raises:
        ApiError: 404 if there is none, 409 if it waits or has not failed since, 422 if it would only fail again, has
            failed too often or is not stored as a whole, 429 if too many records wait.

    """
    answer = await replay_ids(context, caller, [id], force=force)
    if not answer["replayed"]:
        raise ApiError(
            409, "conflict", f"the record {id} waits for its shard, or was sent back before and has not failed since"
        )
    return answer


async def replay_ids(context: Context, caller: Caller, ids: Sequence[str], *, force: bool) -> dict[str, Any]:
    """Send records back in one transaction, except those that wait or have not failed since.

    Raises:
        ApiError: no record is sent; 404 if one is unknown or not the caller's, 413 if they have too many bytes, 422 if
            one would only fail again, has failed too often or is not stored as a whole, 429 if too many records wait.

    """
    async with context.transaction() as connection:
        rows = await _by_ids(connection, caller, ids)
        _require_changing({row["reason"] for row in rows}, caller, force=force)
        _require_whole(rows)
        _require_few(rows)
        sent = await send_back(context, connection, caller, rows, force=force)
        _require_hopeful(sent, force=force)
    _log(sent, caller)
    return {"replayed": sent.replayed, "waiting": len(rows) - sent.replayed or None}


async def replay_reason(
    context: Context, caller: Caller, reason: str, limit: int | None, after: str | None, *, force: bool
) -> dict[str, Any]:
    """Send back all records of a reason that were not replayed yet, a portion in each transaction.

    Those that have failed too often or are not stored as a whole are passed over, and count towards `limit` too.

    Raises:
        ApiError: 400 for a malformed `after`, 403 or 422 for a reason that needs `force`, 429 if too many records wait
            and none was sent.

    """
    cursor = None if after is None else ReplayCursor.parse(after, context.shards)
    _require_changing({reason}, caller, force=force)
    cursor = cursor or await _start(context, caller)
    passed = _Passed()
    while limit is None or passed.records < limit:
        most = PORTION_RECORDS if limit is None else min(PORTION_RECORDS, limit - passed.records)
        try:
            async with context.transaction() as connection:
                rows = await _portion(connection, caller, reason, cursor, most)
                if not rows:
                    return passed.answer()
                whole = [row for row in rows if row["is_whole"]]
                sent = await send_back(context, connection, caller, whole, force=force)
        except ApiError:
            if not passed.replayed:
                raise
            break
        _log(sent, caller)
        passed.add(rows, whole, sent)
        cursor = cursor.behind(rows[-1])
    return {**passed.answer(), "next": str(cursor)}


async def send_back(
    context: Context, connection: asyncpg.Connection, caller: Caller, rows: list[asyncpg.Record], *, force: bool
) -> Sent:
    """Give the records to the owners of their shards, and wake the owners at the commit.

    Records that wait or have not failed since are left out, and so are those that have failed too often, unless an
    administrator of all Business Centers forces them.

    Raises:
        ApiError: 429 if too many records wait already.

    """
    targets = [_target(row, context.shards) for row in rows]
    try:
        found = await connection.fetch(
            "SELECT * FROM ledger.replay_quarantined($1, $2, $3, $4, $5)",
            [row["shard"] for row in rows],
            [row["sequence"] for row in rows],
            targets,
            context.clock.now(),
            None if force and _may_force(caller) else MOST_REPLAYS,
        )
    except asyncpg.PostgresError as error:
        raise _crowded(error) if error.sqlstate == _CROWDED else error from error
    for shard in sorted(set(targets)):
        await connection.execute("SELECT pg_notify('forwarded', $1)", str(shard))
    failed_too_often = [record_id(row["shard"], row["sequence"]) for row in found if row["failed_too_often"]]
    return Sent(len(found) - len(failed_too_often), failed_too_often)


def _log(sent: Sent, caller: Caller) -> None:
    structlog.get_logger().info("replaying quarantined records", count=sent.replayed, by=caller.id)


def _crowded(error: asyncpg.PostgresError) -> ApiError:
    return ApiError(
        429,
        "too_many_requests",
        f"{error}: send more once they are decided",
        {"Retry-After": str(_CROWDED_SECONDS)},
    )


def _require_changing(reasons: set[str], caller: Caller, *, force: bool) -> None:
    """Refuse records that would only fail again, unless an administrator of all Business Centers forces it."""
    unchanging = sorted(reasons & set(UNCHANGING))
    if not unchanging:
        return
    if not force:
        raise ApiError(
            422,
            "not_eligible",
            f"a record that is {unchanging[0]} fails again however often it is sent back: publish a corrected one"
            " under a new id; an administrator of all Business Centers may use force",
        )
    if not _may_force(caller):
        raise _not_by_force()


def _may_force(caller: Caller) -> bool:
    return caller.role == "admin" and caller.business_centers is None


def _not_by_force() -> ApiError:
    return permission_denied("force is for an administrator of all Business Centers")


def _require_hopeful(sent: Sent, *, force: bool) -> None:
    """Refuse records that have failed too often. `force` only leaves any to a caller who may not use it."""
    if not sent.failed_too_often:
        return
    if force:
        raise _not_by_force()
    raise ApiError(
        422,
        "not_eligible",
        f"the record {sent.failed_too_often[0]} was sent back {MOST_REPLAYS} times and failed each time: the detail of"
        " its last failed replay says why; once that is fixed, an administrator of all Business Centers may use force",
    )


def _require_whole(rows: list[asyncpg.Record]) -> None:
    for row in rows:
        if not row["is_whole"]:
            raise ApiError(
                422,
                "not_eligible",
                f"the record {record_id(row['shard'], row['sequence'])} is not stored as a whole and cannot be sent"
                f" back: Kafka may still have it at {row['topic']}-{row['partition']}, offset {row['offset']}",
            )


def _require_few(rows: list[asyncpg.Record]) -> None:
    size = sum(row["size"] for row in rows)
    if size > PORTION_BYTES and len(rows) > 1:
        raise ApiError(
            413,
            "too_large",
            f"these records have {size} bytes, at most {PORTION_BYTES} are sent back at once: name fewer ids",
        )


async def _start(context: Context, caller: Caller) -> ReplayCursor:
    """Return the cursor before the first record. It ends at the last records that the caller may see, of each shard."""
    async with context.snapshot() as connection:
        rows = await connection.fetch(
            "SELECT coalesce((SELECT max(sequence) FROM ledger.quarantine q WHERE q.shard = s.shard"
            " AND ($1::text[] IS NULL OR q.business_center_id = ANY($1))), 0) FROM ledger.shards s ORDER BY shard",
            caller.scope,
        )
    return ReplayCursor(0, 0, tuple(row[0] for row in rows))


async def _by_ids(connection: asyncpg.Connection, caller: Caller, ids: Sequence[str]) -> list[asyncpg.Record]:
    """Return the rows of these ids. Raises ApiError (404) if one is unknown or not the caller's."""
    known = {parse_id(id_) for id_ in ids}
    rows: list[asyncpg.Record] = await connection.fetch(
        _WITH_FIRST.format(wanted="unnest($1::smallint[], $2::bigint[])") + " ORDER BY q.shard, q.sequence",
        [shard for shard, _ in known],
        [sequence for _, sequence in known],
    )
    if len(rows) < len(known) or not all(caller.sees(row["business_center_id"]) for row in rows):
        raise not_found("quarantined record" if len(ids) == 1 else "quarantined record as one of these ids")
    return rows


async def _portion(
    connection: asyncpg.Connection, caller: Caller, reason: str, cursor: ReplayCursor, most: int
) -> list[asyncpg.Record]:
    """Return the next rows after the cursor that fit into one transaction; at least one, if there is one."""
    rows: list[asyncpg.Record] = await connection.fetch(
        f"""
        WITH few AS MATERIALIZED (
            SELECT shard, sequence FROM ledger.quarantine q
            WHERE reason = $1 AND (shard, sequence) > ($2, $3) AND sequence <= ($4::bigint[])[shard + 1]
                AND ($5::text[] IS NULL OR business_center_id = ANY($5)) AND NOT EXISTS (
                    SELECT FROM ledger.quarantine_replays r
                    WHERE r.shard = q.shard AND r.sequence = q.sequence AND r.recorded_at = q.recorded_at)
            ORDER BY shard, sequence LIMIT $6
        )
        SELECT * FROM (
            SELECT *, sum(size) OVER (ORDER BY shard, sequence) - size AS bytes_before
            FROM ({_WITH_FIRST.format(wanted="few")}) AS found
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
    """Return the shard of the Business Center that the record names; if it names none, the shard that refused it.

    A shard that does not exist has refused nothing. What is sent there would wait for ever.
    """
    named: str | None = row["business_center_id"]
    return int(row["shard"]) % shards if named is None else murmur2_partition(named.encode(), shards)
