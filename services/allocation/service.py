"""The allocation process: takes shards, writes each in a worker of its own, gives them up when others come.

Shards are shared out by leases in PostgreSQL, not by a consumer group (docs/decisions/leases.md). Whatever fails in a
worker ends that worker alone, because its memory may be ahead of the ledger: the shard's state is loaded again, and the
other shards go on (docs/decisions/failures.md). Only what concerns all shards ends the process.
"""

import asyncio
import gc
import json
import os
import re
import socket
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn
from uuid import uuid4

import asyncpg
import structlog
from aiokafka.errors import KafkaError

from services.allocation import metrics, state
from services.allocation.clock_guard import ClockGuard
from services.allocation.failures import (
    AccountTakenError,
    BatchFailedError,
    Failures,
    PlaceTakenError,
    RecordFailedError,
    ShardStoppedError,
    said,
)
from services.allocation.kafka import open_consumer
from services.allocation.lag import ShardLag, watch_lag
from services.allocation.lease import (
    RELEASED_CHANNEL,
    Lease,
    LeaseLostError,
    Peers,
    again,
    announce,
    claim,
    end_sessions,
    owned,
    release,
    wait_for_no_disk,
    withdraw,
)
from services.allocation.memory import CampaignMemory, Watch
from services.allocation.outcomes import publish_outcomes
from services.allocation.standing import Standing, report
from services.allocation.trying import again_and_again
from services.allocation.worker import OffsetsDoNotFitError, OtherTopicsError, Worker
from shared.contracts.signatures import NO_KEYS, CommandKeys
from shared.ledger.lookup import plain_types
from shared.ledger.replay import ReplayDiffersError
from shared.rules.policy import STANDARD, Policy, policy_of
from shared.runtime.clock import Clock
from shared.runtime.errors import CannotGoOnError
from shared.runtime.health import Health, serving_health
from shared.runtime.incarnation import incarnation, wait_for_another_incarnation
from shared.runtime.kafka import CONSUMED, create_producer, stop_client
from shared.runtime.postgres import connect, create_pool, is_lost
from shared.runtime.reachability import watch_broker_reachability, watch_reachability
from shared.runtime.retries import GrowingPause
from shared.runtime.settings import BadSettingError, Settings
from shared.runtime.stopping import close_within, first_to_end, in_background
from shared.runtime.topics import ensure_topics

log = structlog.get_logger()

ROLE = "drawdown_allocation"
HEARTBEAT_SECONDS = 0.25
# Of the ten seconds that a process has to end: for batches under way and the release of their shards, then for the
# tasks whose connections were closed.
FINISH_SECONDS = 6.0
CUT_OFF_SECONDS = 1.0
MOST_FRUITLESS_TRIES = 5
# Connections that read outcomes, for all shards: a look takes a millisecond, and waits no longer than this.
MOST_PUBLISHING = 2
STATEMENT_SECONDS, LOCK_SECONDS = 10, 1
_POLICY_VERSION = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_FAILING = {"waiting": "waits", "stopped": "is stopped"}

# Publishes the outcomes of a shard, until cancelled, when the event says so.
Publish = Callable[[int, asyncio.Event], Coroutine[Any, Any, NoReturn]]


def read_policy(path: Path | None) -> Policy:
    """The waterfall policy of a JSON file, or the built-in one. Raises BadSettingError for a file that holds none."""
    if path is None:
        return STANDARD
    try:
        policy = policy_of(json.loads(path.read_bytes(), object_pairs_hook=_each_once))
    except (ValueError, RecursionError) as error:
        raise BadSettingError(f"DRAWDOWN_POLICY_FILE: {path} holds no policy: {error}") from error
    if not _POLICY_VERSION.fullmatch(policy.version):
        raise BadSettingError(
            f"DRAWDOWN_POLICY_FILE: {path}: the version should be of 1 to 64 letters, digits, and any of . _ : -"
        )
    return policy


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names differ: of two the last would hold, and whoever reads the file may see the first."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name stands in it twice")
    return fields


def read_command_keys(path: Path | None) -> CommandKeys:
    """The keys with which the API signs, of a PEM file; none: as far as anybody knows, all has come by the topic.

    Raises BadSettingError for a file that holds none.
    """
    if path is None:
        log.warning(
            "the API's commands are taken for the topic's: DRAWDOWN_COMMAND_KEYS_FILE names no keys to tell them by"
        )
        return NO_KEYS
    try:
        return CommandKeys(path.read_bytes())
    except ValueError as error:
        raise BadSettingError(f"DRAWDOWN_COMMAND_KEYS_FILE: {path}: {error}") from error


async def run(settings: Settings) -> None:
    """Write shards until cancelled. Raises what must end the process."""
    # The state lives as long as the process, and batches hold no cycles. Looking for some cost 5 % of `make bench`.
    gc.set_threshold(1_000_000, 50, 100)
    async with serving_health(settings) as health:
        tries = 0
        while True:
            allocation = Allocation(settings, health)
            try:
                await allocation.run()
            except Exception as error:
                if not is_lost(error):
                    raise
                # Away, or cut off by whoever took our shards for dead: memory is dropped and we take part anew.
                if _is_asked_to_end():
                    raise asyncio.CancelledError from error
                tries = 0 if allocation.has_written else tries + 1
                if tries >= MOST_FRUITLESS_TRIES:
                    raise
                log.warning("the database was lost: starting again", error=f"{type(error).__name__}: {error}")


def _is_asked_to_end() -> bool:
    """Whether a cancellation came, even if an error of the database has taken its place meanwhile."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _tell_of(shard: int, error: Exception, seconds: float) -> None:
    """Log why a shard is not written. What a sentence tells needs no stack trace."""
    foreseen = (CannotGoOnError, ReplayDiffersError, AccountTakenError, PlaceTakenError, KafkaError)
    is_foreseen = is_lost(error) or isinstance(error, foreseen)
    log.error(
        "the shard cannot be written: it is loaded again; other shards go on",
        shard=shard,
        again_in_seconds=seconds,
        error=said(error),
        exc_info=None if is_foreseen else error,
    )


class Allocation:
    """One allocation process."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self._settings = settings
        self._database = health.reachability("the database")
        self._broker = health.reachability("the broker")
        health.work = self._readiness
        self._policy = read_policy(settings.policy_file)
        self._keys = read_command_keys(settings.command_keys_file)
        self._clock = Clock(settings)
        self._guard = ClockGuard(self._clock)
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self._workers: dict[int, Worker] = {}
        self._tasks: dict[int, asyncio.Task[Lease]] = {}
        self._leases: dict[int, Lease] = {}
        self._standings: dict[int, Standing] = {}
        self._is_ending = False
        self._released = asyncio.Event()
        self._has_written = False
        self._incarnation = ""
        self._lags: dict[int, ShardLag] = {}
        self._connections: set[asyncpg.Connection] = set()
        self._publishing: asyncpg.Pool | None = None
        self._peers = Peers()
        self._memory, self._memory_watch = CampaignMemory(settings.campaigns_in_memory), Watch()
        # How many shards nobody else is due to write; unknown before the first heartbeat.
        self._due: int | None = None

    async def run(self) -> None:
        """Take part until cancelled; then give up the shards in good order."""
        async with AsyncExitStack() as stack:
            keeper = await self._connect(stack, "lease")
            await wait_for_no_disk(keeper)
            await self._record_policy(keeper)
            await ensure_topics(self._settings)
            self._incarnation = await incarnation(self._settings, *CONSUMED)
            producer = await create_producer(self._settings, linger_ms=0)
            stack.push_async_callback(lambda: close_within(stop_client(producer)))
            database = await create_pool(
                self._settings,
                ROLE,
                application_name=self._name("outcomes"),
                max_size=MOST_PUBLISHING,
                statement_timeout_seconds=STATEMENT_SECONDS,
                lock_timeout_seconds=LOCK_SECONDS,
            )
            self._publishing = database
            stack.push_async_callback(lambda: close_within(database.close()))
            watching = await self._connect(stack, "watch", plain=False)
            await keeper.add_listener("forwarded", self._on_forwarded)
            await keeper.add_listener(RELEASED_CHANNEL, self._on_released)
            try:
                await first_to_end(
                    self._keep_shards(keeper, partial(publish_outcomes, database, producer)),
                    again_and_again("reporting how the shards stand", self._report),
                    self._watch_kafka(),
                    # Not over the keeper's connection, which waits where a shard is released.
                    watch_reachability(self._database, lambda: self._guard.ask(watching)),
                    watch_broker_reachability(self._broker, producer),
                    seconds=CUT_OFF_SECONDS,
                )
            finally:
                await self._give_up_all(keeper)

    @property
    def has_written(self) -> bool:
        """Did it ever get as far as owning a shard?"""
        return self._has_written

    def _readiness(self) -> tuple[bool, str]:
        if self._due is None:
            return False, "has not yet taken part in sharing out the shards"
        failing = [
            f"shard {shard} {_FAILING[standing.state]}: {standing.detail}"
            for shard, standing in sorted(self._standings.items())
            if standing.state in _FAILING
        ]
        if failing:
            return False, "; ".join(failing)
        if self._guard.problem:
            return False, self._guard.problem
        loading = sorted(self._tasks.keys() - self._workers.keys())
        if loading:
            return False, f"loading the shards {loading}"
        stuck = sorted(shard for shard, lag in self._lags.items() if lag.is_stuck(monotonic()))
        if stuck:
            return False, f"records wait and none is decided in the shards {stuck}"
        if len(self._workers) < self._due:
            return False, f"waiting for {self._due - len(self._workers)} shards whose last owner has not let go yet"
        if not self._workers:
            return True, "standing by: other processes write every shard"
        waiting = sum(lag.records for lag in self._lags.values())
        taken = self._memory_watch.look()
        noted = [f"; shard {shard} is {said.detail}" for shard, said in sorted(self._standings.items()) if said.detail]
        return True, f"writing the shards {sorted(self._workers)}, {waiting} records wait, {taken}{''.join(noted)}"

    def _on_forwarded(self, _connection: Any, _pid: int, _channel: str, shard: Any) -> None:
        for number, worker in self._workers.items():
            if shard == str(number):  # Any login may notify, of whatever it likes.
                worker.wake()

    def _on_released(self, *_: object) -> None:
        self._released.set()

    async def _connect(self, stack: AsyncExitStack, what: str, plain: bool = True) -> asyncpg.Connection:
        connection = await connect(self._settings, ROLE, self._name(what))
        self._connections.add(connection)
        stack.push_async_callback(self._close, connection)
        if plain:
            await plain_types(connection)
            # Look-ups by id must use their index from the first batch on, before statistics know the tables.
            await connection.execute("SET enable_seqscan = off; SET jit = off")
        return connection

    def _name(self, what: str) -> str:
        return f"drawdown allocation {what} {self._owner[-8:]}"

    async def _close(self, connection: asyncpg.Connection) -> None:
        self._connections.discard(connection)
        await close_within(connection.close())

    async def _record_policy(self, connection: asyncpg.Connection) -> None:
        content = self._policy.content()
        await connection.execute(
            "INSERT INTO ledger.policies VALUES ($1, $2) ON CONFLICT DO NOTHING", self._policy.version, content
        )
        kept = await connection.fetchval("SELECT content FROM ledger.policies WHERE version = $1", content["version"])
        if kept != content:
            raise BadSettingError(
                f"DRAWDOWN_POLICY_FILE: the ledger knows another policy {self._policy.version!r}:"
                " a changed policy needs a new version"
            )

    async def _keep_shards(self, keeper: asyncpg.Connection, publish: Publish) -> None:
        """Renew the leases, take free shards, give up those that are others' due. Raises what ends a worker badly."""
        while True:
            self._released.clear()
            self._peers.look(await announce(keeper, self._owner), monotonic())
            mine = await owned(keeper, self._owner)
            for shard, task in self._tasks.items():
                if mine.get(shard) != self._leases[shard].epoch and not task.cancelling():
                    task.cancel()
            alive = max(1, self._peers.alive)
            fair = -(-self._settings.shards // alive)
            self._due = max(0, self._settings.shards - fair * (alive - 1))
            if len(self._tasks) > fair and self._workers:
                self._workers[max(self._workers)].stop()
            elif len(self._tasks) < fair:
                stale = self._peers.stale
                await end_sessions(keeper, stale)
                for lease in await claim(keeper, self._owner, fair - len(self._tasks), stale, self._tasks.keys()):
                    await self._start(lease, publish)
            await self._heartbeat()
            await self._reap(keeper)

    async def _heartbeat(self) -> None:
        """Wait until the leases are due for renewal, or a worker has ended, or somebody has released a shard.

        A shard that is handed over stands still until its heir has loaded it: neither waits for the next heartbeat.
        """
        released = asyncio.create_task(self._released.wait())
        try:
            await asyncio.wait(
                {released, *self._tasks.values()}, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            released.cancel()

    async def _start(self, lease: Lease, publish: Publish) -> None:
        """Begin to write a shard; a task that lost it before has to end first."""
        before = self._tasks.pop(lease.shard, None)
        if before is not None:
            before.cancel()
            await asyncio.wait({before})
        self._leases[lease.shard] = lease
        standing = self._standings[lease.shard] = Standing()
        holding = self._hold(lease, standing, publish)
        self._tasks[lease.shard] = asyncio.create_task(holding, name=f"shard {lease.shard}")

    async def _watch_kafka(self) -> None:
        """End the process when the topics are not those any more whose offsets the ledger holds.

        Until that is noticed a worker may go on in a new topic that is long enough already. Nothing is lost by it:
        what it charges is in the ledger under its event id, and whoever adopts the new topic reads it from offset 0.
        """
        now = await wait_for_another_incarnation(self._settings, self._incarnation, *CONSUMED)
        raise OffsetsDoNotFitError(
            f"Kafka {self._incarnation!r}, whose offsets the ledger holds, has become {now!r}: if the old topics are"
            " gone for good, 'drawdown offsets adopt' starts with the new ones from offset 0"
        )

    async def _hold(self, lease: Lease, standing: Standing, publish: Publish) -> Lease:
        """Write one shard and publish its outcomes until it is given up; answers and raises as `_keep_writing`."""
        written = asyncio.Event()
        async with in_background(publish(lease.shard, written)):
            return await self._keep_writing(lease, standing, written)

    async def _keep_writing(self, lease: Lease, standing: Standing, written: asyncio.Event) -> Lease:
        """Write one shard until it is given up, again after whatever fails in it; answer the lease.

        Raises LeaseLostError when another process has the shard, and what concerns all shards.
        """
        failures, pause = Failures(lease.shard), GrowingPause()
        while True:
            try:
                return await self._write(lease, failures, standing, written)
            except (LeaseLostError, BadSettingError, OtherTopicsError):
                raise
            except ShardStoppedError as error:
                await self._stand_still(lease.shard, str(error), standing)
            except (RecordFailedError, BatchFailedError) as error:
                metrics.RESTARTS.labels(lease.shard).inc()
                if self._is_ending:
                    log.warning("the last batch is undone", shard=lease.shard, error=said(error.__cause__ or error))
                    return self._leases[lease.shard]
                failures.learn(error)
                standing.say("loading")
            except Exception as error:
                metrics.RESTARTS.labels(lease.shard).inc()
                if self._is_ending:
                    # Raised, it would stand in the place of why the process ends, and of what failed in no shard.
                    log.warning("a shard failed as it was given up", shard=lease.shard, error=said(error))
                    return self._leases[lease.shard]
                seconds = pause.next(self._leases[lease.shard].reached())
                _tell_of(lease.shard, error, seconds)
                standing.say("waiting", said(error))
                await asyncio.sleep(seconds)

    async def _write(self, lease: Lease, failures: Failures, standing: Standing, written: asyncio.Event) -> Lease:
        """Write one shard, from what the ledger says of it now, until it is given up or something fails."""
        async with AsyncExitStack() as stack:
            reading = await self._connect(stack, f"reads {lease.shard}")
            writing = await self._connect(stack, f"writes {lease.shard}")
            lease = self._leases[lease.shard] = await again(reading, lease)
            consumer = await open_consumer(self._settings, lease, self._incarnation)
            stack.push_async_callback(lambda: close_within(stop_client(consumer)))
            rules = await state.load(
                reading, lease, self._policy, self._settings.deduplication_days, self._memory.part(len(self._tasks))
            )
            stack.push_async_callback(state.forget, rules)
            stack.callback(self._memory.hold(lease.shard, rules.campaigns))
            gc.freeze()
            failures.begin_again()
            worker = Worker(
                lease,
                rules,
                self._policy,
                self._settings.shards,
                consumer,
                reading,
                writing,
                self._clock,
                self._guard,
                written,
                failures,
                standing,
                self._memory,
                self._keys,
            )
            self._workers[lease.shard] = worker
            self._has_written = True
            try:
                async with in_background(watch_lag(worker, self._lags)):
                    await worker.run()
            finally:
                del self._workers[lease.shard]
        return lease

    async def _report(self) -> None:
        async with AsyncExitStack() as stack:
            connection = await self._connect(stack, "reports", plain=False)
            await report(connection, self._owner, self._standings, self._lags)

    async def _stand_still(self, shard: int, why: str, standing: Standing) -> None:
        """Keep the shard from everybody, until this process ends: others would fail at the same records."""
        log.error(why, shard=shard)
        standing.say("stopped", why)
        metrics.STOPPED.labels(shard).set(1)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            metrics.STOPPED.labels(shard).set(0)

    async def _reap(self, keeper: asyncpg.Connection) -> None:
        """Release the shards whose workers have ended well; raise what ended one badly."""
        for shard, task in list(self._tasks.items()):
            if not task.done():
                continue
            lease = self._leases.pop(shard)
            del self._tasks[shard], self._standings[shard]
            self._lags.pop(shard, None)
            metrics.forget(shard)
            try:
                await task
            except (LeaseLostError, asyncio.CancelledError) as lost:
                if not (self._is_ending and task.cancelled()):
                    log.warning("shard lost", shard=shard, error=str(lost))
                    continue
            await release(keeper, lease)

    async def _give_up_all(self, keeper: asyncpg.Connection) -> None:
        """Be counted no more, finish what is under way and release the shards; cut off what a server holds up."""
        self._is_ending = True
        for shard, task in self._tasks.items():
            worker = self._workers.get(shard)
            if worker is not None:
                worker.stop()
            else:
                task.cancel()
        try:
            async with asyncio.timeout(FINISH_SECONDS):
                await self._release_all(keeper)
        except TimeoutError:
            log.warning("shards not given up in order: what is being committed is cut off", shards=sorted(self._tasks))
            await self._cut_off()

    async def _release_all(self, keeper: asyncpg.Connection) -> None:
        """Release each shard as soon as its worker has ended. Raises what ended one badly, once all are released."""
        failure: Exception | None = None
        try:
            await withdraw(keeper, self._owner)  # First: a shard is then others' due as soon as it is released.
        except Exception as error:
            failure = error
        while self._tasks:
            await asyncio.wait(self._tasks.values(), return_when=asyncio.FIRST_COMPLETED)
            try:
                await self._reap(keeper)
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure

    async def _cut_off(self) -> None:
        for connection in self._connections:
            connection.terminate()
        if self._publishing is not None:
            self._publishing.terminate()
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=CUT_OFF_SECONDS)
        for shard in self._tasks:
            metrics.forget(shard)
