"""The state of each shard of this process, reported to its readiness and, through the database, to all services."""

import asyncio
from collections.abc import Mapping
from time import monotonic
from typing import Literal, NoReturn, Protocol

import asyncpg

REPORT_SECONDS = 1.0
StateName = Literal["loading", "writing", "waiting", "stopped"]


class ShardState:
    """What a shard is doing, since when, and why, if it is not being written."""

    __slots__ = ("detail", "name", "since")

    def __init__(self) -> None:
        self.name: StateName = "loading"
        self.detail = ""
        self.since = monotonic()

    def set(self, name: StateName, detail: str = "") -> None:
        """Set the state. `since` changes only if the state does."""
        if name != self.name:
            self.name, self.since = name, monotonic()
        self.detail = detail


class Lag(Protocol):
    """What is known about the waiting records of a shard."""

    records: int

    def seconds(self, now: float) -> float:
        """Return for how many seconds the oldest has waited, at `now` in monotonic seconds."""


async def report(
    connection: asyncpg.Connection, owner: str, states: Mapping[int, ShardState], lags: Mapping[int, Lag]
) -> NoReturn:
    """Write the states of the shards into the table every second, until cancelled."""
    await connection.execute("SET synchronous_commit = off")
    while True:
        await report_once(connection, owner, states, lags)
        await asyncio.sleep(REPORT_SECONDS)


async def report_once(
    connection: asyncpg.Connection, owner: str, states: Mapping[int, ShardState], lags: Mapping[int, Lag]
) -> None:
    """Write a row for each shard, and delete those of released shards. Times are the database's."""
    now = monotonic()
    shards = sorted(states)
    told = [states[shard] for shard in shards]
    waiting = [lags.get(shard) for shard in shards]
    await connection.execute(
        """
        INSERT INTO ledger.shard_states
        SELECT shard, $1, state, detail, waiting, CASE WHEN waiting > 0 THEN at - make_interval(secs => waited) END,
            at - make_interval(secs => stood), at
        FROM unnest($2::smallint[], $3::text[], $4::text[], $5::bigint[], $6::float8[], $7::float8[])
            AS told (shard, state, detail, waiting, waited, stood), clock_timestamp() AS at
        ON CONFLICT (shard) DO UPDATE SET owner = excluded.owner, state = excluded.state, detail = excluded.detail,
            waiting_records = excluded.waiting_records, waiting_since = excluded.waiting_since,
            since = excluded.since, reported_at = excluded.reported_at
        """,
        owner,
        shards,
        [each.name for each in told],
        [each.detail for each in told],
        [lag.records if lag else 0 for lag in waiting],
        [lag.seconds(now) if lag else 0.0 for lag in waiting],
        [now - each.since for each in told],
    )
    await connection.execute("DELETE FROM ledger.shard_states WHERE owner = $1 AND shard <> ALL($2)", owner, shards)
