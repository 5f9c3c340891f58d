"""Loading a shard's state when it is taken, and keeping it: a snapshot, and the entries after it decided again.

A large state takes seconds to write and to read. Threads do it, piece by piece, and let the event loop go first:
other shards are written meanwhile, and leases renewed.
"""

import asyncio
import json
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Final

import asyncpg
import structlog

from shared.ledger.lease import Lease
from shared.ledger.merkle import CompactRange
from shared.ledger.replay import Redecider, newer_rules
from shared.ledger.zones import UNRECORDED, record_zones, recorded_zones
from shared.rules import snapshot
from shared.rules.policy import Policy
from shared.rules.shard import Shard
from shared.rules.versions import CURRENT
from shared.runtime.errors import CannotGoOnError

log = structlog.get_logger()
_encode = json.JSONEncoder(separators=(",", ":")).encode

# The heir of a killed process decides as many again for each of its shards, and they all stand still meanwhile.
FEWEST_ENTRIES_BETWEEN = 20_000
ENTRIES_PER_OBJECT = 10
# A thread works this long, then sleeps that long: whoever waits for the interpreter gets it at once.
WORK_SECONDS: Final = 0.005
REST_SECONDS: Final = 0.0002
_READ_BYTES: Final = 64 * 1024
_PIECES_OF_A_LINE: Final = 50
_FORGOTTEN_AT_ONCE: Final = 100


@dataclass(frozen=True, slots=True)
class Kept:
    """A snapshot as the ledger keeps it: lines of JSON, compressed. `objects`: how many pieces it has."""

    position: int
    format: int
    state: bytes
    objects: int


async def load(connection: asyncpg.Connection, lease: Lease, policy: Policy, deduplication_days: int) -> Shard:
    """The state at the lease's position, whose `tables` are the recorded time zones.

    Raises:
        ReplayDiffersError: the ledger is not what the rules decide.
        CannotGoOnError: newer rules than these have written it.

    """
    await _require_known_rules(connection, lease)
    # What was charged was young enough then, whatever the window was.
    rules, tree = Shard(policy, deduplication_days=None), CompactRange()
    rules.tables |= await recorded_zones(connection)
    kept = await connection.fetchrow(
        "SELECT state FROM ledger.snapshots WHERE shard = $1 AND format = $2 AND position <= $3",
        lease.shard,
        snapshot.FORMAT,
        lease.position,
    )
    if kept:
        tree = await asyncio.to_thread(_restore, rules, kept["state"])
    start = tree.size
    await Redecider(connection, rules, lease.shard, tree).run(start, lease.position)
    if (tree.size, tree.root()) != (lease.position, lease.tree.root()):
        raise ValueError(f"shard {lease.shard}: the lease is at {lease.position}, the ledger ends at {tree.size}")
    if rules.zones.release == UNRECORDED:
        await _record_what_is_not(connection, rules)
    rules.set_window(deduplication_days)
    log.info("shard loaded", shard=lease.shard, snapshot=start, position=lease.position, epoch=lease.epoch)
    return rules


async def _require_known_rules(connection: asyncpg.Connection, lease: Lease) -> None:
    """Whoever knows older rules than the shard's last batch must not go on with it: nobody could replay that."""
    last = await connection.fetchval(
        "SELECT rules_version FROM ledger.batches WHERE shard = $1 ORDER BY last_position DESC LIMIT 1", lease.shard
    )
    if last is not None and last > CURRENT:
        raise CannotGoOnError(f"shard {lease.shard}: {newer_rules(last)}")


async def _record_what_is_not(connection: asyncpg.Connection, rules: Shard) -> None:
    """The zones of a shard that was written before releases were noted, as they are installed now."""
    used = rules.zones_used()
    if used:
        await record_zones(connection, UNRECORDED, used)
        log.info("time zones of the past recorded", zones=[name for name, _ in used])


async def dump(rules: Shard, tree: CompactRange) -> Kept:
    """A snapshot of the state after the present batch, whose tree is given. Nothing may be decided meanwhile."""
    return await asyncio.to_thread(_dump, rules, tree)


def entries_between(objects: int) -> int:
    """How many entries to let pass between snapshots: so many that writing them costs little beside the entries."""
    return max(FEWEST_ENTRIES_BETWEEN, ENTRIES_PER_OBJECT * objects)


def objects_in(rules: Shard) -> int:
    """How many accounts and campaigns a shard has."""
    return len(rules.accounts) + sum(len(account.campaigns) for account in rules.accounts.values())


async def forget(rules: Shard) -> None:
    """Let go of a state that is needed no more, a few accounts at a time.

    Its objects point at each other, and the collector of such circles does not look at what `gc.freeze` has set apart.
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


def _dump(rules: Shard, tree: CompactRange) -> Kept:
    head = {"position": tree.size, "frontier": tree.frontier().hex()}
    compressor = zlib.compressobj(1)
    parts, objects = [], 0
    for line in _restful(_in_lines(chain([head], snapshot.dump(rules)))):
        parts.append(compressor.compress(_encode(line).encode() + b"\n"))
        objects += len(line)
    return Kept(tree.size, snapshot.FORMAT, b"".join([*parts, compressor.flush()]), objects)


def _restore(rules: Shard, state: bytes) -> CompactRange:
    pieces = chain.from_iterable(_restful(json.loads(line) for line in _lines(state)))
    head = next(pieces)
    snapshot.load(rules, pieces)
    return CompactRange(head["position"], bytes.fromhex(head["frontier"]))


def _lines(state: bytes) -> Iterator[bytes]:
    """The lines of a compressed text; no more than a part of it is unpacked at any time."""
    unpacking, rest = zlib.decompressobj(), b""
    packed = state
    while packed:
        *lines, rest = (rest + unpacking.decompress(packed, _READ_BYTES)).split(b"\n")
        packed = unpacking.unconsumed_tail
        yield from lines
    *lines, rest = (rest + unpacking.flush()).split(b"\n")
    yield from lines
    assert not rest, "the last line ends too"


def _in_lines(pieces: Iterator[Any]) -> Iterator[list[Any]]:
    """The pieces, some in a line: a line for each costs more than the pieces do."""
    while line := list(islice(pieces, _PIECES_OF_A_LINE)):
        yield line


def _restful(lines: Iterable[list[Any]]) -> Iterator[list[Any]]:
    """The same lines, with a rest after each stretch of work."""
    rest_at = time.perf_counter() + WORK_SECONDS
    for line in lines:
        yield line
        if time.perf_counter() > rest_at:
            time.sleep(REST_SECONDS)
            rest_at = time.perf_counter() + WORK_SECONDS
