"""Balance: folds the ledger into the schema `balance`, from which the API answers."""

import asyncpg

from shared.ledger.follow import Follower, Range, follow, read_sql
from shared.runtime.health import serving_health
from shared.runtime.settings import Settings

_FACTS = read_sql(__package__, "facts.sql")
_MONEY = read_sql(__package__, "money.sql")
_CLOSING = read_sql(__package__, "closing.sql")

# The books of a shard are closed at the last position below each multiple of this. A read of the past folds fewer
# entries than this. A smaller distance would make such reads cheaper, but would cost the fold more rows.
CLOSING_POSITIONS = 524_288


async def fold(connection: asyncpg.Connection, entries: Range) -> int:
    """Fold a range up to the next closing at most, and return the position reached.

    The rows do not depend on how the ledger is divided into ranges.
    """
    closed_before = entries.first // CLOSING_POSITIONS * CLOSING_POSITIONS
    closing = closed_before + CLOSING_POSITIONS - 1
    reached = entries._replace(last=min(entries.last, closing))
    await connection.execute(_FACTS, *reached)
    await connection.execute(_MONEY, *reached)
    if reached.last == closing:
        await connection.execute(_CLOSING, entries.shard, closed_before, closing)
    return reached.last


# The API waits on the channel for the checkpoint that a read needs. Most of a fold's cost is writing rows, a few for
# each entity in the range, so long ranges make catching up cheaper. The longest range goes from closing to closing.
FOLLOWER = Follower("balance", fold, longest_range=CLOSING_POSITIONS, channel="balance", rest_seconds=0.05)


async def run(settings: Settings) -> None:
    """Follow until cancelled. Raise the last error if the database is lost for too long."""
    async with serving_health(settings) as health:
        await follow(settings, FOLLOWER, health)
