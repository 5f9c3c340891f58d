"""Reads how far a read model has got, and which time its readers use."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from services.api.answers.models import time
from shared.ledger.checkpoints import checkpoints_of
from shared.rules.instants import from_datetime
from shared.runtime.clock import Clock


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """A follower's checkpoints by shard, read in the same snapshot as the figures."""

    positions: dict[int, int]
    recorded_at: dict[int, datetime]

    def as_of(self) -> dict[str, Any]:
        """Return the answer's `as_of`. For several shards it has the earliest time, up to which nothing is missing."""
        return {
            "recorded_at": time(min(self.recorded_at.values())) if self.recorded_at else None,
            "shards": [{"shard": shard, "position": self.positions[shard]} for shard in sorted(self.positions)],
        }

    def position(self, shard: int) -> int:
        """Return the position of the follower in a shard; 0 in a shard that does not exist."""
        return self.positions.get(shard, 0)

    def now_us(self, clock: Clock) -> int:
        """Return the clock's time in µs, or the ledger's if that is later, so that no figure is from the future."""
        return max([clock.now_us(), *map(from_datetime, self.recorded_at.values())])


async def read_checkpoints(
    connection: asyncpg.Connection, follower: str, shards: list[int] | None = None
) -> Checkpoints:
    """Return the checkpoints of a follower in these shards, or in all; position 0 where it has not begun."""
    rows = await connection.fetch(
        f"""
        SELECT shard, coalesce(c.position, 0) AS position, c.recorded_at
        FROM ledger.shards s LEFT JOIN {checkpoints_of(follower)} c USING (shard)
        WHERE $1::smallint[] IS NULL OR shard = ANY($1)
        """,  # noqa: S608 (one of our followers)
        shards,
    )
    return Checkpoints(
        {row["shard"]: row["position"] for row in rows},
        {row["shard"]: row["recorded_at"] for row in rows if row["recorded_at"] is not None},
    )
