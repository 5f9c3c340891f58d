"""Follows the ledger: one checkpoint for each shard, and one loop both for catching up and for live operation.

Followers only differ in what they do with a range of positions. Each range is one transaction: it locks the
checkpoint, folds the entries and moves the checkpoint. So each range is folded once, whichever process dies and when,
and two processes of one follower take turns. Entries of a shard become visible in the order of their positions, a
whole batch at a time, so that nothing below `ledger.shards.position` is missing.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files
from time import monotonic
from typing import NamedTuple

import asyncpg
import structlog
from prometheus_client import Counter, Gauge

from shared.ledger.channels import LEDGER_CHANNEL
from shared.ledger.checkpoints import checkpoints_of
from shared.runtime.health import Health
from shared.runtime.postgres import connect, is_lost
from shared.runtime.reachability import watch_reachability
from shared.runtime.retries import GrowingPause
from shared.runtime.settings import BadSettingError, Settings
from shared.runtime.stopping import first_to_end

__all__ = ["Follower", "Progress", "Range", "advance", "follow", "follower_connection", "read_sql"]

POLL_SECONDS = 1.0  # A lost notification delays a fold by at most this long.
MOST_FRUITLESS_SESSIONS = 10  # Give up after losing this many connections in a row without folding a range.
LONGEST_REST_SECONDS = 2.0
STOP_SECONDS = 2.0  # for steps in progress when a session ends
# Not ready after this long without a finished step. During catch-up the longest fold takes a few seconds.
STALE_SECONDS = 15.0
LONGEST_REASON = 500  # characters of an error in a log line or in /readyz

# A fold touches only the rows that its range names, so it must use indexes however large the tables are. Generic plans
# do not depend on statistics from when a table was empty. No commit waits for the disk, because a lost commit takes its
# checkpoint with it, and the follower then folds the range again from the ledger.
_SESSION = """
    SET plan_cache_mode = force_generic_plan;
    SET enable_seqscan = off;
    SET enable_bitmapscan = off;
    SET enable_hashjoin = off;
    SET enable_mergejoin = off;
    SET enable_material = off;
    SET jit = off;
    SET work_mem = '128MB';
    SET synchronous_commit = off;
"""
_BEGIN_CHECKPOINT = "INSERT INTO {table} (follower, shard) VALUES ($1, $2) ON CONFLICT DO NOTHING"
_TAKE_CHECKPOINT = """
    SELECT c.position AS checkpoint, s.position AS ledger
    FROM {table} c JOIN ledger.shards s USING (shard)
    WHERE c.follower = $1 AND c.shard = $2 FOR UPDATE OF c
"""
_MOVE_CHECKPOINT = """
    UPDATE {table} SET position = $3,
        recorded_at = (SELECT recorded_at FROM ledger.entries WHERE shard = $2 AND position = $3)
    WHERE follower = $1 AND shard = $2
"""

_position = Gauge("drawdown_follower_position", "Last position folded", ["follower", "shard"])
_lag = Gauge("drawdown_follower_lag_entries", "Entries of the ledger not yet folded", ["follower", "shard"])
_entries = Counter("drawdown_follower_entries", "Entries folded", ["follower"])


class Range(NamedTuple):
    """The entries `first` … `last` of a shard, both included."""

    shard: int
    first: int
    last: int


class Progress(NamedTuple):
    """The result of a step: how many entries it folded, and how many of the ledger remain."""

    folded: int
    behind: int


# Folds a range within the transaction that moves the checkpoint. It returns the position it reached, which is usually
# `last` and at least `first`. An entry is given to it again only if the transaction was rolled back.
Fold = Callable[[asyncpg.Connection, Range], Awaitable[int]]


@dataclass(frozen=True)
class Follower:
    """A fold, and the name under which its checkpoints are kept.

    Args:
        longest_range: the most entries of a step. Longer ranges write a frequently updated row once instead of many
            times during catch-up.
        channel: notified with the shard's number after each step, in the same commit. None: no channel.
        wakes_on: the channel whose notifications say that there is something to fold.
        rest_seconds: the shortest pause after folding. On a busy ledger the pause is twice the time that folding took
            (2 s at most), so that ranges grow, each entry costs less and the writer gets the machine. There is no pause
            if this is 0, or while a whole range remains.
        connections: how many shards are folded at the same time. One is the cheapest for catching up, because the
            ranges of the other shards grow in the meantime.
        ends_by: errors of a fold that concern the whole follower instead of one shard.

    """

    name: str
    fold: Fold
    longest_range: int = 65_536
    channel: str | None = None
    wakes_on: str = LEDGER_CHANNEL
    rest_seconds: float = 0.0
    connections: int = 1
    ends_by: tuple[type[Exception], ...] = ()

    def on_checkpoints(self, statement: str) -> str:
        """Return the statement with the name of this follower's table of checkpoints put in."""
        return statement.format(table=checkpoints_of(self.name))


def read_sql(package: str, name: str) -> str:
    """Return the text of an SQL file of a package."""
    return (files(package) / name).read_text("utf-8")


async def advance(connection: asyncpg.Connection, follower: Follower, shard: int) -> Progress:
    """Fold the next range of a shard, if there is one, commit, and return the progress.

    The checkpoint's row must exist. Errors of the fold pass through, and leave the database unchanged.
    """
    async with connection.transaction():
        checkpoint, ledger = await connection.fetchrow(follower.on_checkpoints(_TAKE_CHECKPOINT), follower.name, shard)
        _lag.labels(follower.name, shard).set(ledger - checkpoint)
        last = min(ledger, checkpoint + follower.longest_range)
        reached = checkpoint
        if last > checkpoint:
            reached = await follower.fold(connection, Range(shard, checkpoint + 1, last))
            assert checkpoint < reached <= last, f"{follower.name} got to {reached} of {checkpoint + 1} … {last}"
            await connection.execute(follower.on_checkpoints(_MOVE_CHECKPOINT), follower.name, shard, reached)
            if follower.channel:
                await connection.execute("SELECT pg_notify($1, $2)", follower.channel, str(shard))
    # Another process of the same follower may be ahead of the position we saw.
    progress = Progress(reached - checkpoint, max(0, ledger - reached))
    _position.labels(follower.name, shard).set(reached)
    _lag.labels(follower.name, shard).set(progress.behind)
    _entries.labels(follower.name).inc(progress.folded)
    return progress


@contextlib.asynccontextmanager
async def follower_connection(settings: Settings, name: str) -> AsyncIterator[asyncpg.Connection]:
    """Open a connection for folding under the follower's role. Wait for an unavailable database as `connect` does."""
    connection = await connect(settings, f"drawdown_{name}", name)
    try:
        await connection.execute(_SESSION)
        yield connection
    finally:
        connection.terminate()  # PostgreSQL rolls back an open transaction, so no fold is half done.


async def follow(settings: Settings, follower: Follower, health: Health) -> None:
    """Follow all shards until cancelled, and report readiness to `health`.

    The follower waits for a lost database, but not for ever: then it raises the last error. It raises errors of
    `ends_by` at once. Any other error only holds up its shard, which is tried again after pauses from 0.1 s to 15 s. No
    entry is ever skipped.
    """
    await _Following(settings, follower, health).run()


class _Bell:
    """Knows which of its shards may have entries to fold: at first, and after each second without a ring, all of them.

    A shard that failed rests for a while, even if it is rung.
    """

    def __init__(self, shards: Iterable[int]) -> None:
        self.shards = tuple(shards)
        self.behind = dict.fromkeys(self.shards, 0)
        self.unseen = set(self.shards)
        self.stepped_at = monotonic()
        self.failing: dict[int, str] = {}
        self._folded = dict.fromkeys(self.shards, 0)
        self._pauses = {shard: GrowingPause() for shard in self.shards}
        self._resting: set[int] = set()
        self._due = set(self.shards)
        self._rung = asyncio.Event()
        self._rung.set()

    def ring(self, shard: int) -> None:
        self._due.add(shard)
        self._rung.set()

    def stepped(self, shard: int, progress: Progress) -> None:
        """Note that a step in this shard was committed."""
        self.behind[shard] = progress.behind
        self.unseen.discard(shard)
        self.failing.pop(shard, None)
        self._folded[shard] += progress.folded
        self.stepped_at = monotonic()
        if progress.behind:
            self.ring(shard)

    def failed(self, shard: int, why: str) -> float:
        """Note that a step in this shard failed. Return the seconds after which it is due again."""
        self.failing[shard] = why
        self._resting.add(shard)
        seconds = self._pauses[shard].next(self._folded[shard])
        asyncio.get_running_loop().call_later(seconds, self._rested, shard)
        return seconds

    def _rested(self, shard: int) -> None:
        self._resting.discard(shard)
        self.ring(shard)

    async def due(self) -> list[int]:
        try:
            async with asyncio.timeout(POLL_SECONDS):
                await self._rung.wait()
        except TimeoutError:
            self._due.update(self.shards)
        self._rung.clear()
        due, self._due = sorted(self._due - self._resting), set()
        return due


class _Following:
    """The run of a follower in one process: a sequence of sessions, each until a connection is lost."""

    def __init__(self, settings: Settings, follower: Follower, health: Health) -> None:
        self._settings = settings
        self._follower = follower
        self._log = structlog.get_logger().bind(follower=follower.name)
        self._database = health.reachability("the database")
        self._bells: list[_Bell] = []
        self._fruitless = 0
        health.work = self._readiness

    def _readiness(self) -> tuple[bool, str]:
        if not self._bells:
            return False, "connecting to the database"
        unseen = sorted(shard for bell in self._bells for shard in bell.unseen)
        failing = {shard: why for bell in self._bells for shard, why in bell.failing.items()}
        if failing:
            return False, "; ".join(f"shard {shard} is not followed: {why}" for shard, why in sorted(failing.items()))
        silence = monotonic() - min(bell.stepped_at for bell in self._bells)
        if silence > STALE_SECONDS:
            return False, f"the follower has completed no step for {silence:.0f} s"
        if unseen:
            return False, f"has not yet looked at the shards {unseen}"
        behind = sum(sum(bell.behind.values()) for bell in self._bells)
        return True, f"following, {behind} entries behind" if behind else "following"

    async def run(self) -> None:
        while True:
            self._fruitless += 1
            try:
                await self._session()
            except Exception as error:
                if not is_lost(error) or self._fruitless >= MOST_FRUITLESS_SESSIONS:
                    raise
                self._log.warning("connection lost", error=f"{type(error).__name__}: {error}")

    async def _session(self) -> None:
        """Listen and fold until a connection is lost or an error ends the follower."""
        numbers = range(self._settings.shards)
        workers = min(self._follower.connections, len(numbers))
        bells = [_Bell(numbers[worker::workers]) for worker in range(workers)]
        async with contextlib.AsyncExitStack() as stack:
            listener, *connections = [
                await stack.enter_async_context(follower_connection(self._settings, self._follower.name))
                for _ in range(1 + workers)
            ]
            await _require_all_shards(listener, len(numbers))
            begin = self._follower.on_checkpoints(_BEGIN_CHECKPOINT)
            for shard in numbers:
                await listener.execute(begin, self._follower.name, shard)
            await self._listen(listener, bells)
            self._bells = bells
            self._log.info("following", shards=len(numbers))
            await first_to_end(
                watch_reachability(self._database, lambda: listener.execute("SELECT 1")),
                *(self._work(connection, bell) for connection, bell in zip(connections, bells, strict=True)),
                seconds=STOP_SECONDS,
            )

    async def _listen(self, listener: asyncpg.Connection, bells: list[_Bell]) -> None:
        """Ring for the shard that a notification names. Ignore others, because any login may send notifications."""
        of = {str(shard): (bell, shard) for bell in bells for shard in bell.shards}

        def ring(_connection: object, _pid: int, _channel: str, payload: object) -> None:
            if payload in of:
                bell, shard = of[str(payload)]
                bell.ring(shard)

        await listener.add_listener(self._follower.wakes_on, ring)

    async def _work(self, connection: asyncpg.Connection, bell: _Bell) -> None:
        """Fold the bell's shards as they become due, until cancelled."""
        while True:
            due, started = await bell.due(), monotonic()
            folded = most_behind = 0
            for shard in due:
                progress = await self._step(connection, bell, shard)
                folded += progress.folded
                most_behind = max(most_behind, progress.behind)
            if folded:
                self._fruitless = 0
                if most_behind < self._follower.longest_range:
                    await asyncio.sleep(self._rest(monotonic() - started))

    async def _step(self, connection: asyncpg.Connection, bell: _Bell, shard: int) -> Progress:
        """Fold the next range of a shard. An error in it does not hold up the other shards."""
        try:
            progress = await advance(connection, self._follower, shard)
        except Exception as error:
            if is_lost(error) or isinstance(error, self._follower.ends_by):
                raise
            why = f"{type(error).__name__}: {error}"[:LONGEST_REASON]
            seconds = bell.failed(shard, why)
            self._log.exception(
                "a shard cannot be followed: it is tried again; the other shards continue",
                shard=shard,
                again_in_seconds=seconds,
                error=why,
            )
            return Progress(0, 0)
        bell.stepped(shard, progress)
        return progress

    def _rest(self, folding_seconds: float) -> float:
        least = self._follower.rest_seconds
        return max(least, min(LONGEST_REST_SECONDS, 2 * folding_seconds)) if least else 0.0


async def _require_all_shards(connection: asyncpg.Connection, shards: int) -> None:
    """Raise BadSettingError if the ledger has more or fewer shards: some would be followed by nobody, unnoticed."""
    existing = await connection.fetchval("SELECT count(*) FROM ledger.shards")
    if existing != shards:
        raise BadSettingError(
            f"DRAWDOWN_SHARDS is {shards}, but the ledger has {existing} shards: set DRAWDOWN_SHARDS={existing}"
        )
