"""Ids of ad accounts are unique across shards: a shard that opens some keeps the others from opening the same ones.

Advisory locks of the database are held from before the ids are looked up until the batch is committed. They are taken
in one order and all at once, and given back before others are taken, so that two shards never wait for each other.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final, TypeGuard

import asyncpg
import structlog

from services.allocation.batch import Decoded
from services.allocation.decoding import Command, Fault

log = structlog.get_logger()

# The server's table of locks is small: a batch opens no more accounts than this.
MOST_LOCKS: Final = 64
_CLASS: Final = 0x41434354  # keeps these locks apart from others
LONGEST_WAIT_SECONDS: Final = 1.0


def within(records: Decoded) -> Decoded:
    """As many of the records as open no more ad accounts than there are locks: at least one."""
    opened = 0
    for number, (_, command) in enumerate(records.commands):
        opened += _opens(command)
        if opened > MOST_LOCKS:
            return records.first(number)
    return records


def opened_in(records: Decoded) -> list[str]:
    """The ids of the ad accounts that these records would open."""
    return [command.content["ad_account_id"] for _, command in records.commands if _opens(command)]


def _opens(command: Command | Fault) -> TypeGuard[Command]:
    return isinstance(command, Command) and command.content["type"] == "open_ad_account"


async def lock(connection: asyncpg.Connection, ids: Iterable[str]) -> None:
    """Keep other shards from opening accounts of these ids, as long as the session has the locks.

    After a second it goes on without the rest of them: the table's key still refuses an id that is taken.
    """
    keys = sorted({int.from_bytes(blake2b(id_.encode(), digest_size=4).digest(), signed=True) for id_ in ids})
    assert len(keys) <= MOST_LOCKS
    try:
        # In one round trip. A statement that is given up takes its setting back; locks that it has got stay.
        locks = ", ".join(f"pg_advisory_lock({_CLASS}, {key})" for key in keys)
        await connection.execute(
            f"SET statement_timeout = '{LONGEST_WAIT_SECONDS}s'; SELECT {locks}; SET statement_timeout = 0"
        )
    except asyncpg.QueryCanceledError:
        log.warning("another shard has opened accounts for a second: not waiting for it", locks=len(keys))


async def unlock(connection: asyncpg.Connection) -> None:
    """Let others open accounts again."""
    await connection.execute("SELECT pg_advisory_unlock_all()")
