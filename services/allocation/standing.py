"""How each shard of this process stands, and telling it: to its own readiness, and to all through the ledger."""

import asyncio
from collections.abc import Mapping
from time import monotonic
from typing import Literal, NoReturn, Protocol

import asyncpg

REPORT_SECONDS = 1.0
State = Literal["loading", "writing", "waiting", "stopped"]


class Standing:
    """What one shard is doing, since when, and why it does not write where it does not."""

    __slots__ = ("detail", "since", "state")

    def __init__(self) -> None:
        self.state: State = "loading"
        self.detail = ""
        self.since = monotonic()

    def say(self, state: State, detail: str = "") -> None:
        """Tell what it does now. A state that it is in already has not begun anew."""
        if state != self.state:
            self.state, self.since = state, monotonic()
        self.detail = detail


class Lag(Protocol):
    """What is known of the records that wait."""

    records: int

    def seconds(self, now: float) -> float:
        """For how long the oldest has waited."""


async def report(
    connection: asyncpg.Connection, owner: str, standings: Mapping[int, Standing], lags: Mapping[int, Lag]
) -> NoReturn:
    """Keep the table of shard states up to date, until cancelled."""
    await connection.execute("SET synchronous_commit = off")
    while True:
        await report_once(connection, owner, standings, lags)
        await asyncio.sleep(REPORT_SECONDS)


async def report_once(
    connection: asyncpg.Connection, owner: str, standings: Mapping[int, Standing], lags: Mapping[int, Lag]
) -> None:
    """Write a row for each shard, and take back those of shards that were given up. Times are the database's."""
    now = monotonic()
    shards = sorted(standings)
    told = [standings[shard] for shard in shards]
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
        [each.state for each in told],
        [each.detail for each in told],
        [lag.records if lag else 0 for lag in waiting],
        [lag.seconds(now) if lag else 0.0 for lag in waiting],
        [now - each.since for each in told],
    )
    await connection.execute("DELETE FROM ledger.shard_states WHERE owner = $1 AND shard <> ALL($2)", owner, shards)
