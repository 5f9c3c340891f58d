"""Loading a shard's state when it is taken, and keeping it: a snapshot, and the entries after it decided again."""

import json
import zlib
from typing import Any

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

# The heir of a killed process decides as many again for each of its shards, and they all stand still meanwhile.
FEWEST_ENTRIES_BETWEEN = 20_000
ENTRIES_PER_OBJECT = 10


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
        tree = _restore(rules, kept["state"])
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


def dump(rules: Shard, tree: CompactRange) -> tuple[int, int, bytes]:
    """Position, format and bytes of a snapshot of the state after the present batch, whose tree is given."""
    state: dict[str, Any] = {"frontier": tree.frontier().hex(), "state": snapshot.dump(rules)}
    return tree.size, snapshot.FORMAT, zlib.compress(json.dumps(state, separators=(",", ":")).encode(), 1)


def entries_between(rules: Shard) -> int:
    """How many entries to let pass between snapshots: so many that writing them costs little beside the entries."""
    campaigns = sum(len(account.campaigns) for account in rules.accounts.values())
    return max(FEWEST_ENTRIES_BETWEEN, ENTRIES_PER_OBJECT * (len(rules.accounts) + campaigns))


def _restore(rules: Shard, state: bytes) -> CompactRange:
    kept = json.loads(zlib.decompress(state))
    snapshot.load(rules, kept["state"])
    return CompactRange(kept["state"]["position"], bytes.fromhex(kept["frontier"]))
