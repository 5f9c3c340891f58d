"""Locks on the ids of new ad accounts, which must be unique across shards.

A shard holds advisory locks of the database from before it looks the ids up until the batch is committed. It takes all
of them at once and in one order, and releases them before it takes others, so two shards never wait for each other.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final, TypeGuard

import asyncpg
import structlog

from services.allocation.records.batch_decoding import DecodedRecords
from services.allocation.records.record_decoding import Fault
from shared.contracts.commands import SentCommand

log = structlog.get_logger()

# A batch opens at most this many accounts, because the server's table of locks is small.
MOST_LOCKS: Final = 64
_CLASS: Final = 0x41434354  # the first key of these locks, which no other advisory lock has
LONGEST_WAIT_SECONDS: Final = 1.0


def within(records: DecodedRecords) -> DecodedRecords:
    """Return as many records as open at most `MOST_LOCKS` ad accounts."""
    opened = 0
    for number, (_, command) in enumerate(records.commands):
        opened += _opens(command)
        if opened > MOST_LOCKS:
            return records.first(number)
    return records


def opened_in(records: DecodedRecords) -> list[str]:
    """Return the ids of the ad accounts that these records would open."""
    return [command.content["ad_account_id"] for _, command in records.commands if _opens(command)]


def _opens(command: SentCommand | Fault) -> TypeGuard[SentCommand]:
    return isinstance(command, SentCommand) and command.content["type"] == "open_ad_account"


async def lock(connection: asyncpg.Connection, ids: Iterable[str]) -> None:
    """Keep other shards from opening accounts with these ids while the session holds the locks.

    After a second this returns without the missing locks, because the key of the table still refuses a taken id.
    """
    keys = sorted({int.from_bytes(blake2b(id_.encode(), digest_size=4).digest(), signed=True) for id_ in ids})
    assert len(keys) <= MOST_LOCKS
    try:
        # All in one round trip. If the server cancels it, the setting is undone and the locks taken so far stay.
        locks = ", ".join(f"pg_advisory_lock({_CLASS}, {key})" for key in keys)
        await connection.execute(
            f"SET statement_timeout = '{LONGEST_WAIT_SECONDS}s'; SELECT {locks}; SET statement_timeout = 0"
        )
    except asyncpg.QueryCanceledError:
        log.warning("another shard has held ids of new accounts for a second: continuing without it", locks=len(keys))


async def unlock(connection: asyncpg.Connection) -> None:
    """Release the locks, so that other shards can open accounts with these ids."""
    await connection.execute("SELECT pg_advisory_unlock_all()")
