"""`drawdown quarantine drop`: drops a whole past month of quarantine, and keeps a summary in the operators' log.

With the records go the notes of when they were sent back. The command uses the login of the database's owner, like
migrations, because no service has that right.
"""

import getpass
import json
import os
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import asyncpg

from shared.runtime.clock import Clock
from shared.runtime.errors import CannotGoOnError
from shared.runtime.postgres import connection_options, refusals_explained
from shared.runtime.schema import require_known_schema
from shared.runtime.settings import BadSettingError, Settings

ACTION: Final = "quarantine_dropped"
LOCK_TIMEOUT_SECONDS: Final = 5
# Time after a month's end. No shard's clock is far enough behind to write to that month afterwards.
_GRACE: Final = timedelta(days=1)
_MONTH: Final = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])", re.ASCII)

_SUMMARY: Final = """
    SELECT shard, min(sequence) AS first, max(sequence) AS last, count(*) AS rows,
        sum(coalesce(octet_length(key), 0) + coalesce(octet_length(raw), 0) + coalesce(octet_length(headers::text), 0))
            ::bigint AS bytes,
        {sha256} AS sha256
    FROM ledger.{part} q GROUP BY shard ORDER BY shard
"""
# docs/auditing.md says how to compute the same hash from a backup.
_SHA256: Final = (
    "encode(sha256(string_agg(sha256(convert_to(row_to_json(q)::text, 'UTF8')), '' ORDER BY sequence)), 'hex')"
)
_REPLAYS: Final = """
    SELECT shard, count(*) AS rows, encode(sha256(string_agg(
        sha256(convert_to(row_to_json(r)::text, 'UTF8')), '' ORDER BY sequence, replayed_at)), 'hex') AS sha256
    FROM ledger.{part} r GROUP BY shard ORDER BY shard
"""


async def drop_month(settings: Settings, month: str, because: str, confirm: Callable[[str], bool]) -> int:
    """Drop the quarantine of a month; return the exit code.

    Args:
        settings: the address of the database, with its owner's login.
        month: a month in UTC, such as 2026-08.
        because: the reason, which the operators' log keeps.
        confirm: called with a summary of the records; if it returns False, nothing is dropped.

    Raises:
        BadSettingError: the month is malformed or not over, or the reason is empty.
        CannotGoOnError: there is no quarantine of that month, or its records are still needed.
        asyncpg.PostgresError: the login does not own the ledger.

    """
    part = _part_of(settings, month)
    if not because.strip():
        raise BadSettingError("--because: give the reason, for later readers of the operators' log")
    with refusals_explained(settings):
        connection = await asyncpg.connect(
            **connection_options(settings),
            server_settings={"application_name": "drawdown quarantine drop", "timezone": "UTC", "bytea_output": "hex"},
        )
    try:
        await require_known_schema(connection)
        await _require_part(connection, month)
        if not confirm(_told(month, await _summary(connection, part, "NULL::text"))):
            print("nothing was dropped")
            return 1
        shards = await _drop(connection, part, month, because)
    finally:
        await connection.close()
    print(f"dropped: {sum(each['rows'] for each in shards):,} records of {month}; see `drawdown offsets log`")
    return 0


def _part_of(settings: Settings, month: str) -> str:
    if not _MONTH.fullmatch(month):
        raise BadSettingError(f"a month is written like 2026-08, not {month!r}")
    if month >= f"{Clock(settings).now() - _GRACE:%Y-%m}":
        raise BadSettingError(f"{month} is not over: only months that ended more than a day ago are dropped")
    return f"quarantine_{month.replace('-', '_')}"


async def _require_part(connection: asyncpg.Connection, month: str) -> None:
    rows = await connection.fetch(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'ledger.quarantine'::regclass ORDER BY 1"
    )
    months = [row[0].removeprefix("ledger.quarantine_").replace("_", "-") for row in rows]
    if month not in months:
        raise CannotGoOnError(f"there is no quarantine of {month}, only of: {', '.join(months) or 'no month'}")


async def _summary(connection: asyncpg.Connection, part: str, sha256: str) -> list[dict[str, Any]]:
    return [dict(row) for row in await connection.fetch(_SUMMARY.format(part=part, sha256=sha256))]


def _told(month: str, shards: list[dict[str, Any]]) -> str:
    lines = [f"  shard {each['shard']}: {each['rows']:,} records, {each['first']} to {each['last']}" for each in shards]
    total = f"{sum(each['rows'] for each in shards):,} records, {sum(each['bytes'] for each in shards):,} bytes"
    return "\n".join([f"quarantine of {month}: {total}", *lines])


async def _drop(connection: asyncpg.Connection, part: str, month: str, because: str) -> list[dict[str, Any]]:
    """Write the log and drop the month in one transaction; return the summary of each shard."""
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'")
        try:
            await connection.execute(f"LOCK TABLE ledger.{part} IN SHARE ROW EXCLUSIVE MODE")
            shards = await _summary(connection, part, _SHA256)
            replays = await _replays(connection, month)
            # From here on nobody can read or write quarantine. The rest takes moments.
            await connection.execute("LOCK TABLE ledger.quarantine IN ACCESS EXCLUSIVE MODE")
            await connection.execute("LOCK TABLE ledger.quarantine_replays IN ACCESS EXCLUSIVE MODE")
        except asyncpg.LockNotAvailableError as error:
            raise CannotGoOnError("nothing was dropped, because quarantine is being read; try again") from error
        await _require_unneeded(connection, part, month, shards)
        await _require_same(connection, month, replays)
        await _note(connection, month, because, shards, replays)
        await connection.execute(f"DROP TABLE ledger.{part}")
        await connection.execute(f"DROP TABLE IF EXISTS ledger.{_replays_part(month)}")
    return shards


async def _require_unneeded(
    connection: asyncpg.Connection, part: str, month: str, shards: list[dict[str, Any]]
) -> None:
    for each in shards:
        if each["last"] - each["first"] + 1 != each["rows"]:
            raise CannotGoOnError(f"{month} has a gap in shard {each['shard']}: see 'drawdown audit verify' first")
    waits = await connection.fetchval(
        f"SELECT count(*) FROM ledger.forwarded f JOIN ledger.{part} q"  # noqa: S608 - made of digits
        " ON q.shard = f.replay_shard AND q.sequence = f.replay_sequence"
    )
    if waits:
        raise CannotGoOnError(
            f"{waits} records of {month} were sent back and still wait for their shard: try again later"
        )


def _replays_part(month: str) -> str:
    return f"quarantine_replays_{month.replace('-', '_')}"


async def _replays(connection: asyncpg.Connection, month: str) -> list[dict[str, Any]]:
    """Return a summary of the replays of the month's records, for each shard that has any."""
    part = _replays_part(month)
    if not await connection.fetchval("SELECT to_regclass('ledger.' || $1) IS NOT NULL", part):
        return []
    return [dict(row) for row in await connection.fetch(_REPLAYS.format(part=part))]


async def _require_same(connection: asyncpg.Connection, month: str, replays: list[dict[str, Any]]) -> None:
    """Refuse if the month's records were sent back since the summary. The table only grows, so counting is enough."""
    count = await connection.fetchval(
        "SELECT count(*) FROM ledger.quarantine_replays WHERE recorded_at >= $1::text::timestamptz"
        " AND recorded_at < $1::text::timestamptz + interval '1 month'",
        f"{month}-01",
    )
    if count != sum(each["rows"] for each in replays):
        raise CannotGoOnError(f"records of {month} are being sent back: try again later")


def _person() -> str:
    """Return the name of the user at the terminal; in a container it is often only a number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


async def _note(
    connection: asyncpg.Connection,
    month: str,
    because: str,
    shards: list[dict[str, Any]],
    replays: list[dict[str, Any]],
) -> None:
    total = {name: sum(each[name] for each in shards) for name in ("rows", "bytes")}
    login = await connection.fetchval("SELECT session_user::text")
    await connection.execute(
        "INSERT INTO ledger.operators_log (operator, action, because, details) VALUES ($1, $2, $3, $4)",
        f"{login}, {_person()} at the terminal",
        ACTION,
        because,
        json.dumps({"month": month, **total, "shards": shards, "replays": replays}),
    )
