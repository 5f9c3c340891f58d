"""Balance: folds the ledger into the schema `balance`, which the API answers from."""

import asyncpg

from shared.ledger.follow import Follower, Range, follow, read_sql
from shared.runtime.settings import Settings

_FACTS = read_sql(__package__, "facts.sql")
_MONEY = read_sql(__package__, "money.sql")


async def fold(connection: asyncpg.Connection, entries: Range) -> int:
    """Fold a range as sets; how the ledger is cut into ranges changes no row."""
    await connection.execute(_FACTS, *entries)
    await connection.execute(_MONEY, *entries)
    return entries.last


# The API waits on the channel for the checkpoint that a read needs. Most of a fold's cost is rows written, a few
# for each entity that a range touches: long ranges make catching up cheaper.
FOLLOWER = Follower("balance", fold, longest_range=131_072, channel="balance")


async def run(settings: Settings) -> None:
    """Follow until cancelled; raises what a fold raises."""
    await follow(settings, FOLLOWER)
