"""Loading the state of a shard from a snapshot and the entries after it, and writing snapshots.

`snapshot_pieces` says what is kept. A large state takes seconds to write and to read. Threads do this piece by piece
and give way to the event loop, which writes other shards and renews leases meanwhile.
"""

import asyncio
import json
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Final, NamedTuple

import asyncpg
import structlog
from pydantic_core import to_json

from services.allocation.lease import Lease
from services.allocation.memory import snapshot_pieces
from services.allocation.memory.limits import SHORT, memory_limit, resident_bytes
from services.allocation.writing.append import keep_resting
from shared.ledger.lookup import resting_rows
from shared.ledger.merkle import CompactRange
from shared.ledger.replay import Redecider, StoredBatch, newer_rules
from shared.ledger.zones import UNRECORDED, record_zones, recorded_zones
from shared.rules.policy import Policy
from shared.rules.shard import Shard
from shared.rules.versions import CURRENT
from shared.runtime.errors import CannotGoOnError
from shared.runtime.postgres import is_unavailable

log = structlog.get_logger()

# The process that takes over a shard decides the entries after the last snapshot again, and the shard stands still
# meanwhile. To decide an entry costs about eight times as much as to keep an object. But a snapshot of a busy shard
# delays pauses, so there are few of those.
FEWEST_ENTRIES_BETWEEN = 20_000
ENTRIES_PER_OBJECT = 10
_ENTRIES_PER_OBJECT_IF_IDLE: Final = 1 / 8
_FEWEST_ENTRIES_IF_IDLE: Final = 2_500
# A thread works this long, then sleeps this long, so that other threads get the interpreter at once.
WORK_SECONDS: Final = 0.005
REST_SECONDS: Final = 0.0002
_READ_BYTES: Final = 64 * 1024
_PIECES_OF_A_LINE: Final = 50
# No line of a snapshot is longer: fifty grants that name a thousand campaigns each take three megabytes.
_LONGEST_LINE_BYTES: Final = 16 * 1024 * 1024
# Nor has one more values: fifty grants name four hundred thousand campaigns at most. A forged line of empty objects, or
# of lists within lists, would take fifty times its bytes.
_MOST_VALUES: Final = 500_000
# The memory of the process is measured once in this many bytes, because measuring costs as much as fifty pieces.
_LOOKED_AFTER_BYTES: Final = 1024 * 1024
_FORGOTTEN_AT_ONCE: Final = 100
_COLLECTED_AT_ONCE: Final = 2_000


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot as the ledger keeps it: compressed lines of JSON. `objects` is the number of pieces in it."""

    position: int
    format: int
    state: bytes
    objects: int


class Loaded(NamedTuple):
    """The state of a shard, and the position of the snapshot that it was loaded from, 0 if from none."""

    rules: Shard
    kept_at: int


class _Loading(Redecider):
    """Decides the entries after the snapshot again, within the memory that the process has for campaigns."""

    async def rest(self, batch: StoredBatch) -> None:
        await keep_resting(self.connection, self.shard, await resting_rows(self.rules.let_rest(), batch.last))


async def load(
    connection: asyncpg.Connection,
    lease: Lease,
    policy: Policy,
    deduplication_days: int,
    most_campaigns: int | None = None,
) -> Loaded:
    """Return the state at the lease's position. Its `tables` are the recorded time zones.

    Raises:
        ReplayDiffersError: the rules decide something else than the ledger holds.
        CannotGoOnError: the ledger was written by newer rules than those of this release.
        ValueError: the ledger does not end where the lease says.

    """
    await _require_known_rules(connection, lease)
    kept = await connection.fetchrow(
        "SELECT position, state FROM ledger.snapshots WHERE shard = $1 AND format = $2 AND position <= $3",
        lease.shard,
        snapshot_pieces.FORMAT,
        lease.position,
    )
    # No window while deciding again: a charged spend was young enough, whatever the window was then.
    rules = Shard(policy, deduplication_days=None)
    if kept is not None:
        try:
            return await _load(connection, lease, rules, deduplication_days, most_campaigns, kept)
        except Exception as error:
            if is_unavailable(error):
                raise
            log.error(
                "a snapshot could not be used: all entries of the shard are decided again, which may take a long time",
                shard=lease.shard,
                error=repr(error),
            )
        await forget(rules)
        rules = Shard(policy, deduplication_days=None)
    return await _load(connection, lease, rules, deduplication_days, most_campaigns, None)


async def _load(
    connection: asyncpg.Connection,
    lease: Lease,
    rules: Shard,
    deduplication_days: int,
    most_campaigns: int | None,
    kept: asyncpg.Record | None,
) -> Loaded:
    tree = CompactRange()
    zones = await recorded_zones(connection, lease.shard, 0 if kept is None else kept["position"], lease.position)
    rules.tables |= zones
    if kept is not None:
        tree = await asyncio.to_thread(_restore, rules, kept["state"])
    start = tree.size
    rules.campaigns.most = most_campaigns
    await _Loading(connection, rules, lease.shard, tree, zones).run(start, lease.position)
    if (tree.size, tree.root()) != (lease.position, lease.tree.root()):
        raise ValueError(f"shard {lease.shard}: the lease is at {lease.position}, but the ledger ends at {tree.size}")
    if rules.zones.release == UNRECORDED:
        await _record_what_is_not(connection, rules)
    rules.set_window(deduplication_days)
    log.info("shard loaded", shard=lease.shard, snapshot=start, position=lease.position, epoch=lease.epoch)
    return Loaded(rules, start)


async def _require_known_rules(connection: asyncpg.Connection, lease: Lease) -> None:
    """Raise CannotGoOnError if the last batch has newer rules, because older ones after it could not be replayed."""
    last = await connection.fetchval(
        "SELECT rules_version FROM ledger.batches WHERE shard = $1 ORDER BY last_position DESC LIMIT 1", lease.shard
    )
    if last is not None and last > CURRENT:
        raise CannotGoOnError(f"shard {lease.shard}: {newer_rules(last)}")


async def _record_what_is_not(connection: asyncpg.Connection, rules: Shard) -> None:
    """Record the time zones that a shard uses as they are installed now, if its batches name no release."""
    used = rules.zones_used()
    if used:
        await record_zones(connection, UNRECORDED, used)
        log.info("time zones of the past recorded", zones=[name for name, _ in used])


async def dump(
    rules: Shard, tree: CompactRange, is_wanted: Callable[[], bool] = lambda: True
) -> asyncio.Task[Snapshot] | None:
    """Collect the state after the batch that `tree` ends with, and return a task that makes a snapshot of it.

    Decide nothing until this returns; the task shares nothing with the state. `is_wanted` is asked every few objects.
    Once it says no, this returns None at once.
    """
    pieces: list[Any] = [{"position": tree.size, "frontier": tree.frontier().hex()}]
    for piece in snapshot_pieces.dump(rules):
        pieces.append(piece)
        if len(pieces) % _COLLECTED_AT_ONCE == 0:
            await asyncio.sleep(0)
            if not is_wanted():
                return None
    return asyncio.create_task(asyncio.to_thread(_encode, pieces, tree.size))


def entries_between(objects: int, *, is_idle: bool) -> int:
    """Return after how many entries to write the next snapshot, so that snapshots cost little compared to entries."""
    if is_idle:
        return max(_FEWEST_ENTRIES_IF_IDLE, int(_ENTRIES_PER_OBJECT_IF_IDLE * objects))
    return max(FEWEST_ENTRIES_BETWEEN, ENTRIES_PER_OBJECT * objects)


def objects_in(rules: Shard) -> int:
    """Return how many accounts and campaigns a shard has in memory."""
    return len(rules.accounts) + sum(len(account.campaigns) for account in rules.accounts.values())


async def forget(rules: Shard) -> None:
    """Free a state that is no longer needed, a few objects at a time.

    Its objects refer to each other, and the garbage collector does not look at what `gc.freeze` has set apart.
    """
    objects: list[Any] = list(rules.accounts.values())
    for center in rules.business_centers.values():
        objects += [center, *center.grants.values()]
    vars(rules).clear()
    while objects:
        for thing in objects[-_FORGOTTEN_AT_ONCE:]:
            for name in type(thing).__slots__:
                if hasattr(thing, name):
                    delattr(thing, name)
        del objects[-_FORGOTTEN_AT_ONCE:]
        await asyncio.sleep(0)


def _encode(pieces: list[Any], position: int) -> Snapshot:
    compressor = zlib.compressobj(1)
    parts = [compressor.compress(to_json(line) + b"\n") for line in _restful(_in_lines(iter(pieces)))]
    return Snapshot(position, snapshot_pieces.FORMAT, b"".join([*parts, compressor.flush()]), len(pieces))


def _restore(rules: Shard, state: bytes) -> CompactRange:
    pieces = chain.from_iterable(_restful(json.loads(line) for line in _fitting(_lines(state))))
    head = next(pieces, None)
    if head is None:  # A StopIteration would never reach the task that awaits this thread.
        raise ValueError("the snapshot is empty")
    snapshot_pieces.load(rules, pieces)
    return CompactRange(head["position"], bytes.fromhex(head["frontier"]))


def _fitting(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the lines while there is memory, then raise ValueError: deciding again lets campaigns rest instead."""
    most = (memory_limit() or sys.maxsize) * SHORT
    unseen_bytes = _LOOKED_AFTER_BYTES
    for line in lines:
        unseen_bytes += len(line)
        if unseen_bytes > _LOOKED_AFTER_BYTES:
            unseen_bytes = 0
            if resident_bytes() > most:
                raise ValueError("the snapshot does not fit into the memory of this process")
        yield line


def _lines(state: bytes) -> Iterator[bytes]:
    """Yield the lines of a compressed text, of which only a part is decompressed at any time."""
    line = bytearray()
    for part in _unpacked(state):
        *whole, rest = part.split(b"\n")
        for end in whole:
            yield _bounded(bytes(line + end))
            line.clear()
        line += rest
        if len(line) > _LONGEST_LINE_BYTES:
            raise ValueError(f"a line of the snapshot has more than {_LONGEST_LINE_BYTES} bytes")
    if line:
        raise ValueError("the snapshot ends within a line")


def _bounded(line: bytes) -> bytes:
    if sum(map(line.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        raise ValueError(f"a line of the snapshot has more than {_MOST_VALUES} values")
    return line


def _unpacked(state: bytes) -> Iterator[bytes]:
    unpacking = zlib.decompressobj()
    for start in range(0, len(state), _READ_BYTES):
        packed = state[start : start + _READ_BYTES]
        while packed:
            yield unpacking.decompress(packed, _READ_BYTES)
            packed = unpacking.unconsumed_tail
    yield unpacking.flush()  # The last bits may hold some bytes more.
    if not unpacking.eof:
        raise ValueError("the snapshot ends early")


def _in_lines(pieces: Iterator[Any]) -> Iterator[list[Any]]:
    """Yield the pieces, many in a line, because a line for each would cost more than the pieces do."""
    while line := list(islice(pieces, _PIECES_OF_A_LINE)):
        yield line


def _restful(lines: Iterable[list[Any]]) -> Iterator[list[Any]]:
    """Yield the same lines, and sleep after each stretch of work."""
    rest_at = time.perf_counter() + WORK_SECONDS
    for line in lines:
        yield line
        if time.perf_counter() > rest_at:
            time.sleep(REST_SECONDS)
            rest_at = time.perf_counter() + WORK_SECONDS
