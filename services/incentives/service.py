"""The follower of incentives. It folds the ledger into `incentives.cash_spend`, from which pacing is computed."""

import asyncpg

from shared.ledger.follow import Follower, Range, follow, read_sql
from shared.runtime.health import serving_health
from shared.runtime.settings import Settings

_CASH_SPEND = read_sql(__package__, "fold.sql")


async def fold(connection: asyncpg.Connection, entries: Range) -> int:
    """Fold a range with one statement, and return its last position. The rows do not depend on how ranges are cut."""
    await connection.execute(_CASH_SPEND, *entries)
    return entries.last


FOLLOWER = Follower("incentives", fold, rest_seconds=0.25)


async def run(settings: Settings) -> None:
    """Follow the ledger until cancelled. Raise what a fold raises."""
    async with serving_health(settings) as health:
        await follow(settings, FOLLOWER, health)
