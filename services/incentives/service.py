"""Incentives: folds the ledger into `incentives.cash_spend`, from which the pacing of deals is computed."""

import asyncpg

from shared.ledger.follow import Follower, Range, follow, read_sql
from shared.runtime.health import serving_health
from shared.runtime.settings import Settings

_CASH_SPEND = read_sql(__package__, "fold.sql")


async def fold(connection: asyncpg.Connection, entries: Range) -> int:
    """Fold a range as sets; how the ledger is cut into ranges changes no row."""
    await connection.execute(_CASH_SPEND, *entries)
    return entries.last


FOLLOWER = Follower("incentives", fold, rest_seconds=0.25)


async def run(settings: Settings) -> None:
    """Follow until cancelled; raises what a fold raises."""
    async with serving_health(settings) as health:
        await follow(settings, FOLLOWER, health)
