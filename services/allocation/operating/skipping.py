"""The command `offsets skip`: an operator skips one record that stops a shard, as a last resort.

The operator has to name exactly the record that the ledger needs next. One transaction moves the offset, quarantines
the record as `skipped` and notes in the operators' log who did it and why. It also gives the shard a new epoch: the
failing writer is fenced, whatever it is doing, and the next owner loads the shard again.
"""

import getpass
import os
import socket
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import asyncpg
import structlog

from services.allocation.lease import RELEASED_CHANNEL, Lease, take_over
from services.allocation.operating.isolated_reading import NotYet, read_one
from services.allocation.records.quarantine_rows import is_too_large, quarantine_row, short_record
from services.allocation.records.record_decoding import Fault, Raw, center_of_command, center_of_event, printable
from services.allocation.writing.append import BatchWrite, append_aside
from shared.ledger.lookup import plain_types
from shared.rules.instants import from_datetime
from shared.rules.policy import STANDARD
from shared.runtime.errors import CannotGoOnError
from shared.runtime.kafka import CONSUMED, SPEND_EVENTS
from shared.runtime.postgres import connect
from shared.runtime.roles import ALLOCATION_ROLE
from shared.runtime.settings import Settings

log = structlog.get_logger()

_LONGEST_BECAUSE: Final = 300


async def skip(settings: Settings, shard: int, topic: str, offset: int, because: str) -> None:
    """Let a shard skip one record.

    Raises CannotGoOnError, and changes nothing, if the record is not the next one or Kafka does not have it yet.
    """
    because = printable(because).strip()
    if topic not in CONSUMED:
        raise CannotGoOnError(f"the writer reads {' and '.join(CONSUMED)}, not {topic}: nothing was skipped")
    if not because:
        raise CannotGoOnError("--because should say why, for later readers: nothing was skipped")
    connection = await connect(settings, ALLOCATION_ROLE, "drawdown offsets skip")
    try:
        await plain_types(connection)
        await connection.execute("SET lock_timeout = '10s'")
        await _require_next(connection, shard, topic, offset)
        found = await read_one(settings, topic, shard, offset)
        if isinstance(found, NotYet):
            raise CannotGoOnError(f"offset {offset} of {topic}-{shard} {found.why}: nothing was skipped")
        async with connection.transaction():
            lease = await take_over(connection, shard)
            await _require_next(connection, shard, topic, offset)
            write = _write(lease, topic, await _now(connection, settings))
            write.quarantined.append(_row(found, topic, shard, offset, because, write))
            await append_aside(connection, lease, write)
            await _note(connection, shard, topic, offset, because, found)
            await connection.execute("SELECT pg_notify($1, $2)", RELEASED_CHANNEL, str(shard))
    finally:
        await connection.close()
    if isinstance(found, Raw):
        log.warning("one record was skipped: it is in quarantine", shard=shard, topic=topic, offset=offset)
    else:
        log.warning(
            "one record was skipped unread: quarantine has only its place; Kafka has the record until it expires",
            shard=shard,
            topic=topic,
            offset=offset,
            why=found,
        )


async def _require_next(connection: asyncpg.Connection, shard: int, topic: str, offset: int) -> None:
    row = await connection.fetchrow("SELECT spend_offset, command_offset FROM ledger.shards WHERE shard = $1", shard)
    if row is None:
        raise CannotGoOnError(f"there is no shard {shard}: nothing was skipped")
    needed = row["spend_offset" if topic == SPEND_EVENTS else "command_offset"]
    if needed != offset:
        raise CannotGoOnError(f"shard {shard} needs offset {needed} of {topic} next, not {offset}: nothing was skipped")


async def _now(connection: asyncpg.Connection, settings: Settings) -> int:
    """Return the database's time in µs, because the clock of the operator's machine must not decide anything."""
    now = from_datetime(await connection.fetchval("SELECT clock_timestamp()"))
    return int(now + settings.clock_offset_seconds * 1_000_000)


def _write(lease: Lease, topic: str, now: int) -> BatchWrite:
    """Return a batch that moves the offset of one topic by one."""
    spends = topic == SPEND_EVENTS
    return BatchWrite(
        max(now, lease.ledger_time), STANDARD.version, lease.spend_offset + spends, lease.command_offset + (not spends)
    )


def _row(found: Raw | str, topic: str, shard: int, offset: int, because: str, write: BatchWrite) -> tuple[Any, ...]:
    """Return the record as a row for quarantine, as far as it could be read."""
    told = f"skipped by an operator, because {because}"[:_LONGEST_BECAUSE]
    if isinstance(found, str):
        nothing = Raw(topic, shard, offset, None, None, [])
        return quarantine_row(nothing, Fault("skipped", f"{told}; {found}"), None, None, write.recorded_at)
    raw = short_record(found, topic, shard) if is_too_large(found) else found
    if raw.cut is not None:
        told = f"{told}; {raw.cut.fault.detail}"
        raw = replace(raw, cut=replace(raw.cut, first_offset=offset))
    center = headers = None
    with suppress(Exception):  # Reading the record may be what fails.
        headers = raw.headers_json()
        center = center_of_event(raw) if topic == SPEND_EVENTS else center_of_command(raw)
    return quarantine_row(raw, Fault("skipped", told), headers, center, write.recorded_at)


async def _note(
    connection: asyncpg.Connection, shard: int, topic: str, offset: int, because: str, found: Raw | str
) -> None:
    details = {"shard": shard, "topic": topic, "offset": offset, "was_read": isinstance(found, Raw)}
    person, because = _person()[:_LONGEST_BECAUSE], because[:_LONGEST_BECAUSE]  # the most that the database accepts
    await connection.execute("SELECT ledger.note_offset_skipped($1, $2, $3)", person, because, details)


def _person() -> str:
    """Return the user at the terminal and the name of the machine."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # A container may have no name for its user.
        name = f"user {os.getuid()}"
    return printable(f"{name} at {socket.gethostname()}")
