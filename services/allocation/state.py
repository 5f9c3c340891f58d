"""Loading a shard's state when it is taken, and keeping it: a snapshot, and the entries after it decided again."""

import json
import zlib
from typing import Any

import asyncpg
import structlog

from shared.ledger.lease import Lease
from shared.ledger.merkle import CompactRange
from shared.ledger.replay import Redecider
from shared.rules import snapshot
from shared.rules.policy import Policy
from shared.rules.shard import Shard

log = structlog.get_logger()

# The heir of a killed process decides as many again for each of its shards, and they all stand still meanwhile.
FEWEST_ENTRIES_BETWEEN = 20_000
ENTRIES_PER_OBJECT = 10


async def load(connection: asyncpg.Connection, lease: Lease, policy: Policy, deduplication_days: int) -> Shard:
    """The state at the lease's position. Raises ReplayDiffersError where the ledger is not what the rules decide."""
    # What was charged was young enough then, whatever the window was.
    rules, tree = Shard(policy, deduplication_days=None), CompactRange()
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
    rules.set_window(deduplication_days)
    log.info("shard loaded", shard=lease.shard, snapshot=start, position=lease.position, epoch=lease.epoch)
    return rules


def dump(rules: Shard, tree: CompactRange) -> tuple[int, int, bytes]:
    """Position, format and bytes of a snapshot of the state after the present batch, whose tree is given."""
    state: dict[str, Any] = {"frontier": tree.frontier().hex(), "pieces": list(snapshot.dump(rules))}
    return tree.size, snapshot.FORMAT, zlib.compress(json.dumps(state, separators=(",", ":")).encode(), 1)


def entries_between(rules: Shard) -> int:
    """How many entries to let pass between snapshots: so many that writing them costs little beside the entries."""
    campaigns = sum(len(account.campaigns) for account in rules.accounts.values())
    return max(FEWEST_ENTRIES_BETWEEN, ENTRIES_PER_OBJECT * (len(rules.accounts) + campaigns))


def _restore(rules: Shard, state: bytes) -> CompactRange:
    kept = json.loads(zlib.decompress(state))
    snapshot.load(rules, kept["pieces"])
    return CompactRange(rules.position, bytes.fromhex(kept["frontier"]))
