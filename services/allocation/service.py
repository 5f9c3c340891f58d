"""The allocation process: takes shards, writes each in a worker of its own, releases some when other processes join.

Processes share the shards by leases in PostgreSQL, not by a consumer group (docs/decisions/leases.md). A failure in a
worker ends only that worker. Its memory may be ahead of the ledger, so the shard is loaded again while the
other shards continue (docs/decisions/failures.md). Only a failure that concerns all shards ends the process.
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

from services.allocation import metrics
from services.allocation.clock_guard import ClockGuard
from services.allocation.failures import (
    AccountTakenError,
    BatchFailedError,
    Failures,
    PlaceTakenError,
    RecordFailedError,
    ShardStoppedError,
    describe,
)
from services.allocation.lag import ShardLag, watch_lag, watch_unwritten
from services.allocation.lease import (
    RELEASED_CHANNEL,
    Lease,
    LeaseLostError,
    Peers,
    announce,
    claim,
    end_sessions,
    owned,
    release,
    reload_lease,
    wait_for_no_disk,
    withdraw,
)
from services.allocation.memory import snapshots
from services.allocation.memory.limits import CampaignMemory, MemoryWatch
from services.allocation.records.consuming import OffsetsDoNotFitError, OtherTopicsError, open_consumer
from services.allocation.retrying import retry_forever
from services.allocation.shard_states import ShardState, report
from services.allocation.worker import Connections, OfTheProcess, Worker
from services.allocation.writing.outcome_publishing import publish_outcomes
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
from shared.runtime.roles import ALLOCATION_ROLE
from shared.runtime.settings import BadSettingError, Settings
from shared.runtime.stopping import close_within, first_to_end, in_background, is_asked_to_end, within
from shared.runtime.topics import ensure_topics

log = structlog.get_logger()

HEARTBEAT_SECONDS = 0.25
# A process has ten seconds to end: this long to finish batches and release shards, then this long for the tasks whose
# connections were cut.
FINISH_SECONDS = 6.0
CUT_OFF_SECONDS = 1.0
MOST_FRUITLESS_TRIES = 5
# All shards share these connections to read outcomes, because a read takes a millisecond.
MOST_PUBLISHING = 2
STATEMENT_SECONDS, LOCK_SECONDS = 10, 1  # the longest that such a read may take, and may wait for a lock
_POLICY_VERSION = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_FAILING = {"waiting": "waits", "stopped": "is stopped"}

# Publishes the outcomes of a shard whenever the event is set, until cancelled.
Publish = Callable[[int, asyncio.Event], Coroutine[Any, Any, NoReturn]]


def read_policy(path: Path | None) -> Policy:
    """Return the waterfall policy in a JSON file; without a file, the built-in one.

    Raises BadSettingError if the file does not hold a policy.
    """
    if path is None:
        return STANDARD
    try:
        policy = policy_of(json.loads(path.read_bytes(), object_pairs_hook=_each_once))
    except (ValueError, RecursionError) as error:
        raise BadSettingError(f"DRAWDOWN_POLICY_FILE: {path} holds no policy: {error}") from error
    if not _POLICY_VERSION.fullmatch(policy.version):
        raise BadSettingError(
            f"DRAWDOWN_POLICY_FILE: {path}: the version should be 1 to 64 characters: letters, digits and . _ : -"
        )
    return policy


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raises ValueError if a name is in it twice, because a person may read the wrong one."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name occurs in it twice")
    return fields


def read_command_keys(path: Path | None) -> CommandKeys:
    """Return the keys with which the API signs commands, from a PEM file.

    Without a file there are no keys, and every command counts as sent to the topic directly. Raises BadSettingError if
    the file does not hold keys.
    """
    if path is None:
        log.warning(
            "commands of the API look like those sent to the topic directly:"
            " set DRAWDOWN_COMMAND_KEYS_FILE to the API's public keys to tell them apart"
        )
        return NO_KEYS
    try:
        return CommandKeys(path.read_bytes())
    except ValueError as error:
        raise BadSettingError(f"DRAWDOWN_COMMAND_KEYS_FILE: {path}: {error}") from error


async def run(settings: Settings) -> None:
    """Write shards until cancelled. Raises any error that must end the process."""
    # The state lives as long as the process, and batches hold no cycles. Searching for cycles cost 5 % of `make bench`.
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
                # The database is unavailable, or another process took this one for dead and closed its sessions.
                # Drop the memory and take part again.
                if is_asked_to_end():
                    raise asyncio.CancelledError from error
                tries = 0 if allocation.has_written else tries + 1
                if tries >= MOST_FRUITLESS_TRIES:
                    raise
                log.warning(
                    "the connection to the database was lost: starting again", error=f"{type(error).__name__}: {error}"
                )


def _tell_of(shard: int, error: Exception, seconds: float) -> None:
    """Log why a shard is not written, with a stack trace only if the error is unexpected."""
    foreseen = (CannotGoOnError, ReplayDiffersError, AccountTakenError, PlaceTakenError, KafkaError)
    is_foreseen = is_lost(error) or isinstance(error, foreseen)
    log.error(
        "the shard cannot be written: it is loaded again; the other shards continue",
        shard=shard,
        again_in_seconds=seconds,
        error=describe(error),
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
        self._clock = Clock(settings)
        self._guard = ClockGuard(self._clock)
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self._workers: dict[int, Worker] = {}
        self._tasks: dict[int, asyncio.Task[Lease]] = {}
        self._leases: dict[int, Lease] = {}
        self._states: dict[int, ShardState] = {}
        self._is_ending = False
        self._released = asyncio.Event()
        self._has_written = False
        self._incarnation = ""
        self._lags: dict[int, ShardLag] = {}
        self._connections: set[asyncpg.Connection] = set()
        self._publishing: asyncpg.Pool | None = None
        self._peers = Peers()
        self._memory, self._memory_watch = CampaignMemory(settings.campaigns_in_memory), MemoryWatch()
        self._of_the_process = OfTheProcess(
            self._policy,
            settings.shards,
            self._clock,
            self._guard,
            self._memory,
            read_command_keys(settings.command_keys_file),
        )
        # How many shards this process should write; None until the first heartbeat.
        self._due: int | None = None

    async def run(self) -> None:
        """Take part until cancelled, then finish the batches under way and release the shards."""
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
                ALLOCATION_ROLE,
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
                    retry_forever("reporting the states of the shards", self._report),
                    watch_unwritten(self._settings, self._unwritten, self._lags),
                    self._watch_kafka(),
                    # The keeper's connection may be waiting for a release, so this needs one of its own.
                    watch_reachability(self._database, lambda: self._guard.ask(watching)),
                    watch_broker_reachability(self._broker, producer),
                    seconds=CUT_OFF_SECONDS,
                )
            finally:
                await self._give_up_all(keeper)

    @property
    def has_written(self) -> bool:
        """Return whether this process has ever loaded a shard and begun to write it."""
        return self._has_written

    def _readiness(self) -> tuple[bool, str]:
        if self._due is None:
            return False, "starting: it has not yet asked which shards it should write"
        failing = [
            f"shard {shard} {_FAILING[state.name]}: {state.detail}"
            for shard, state in sorted(self._states.items())
            if state.name in _FAILING
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
            return False, f"records wait but none is decided in the shards {stuck}"
        if len(self._workers) < self._due:
            return False, f"waiting for {self._due - len(self._workers)} shards that another process has not released"
        if not self._workers:
            return True, "standing by: other processes write every shard"
        waiting = sum(lag.records for lag in self._lags.values())
        taken = self._memory_watch.look()
        noted = [f"; shard {shard} is {state.detail}" for shard, state in sorted(self._states.items()) if state.detail]
        return True, f"writing the shards {sorted(self._workers)}, {waiting} records wait, {taken}{''.join(noted)}"

    def _unwritten(self) -> dict[int, Lease]:
        """Return the leases of the shards that this process holds and does not write at the moment."""
        return {shard: lease for shard, lease in self._leases.items() if shard not in self._workers}

    def _on_forwarded(self, _connection: Any, _pid: int, _channel: str, shard: Any) -> None:
        for number, worker in self._workers.items():
            if shard == str(number):  # Any login may notify with any text, so the text is compared, not parsed.
                worker.wake()

    def _on_released(self, *_: object) -> None:
        self._released.set()

    async def _connect(self, stack: AsyncExitStack, what: str, plain: bool = True) -> asyncpg.Connection:
        connection = await connect(self._settings, ALLOCATION_ROLE, self._name(what))
        self._connections.add(connection)
        stack.push_async_callback(self._close, connection)
        if plain:
            await plain_types(connection)
            # Look-ups by id must use their index from the first batch on, when the tables have no statistics yet.
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
                f"DRAWDOWN_POLICY_FILE: the ledger holds another policy of version {self._policy.version!r}:"
                " give a changed policy a new version"
            )

    async def _keep_shards(self, keeper: asyncpg.Connection, publish: Publish) -> None:
        """Renew the leases, take free shards and release the surplus when other processes join.

        Raises the error of a worker if it concerns all shards.
        """
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
        """Wait until the leases are due for renewal, a worker has ended, or another process has released a shard.

        Nobody writes a shard between two owners, so neither of them waits for its next heartbeat.
        """
        released = asyncio.create_task(self._released.wait())
        try:
            await asyncio.wait(
                {released, *self._tasks.values()}, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            released.cancel()

    async def _start(self, lease: Lease, publish: Publish) -> None:
        """Begin to write a shard, once the task that lost it earlier has ended."""
        before = self._tasks.pop(lease.shard, None)
        if before is not None:
            before.cancel()
            await asyncio.wait({before})
        self._leases[lease.shard] = lease
        state = self._states[lease.shard] = ShardState()
        holding = self._hold(lease, state, publish)
        self._tasks[lease.shard] = asyncio.create_task(holding, name=f"shard {lease.shard}")

    async def _watch_kafka(self) -> None:
        """Raise OffsetsDoNotFitError as soon as the topics are not those whose offsets the ledger holds.

        Until then a worker may continue in a new topic, if that is long enough. Nothing is lost: its charges
        are in the ledger under their event ids, and `offsets adopt` reads the new topic from its beginning.
        """
        now = await wait_for_another_incarnation(self._settings, self._incarnation, *CONSUMED)
        raise OffsetsDoNotFitError(
            f"Kafka {self._incarnation!r}, whose offsets the ledger holds, has become {now!r}: if the old topics are"
            " gone for good, 'drawdown offsets adopt' reads the new ones from their beginning"
        )

    async def _hold(self, lease: Lease, state: ShardState, publish: Publish) -> Lease:
        """Write one shard and publish its outcomes until it is released. Returns and raises like `_keep_writing`."""
        written = asyncio.Event()
        async with in_background(publish(lease.shard, written)):
            return await self._keep_writing(lease, state, written)

    async def _keep_writing(self, lease: Lease, state: ShardState, written: asyncio.Event) -> Lease:
        """Write one shard until it is released, loading it again after each failure. Returns its lease.

        Raises LeaseLostError if another process owns the shard, and any error that concerns all shards.
        """
        failures, pause = Failures(lease.shard), GrowingPause()
        while True:
            try:
                return await self._write(lease, failures, state, written)
            except (LeaseLostError, BadSettingError, OtherTopicsError):
                raise
            except ShardStoppedError as error:
                await self._stand_still(lease.shard, str(error), state)
            except (RecordFailedError, BatchFailedError) as error:
                metrics.RESTARTS.labels(lease.shard).inc()
                if self._is_ending:
                    log.warning("the last batch is undone", shard=lease.shard, error=describe(error.__cause__ or error))
                    return self._leases[lease.shard]
                failures.learn(error)
                state.set("loading")
            except Exception as error:
                metrics.RESTARTS.labels(lease.shard).inc()
                if self._is_ending:
                    # Raising this error would hide the reason why the process ends.
                    log.warning("a shard failed while it was being released", shard=lease.shard, error=describe(error))
                    return self._leases[lease.shard]
                seconds = pause.next(self._leases[lease.shard].reached())
                _tell_of(lease.shard, error, seconds)
                state.set("waiting", describe(error))
                await asyncio.sleep(seconds)

    async def _write(self, lease: Lease, failures: Failures, state: ShardState, written: asyncio.Event) -> Lease:
        """Load one shard from the ledger and write it until it is released or something fails."""
        async with AsyncExitStack() as stack:
            reading = await self._connect(stack, f"reads {lease.shard}")
            writing = await self._connect(stack, f"writes {lease.shard}")
            lease = self._leases[lease.shard] = await reload_lease(reading, lease)
            consumer = await open_consumer(self._settings, lease, self._incarnation)
            stack.push_async_callback(lambda: close_within(stop_client(consumer)))
            loaded = await snapshots.load(
                reading, lease, self._policy, self._settings.deduplication_days, self._memory.part(len(self._tasks))
            )
            stack.push_async_callback(snapshots.forget, loaded.rules)
            stack.callback(self._memory.hold(lease.shard, loaded.rules.campaigns))
            gc.freeze()
            failures.begin_again()
            connections = Connections(consumer, reading, writing)
            worker = Worker(lease, loaded, self._of_the_process, connections, written, failures, state)
            self._workers[lease.shard] = worker
            self._has_written = True
            try:
                async with in_background(watch_lag(worker, self._lags)):
                    await worker.run()
            finally:
                del self._workers[lease.shard]
                self._lags.setdefault(lease.shard, ShardLag()).note_fetched(worker.fetched)
        return lease

    async def _report(self) -> None:
        async with AsyncExitStack() as stack:
            connection = await self._connect(stack, "reports", plain=False)
            await report(connection, self._owner, self._states, self._lags)

    async def _stand_still(self, shard: int, why: str, state: ShardState) -> None:
        """Hold the shard without writing it until this process ends: another owner would fail at the same records."""
        log.error(why, shard=shard)
        state.set("stopped", why)
        metrics.STOPPED.labels(shard).set(1)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            metrics.STOPPED.labels(shard).set(0)

    async def _reap(self, keeper: asyncpg.Connection) -> None:
        """Release the shards whose workers have ended without an error. Raises the error of one that failed."""
        for shard, task in list(self._tasks.items()):
            if not task.done():
                continue
            lease = self._leases.pop(shard)
            del self._tasks[shard], self._states[shard]
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
        """Withdraw from the count, finish the batches under way and release the shards.

        After `FINISH_SECONDS` the connections are cut, because a server may not answer.
        """
        self._is_ending = True
        for shard, task in self._tasks.items():
            worker = self._workers.get(shard)
            if worker is not None:
                worker.stop()
            else:
                task.cancel()
        try:
            await within(FINISH_SECONDS, self._release_all(keeper))
        except TimeoutError:
            log.warning("shards were not released in time: their connections are cut", shards=sorted(self._tasks))
            await self._cut_off()

    async def _release_all(self, keeper: asyncpg.Connection) -> None:
        """Release each shard as soon as its worker has ended. Raises the first error once all are released."""
        failure: Exception | None = None
        try:
            # First, so that the other processes count a shard as theirs as soon as it is released.
            await withdraw(keeper, self._owner)
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
