"""Empties quarantine: a whole month that is past is dropped, and the operators' log keeps what it was.

Done over the login that owns the database, as migrations are: no service may.
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
# Beyond a month's end: no shard's clock is so far behind that it would still write into it.
_GRACE: Final = timedelta(days=1)
_MONTH: Final = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])", re.ASCII)

_SUMMARY: Final = """
    SELECT shard, min(sequence) AS first, max(sequence) AS last, count(*) AS rows,
        sum(coalesce(octet_length(key), 0) + coalesce(octet_length(raw), 0) + coalesce(octet_length(headers::text), 0))
            ::bigint AS bytes,
        {sha256} AS sha256
    FROM ledger.{part} q GROUP BY shard ORDER BY shard
"""
# As docs/auditing.md says how to come to it from a backup.
_SHA256: Final = (
    "encode(sha256(string_agg(sha256(convert_to(row_to_json(q)::text, 'UTF8')), '' ORDER BY sequence)), 'hex')"
)


async def drop_month(settings: Settings, month: str, because: str, confirm: Callable[[str], bool]) -> int:
    """Drop the quarantine of a month such as 2026-08; return the exit code. `confirm` is shown what it would drop.

    Raises:
        BadSettingError: that is no month, it is not over, or nothing says why.
        CannotGoOnError: there is no quarantine of that month, or somebody still needs it.
        asyncpg.PostgresError: the login does not own the ledger.

    """
    part = _part_of(settings, month)
    if not because.strip():
        raise BadSettingError("--because: say why, for those who look for it later")
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
    print(f"dropped: {sum(each['rows'] for each in shards):,} records of {month}; the operators' log has it")
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
        raise CannotGoOnError(f"there is no quarantine of {month}: there is {', '.join(months) or 'none at all'}")


async def _summary(connection: asyncpg.Connection, part: str, sha256: str) -> list[dict[str, Any]]:
    return [dict(row) for row in await connection.fetch(_SUMMARY.format(part=part, sha256=sha256))]


def _told(month: str, shards: list[dict[str, Any]]) -> str:
    lines = [f"  shard {each['shard']}: {each['rows']:,} records, {each['first']} to {each['last']}" for each in shards]
    total = f"{sum(each['rows'] for each in shards):,} records, {sum(each['bytes'] for each in shards):,} bytes"
    return "\n".join([f"quarantine of {month}: {total}", *lines])


async def _drop(connection: asyncpg.Connection, part: str, month: str, because: str) -> list[dict[str, Any]]:
    """The log's entry and the drop are one transaction; answers what each shard has lost."""
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'")
        try:
            await connection.execute(f"LOCK TABLE ledger.{part} IN SHARE ROW EXCLUSIVE MODE")
            shards = await _summary(connection, part, _SHA256)
            # From here on nobody reads or writes quarantine: what follows takes moments.
            await connection.execute("LOCK TABLE ledger.quarantine IN ACCESS EXCLUSIVE MODE")
        except asyncpg.LockNotAvailableError as error:
            raise CannotGoOnError("nothing was dropped: somebody reads quarantine all the while; try again") from error
        await _require_unneeded(connection, part, month, shards)
        await _note(connection, month, because, shards)
        await connection.execute(f"DROP TABLE ledger.{part}")
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
        raise CannotGoOnError(f"{waits} records of {month} were sent back and wait for their shard: try again later")


def _person() -> str:
    """Who is at the terminal, as this machine knows; in a container often a number alone."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


async def _note(connection: asyncpg.Connection, month: str, because: str, shards: list[dict[str, Any]]) -> None:
    total = {name: sum(each[name] for each in shards) for name in ("rows", "bytes")}
    login = await connection.fetchval("SELECT session_user::text")
    await connection.execute(
        "INSERT INTO ledger.operators_log (operator, action, because, details) VALUES ($1, $2, $3, $4)",
        f"{login}, {_person()} at the terminal",
        ACTION,
        because,
        json.dumps({"month": month, **total, "shards": shards}),
    )
