"""A worker decides a batch while the previous one is being committed. Whatever overlaps or fails, each record counts
once.

The worker runs in the test's own process, on a real database and a real broker. A row lock slows a commit down. The
worker's steps are recorded, and a test may hold it at one.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from services.allocation import worker
from services.allocation.deciding import Decider, Decision
from services.allocation.lease import Lease
from services.allocation.memory.looking_up import Known, look_up
from services.allocation.records.batch_decoding import DecodedRecords
from services.allocation.writing.append import BatchWrite, append
from shared.rules.shard import Shard
from shared.runtime.settings import Settings
from tests.acceptance.front_door import until
from tests.integration.writing import Message, Writing, command, reversal, spend, writing

SHARD, OTHER_SHARD = 0, 1
LOOK_UP, LOOKED_UP, DECIDED, COMMIT, COMMITTED = "look up", "looked up", "decided", "commit", "committed"


class Steps:
    """The steps that the worker of one shard has taken, in order."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self._then: dict[str, Callable[[], Awaitable[object]]] = {}

    def at(self, step: str, do: Callable[[], Awaitable[object]]) -> None:
        """Run this before the worker continues, the next time that it takes the step."""
        self._then[step] = do

    async def take(self, step: str) -> None:
        """Note a step."""
        self.done.append(step)
        do = self._then.pop(step, None)
        if do is not None:
            await do()

    async def reached(self, step: str, times: int) -> None:
        """Wait until the worker has taken the step this many times."""

        async def ask() -> bool:
            return self.done.count(step) >= times

        await until(f"{step}, {times} times, of {self.done}", ask, 20)


def watched(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Record the steps of shard 0's worker from now on."""
    steps = Steps()
    decide = Decider.decide

    async def looking_up(connection: asyncpg.Connection, shard: int, rules: Shard, portion: DecodedRecords) -> Known:
        if shard != SHARD:
            return await look_up(connection, shard, rules, portion)
        await steps.take(LOOK_UP)
        known = await look_up(connection, shard, rules, portion)
        await steps.take(LOOKED_UP)
        return known

    async def deciding(self: Decider, *arguments: Any) -> Decision:
        decision = await decide(self, *arguments)
        if self._shard == SHARD:
            await steps.take(DECIDED)
        return decision

    async def appending(connection: asyncpg.Connection, lease: Lease, write: BatchWrite) -> None:
        if lease.shard == SHARD:
            await steps.take(COMMIT)
        await append(connection, lease, write)
        if lease.shard == SHARD:
            await steps.take(COMMITTED)

    monkeypatch.setattr(worker, "look_up", looking_up)
    monkeypatch.setattr(Decider, "decide", deciding)
    monkeypatch.setattr(worker, "append", appending)
    return steps


@pytest.fixture
async def writer(settings: Settings) -> AsyncIterator[Writing]:
    async with writing(settings) as writer:
        yield writer


class SlowCommit:
    """Makes every commit in a shard wait until it is released."""

    def __init__(self, writer: Writing, lock: asyncpg.Connection, shard: int) -> None:
        self._database = writer.database
        self._lock = lock
        self._session = f"drawdown allocation writes {shard} %"

    async def waits(self) -> int:
        """Wait until a commit waits; return the process id of its session."""

        async def ask() -> int | None:
            return await self._database.fetchval(  # type: ignore[no-any-return]
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE $1"
                " AND wait_event_type = 'Lock'",
                self._session,
            )

        return await until("a commit waits", ask, 20)

    async def release(self) -> None:
        """Let the commit continue."""
        await self._lock.execute("ROLLBACK")


@contextlib.asynccontextmanager
async def slow_commit(writer: Writing, shard: int = SHARD) -> AsyncIterator[SlowCommit]:
    lock = await asyncpg.connect(writer.settings.database_url)
    await lock.execute(f"BEGIN; SELECT FROM ledger.shards WHERE shard = {shard} FOR NO KEY UPDATE")
    try:
        yield SlowCommit(writer, lock, shard)
    finally:
        await lock.close()


async def end_session(writer: Writing, pid: int) -> None:
    """End a session of the database; return when it has gone."""
    assert await writer.database.fetchval("SELECT pg_terminate_backend($1, 10000)", pid)


async def cash_paid(writer: Writing, events: list[Message]) -> list[int]:
    """Return what cash paid for each event, in micros, in the ledger's order."""
    rows = await writer.database.fetch(
        "SELECT amount FROM ledger.entries WHERE source_event_id = ANY($1::uuid[]) AND pocket = 'cash'"
        " ORDER BY shard, position",
        [event["event_id"] for event in events],
    )
    return [-row["amount"] for row in rows]


async def test_one_batch_but_not_two_is_decided_ahead_of_a_slow_commit(
    writer: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    center = await writer.opened(SHARD, cash="1.5")
    steps = watched(monkeypatch)
    events = [spend(center, amount="0.5") for _ in range(4)]
    async with slow_commit(writer) as commit:
        await writer.send(events[0])
        await commit.waits()
        await writer.send(events[1])
        await steps.reached(DECIDED, 2)
        await writer.send(*events[2:])
        assert await writer.charged(center) == []
        assert steps.done == [LOOK_UP, LOOKED_UP, DECIDED, COMMIT, LOOK_UP, LOOKED_UP, DECIDED]
        await commit.release()
        await writer.decided(SHARD)
    assert await writer.charged(center) == [event["event_id"] for event in events]
    assert await cash_paid(writer, events) == [500_000] * 3
    commits = [step for step in steps.done if step in (COMMIT, COMMITTED)]
    assert commits == [COMMIT, COMMITTED] * (len(commits) // 2), "two commits at once"
    for number in range(len(steps.done)):
        done = steps.done[:number]
        assert done.count(LOOK_UP) - done.count(COMMITTED) <= 2, "a batch was begun before the last but one was kept"


@pytest.mark.parametrize(
    "kept_at",
    [
        pytest.param(None, id="it reads and is decided before the commit"),
        pytest.param(LOOKED_UP, id="it reads before the commit and is decided after it"),
        pytest.param(LOOK_UP, id="it reads after the commit"),
    ],
)
async def test_a_lookup_finds_a_spend_whose_commit_overlaps_it(
    writer: Writing, monkeypatch: pytest.MonkeyPatch, kept_at: str | None
) -> None:
    center = await writer.opened(SHARD, cash="100")
    steps = watched(monkeypatch)
    deposit = command(center, "deposit_cash", ad_account_id=center, amount="10")
    spent, taken_back = spend(center), spend(center)
    for number, (first, then) in enumerate([(spent, spent), (deposit, deposit), (taken_back, reversal(taken_back))]):
        before = len(steps.done)
        async with slow_commit(writer) as commit:
            await writer.send(first)
            await commit.waits()
            going_on = asyncio.Event()
            if kept_at is not None:
                steps.at(kept_at, going_on.wait)
            await writer.send(then)
            await steps.reached(kept_at or DECIDED, 2 * (number + 1))
            assert COMMITTED not in steps.done[before:]
            await commit.release()
            await steps.reached(COMMITTED, 2 * number + 1)
            going_on.set()
            await writer.decided(SHARD)
        await steps.reached(COMMITTED, 2 * (number + 1))
    assert await writer.charged(center) == [spent["event_id"], taken_back["event_id"], then["event_id"]]
    assert await cash_paid(writer, [spent, taken_back, then]) == [1_000_000, 1_000_000, -1_000_000]
    deposits = "SELECT count(*) FROM ledger.entries WHERE business_center_id = $1 AND kind = 'deposit'"
    assert await writer.database.fetchval(deposits, center) == 2
    outcomes = "SELECT first, status FROM ledger.outcomes WHERE command_id = $1::uuid ORDER BY sequence"
    found = [tuple(row) for row in await writer.database.fetch(outcomes, deposit["command_id"])]
    assert found == [(True, "accepted"), (False, "accepted")]
    assert await writer.quarantined() == []


async def test_a_failed_lookup_is_repeated_and_no_record_is_lost_or_counts_twice(
    writer: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    center = await writer.opened(SHARD, cash="100")
    earlier, *events = [spend(center) for _ in range(4)]
    await writer.send(earlier)
    await writer.decided(SHARD)
    steps = watched(monkeypatch)
    lost = asyncio.Event()

    async def lose_the_session() -> None:
        pid = await writer.database.fetchval(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE $1",
            f"drawdown allocation reads {SHARD} %",
        )
        await end_session(writer, pid)
        lost.set()

    async with slow_commit(writer) as commit:
        await writer.send(events[0])
        await commit.waits()
        steps.at(LOOK_UP, lose_the_session)
        await writer.send(earlier, events[1])  # Only the ledger still knows the earlier one.
        await lost.wait()
        await writer.send(events[2])
        await commit.release()
        await writer.decided(SHARD)
    assert writer.told("the shard cannot be written")
    assert steps.done[:6] == [LOOK_UP, LOOKED_UP, DECIDED, COMMIT, LOOK_UP, COMMITTED], "the commit was cut off"
    assert await writer.charged(center) == [event["event_id"] for event in (earlier, *events)]
    assert await cash_paid(writer, [earlier, *events]) == [1_000_000] * 4
    assert await writer.quarantined() == []


async def test_a_failed_commit_also_discards_the_batch_decided_on_top_of_it(
    writer: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    center = await writer.opened(SHARD, cash="10")
    steps = watched(monkeypatch)
    events = [spend(center, amount="6"), spend(center, amount="3"), spend(center, amount="3")]
    async with slow_commit(writer) as commit:
        await writer.send(events[0])
        session = await commit.waits()
        await writer.send(events[1])
        await steps.reached(DECIDED, 2)
        await end_session(writer, session)
        await writer.send(events[2])
        await commit.release()
        await writer.decided(SHARD)
    assert writer.told("the shard cannot be written")
    assert steps.done[7] == LOOK_UP, "the first batch is decided again"
    assert await writer.charged(center) == [event["event_id"] for event in events]
    assert await cash_paid(writer, events) == [6_000_000, 3_000_000, 1_000_000]
    assert await writer.quarantined() == []


async def test_a_shard_with_a_slow_commit_delays_no_other(writer: Writing) -> None:
    center, neighbour = await writer.opened(SHARD), await writer.opened(OTHER_SHARD)
    events = [spend(each) for each in (center, neighbour) for _ in range(3)]
    async with slow_commit(writer) as commit:
        await writer.send(events[0])
        await commit.waits()
        await writer.send(*events[1:])
        await writer.decided(OTHER_SHARD, seconds=20)
        assert await writer.charged(neighbour) == [event["event_id"] for event in events[3:]]
        assert await writer.charged(center) == []
        await commit.release()
        await writer.decided()
    assert await writer.charged(center) == [event["event_id"] for event in events[:3]]
