"""Checks that references lead somewhere: replays to quarantined records, batches and outcomes to policies.

Operators may drop a month of quarantine. What refers to its records stays, and is no difference.
"""

import asyncpg

from services.auditor.checks.quarantine_gaps import DROPPED
from services.auditor.difference import DifferenceError

# `reference` names a row by its table, shard and number, then the record that it refers to. A waiting or failed replay
# refers to the first record, which is no replay itself.
_REPLAYS = f"""
    WITH reference (name, of_shard, number, shard, sequence, is_replay) AS (
        SELECT 'forwarded', shard, id, replay_shard, replay_sequence, true
        FROM ledger.forwarded WHERE replay_shard IS NOT NULL
        UNION ALL
        SELECT 'quarantine', shard, sequence, replay_shard, replay_sequence, true
        FROM ledger.quarantine WHERE replay_shard IS NOT NULL
        UNION ALL
        SELECT 'quarantine_replays', shard, sequence, shard, sequence, false FROM ledger.quarantine_replays
    ), dropped AS ({DROPPED})
    SELECT r.*, q.shard IS NOT NULL AS is_there FROM reference r LEFT JOIN ledger.quarantine q USING (shard, sequence)
    WHERE CASE WHEN q.shard IS NOT NULL THEN is_replay AND q.replay_shard IS NOT NULL
        ELSE NOT EXISTS (SELECT FROM dropped d WHERE d.shard = r.shard AND r.sequence BETWEEN d.first AND d.last) END
    ORDER BY name, of_shard, number LIMIT 1
"""  # noqa: S608 - a constant
_POLICIES = """
    SELECT name, version FROM (
        SELECT DISTINCT 'batches' AS name, policy_version AS version FROM ledger.batches
        UNION SELECT DISTINCT 'outcomes', policy_version FROM ledger.outcomes WHERE policy_version IS NOT NULL) AS named
    WHERE NOT EXISTS (SELECT FROM ledger.policies p WHERE p.version = named.version) ORDER BY 1, 2 LIMIT 1
"""


async def check_references(connection: asyncpg.Connection) -> None:
    """Raise DifferenceError at the first reference to a record or policy that does not exist."""
    async with connection.transaction():
        # Dropping a month must wait until the audit has read both the records and the operators' log.
        await connection.execute("LOCK TABLE ledger.quarantine IN ACCESS SHARE MODE")
        replay = await connection.fetchrow(_REPLAYS)
    if replay is not None:
        wrong = "is a replay itself" if replay["is_there"] else "does not exist"
        raise DifferenceError(
            f"shard {replay['of_shard']}: the row {replay['number']} of ledger.{replay['name']} refers to the"
            f" quarantined record {replay['shard']}-{replay['sequence']}, which {wrong}"
        )
    policy = await connection.fetchrow(_POLICIES)
    if policy is not None:
        told = f"the policy {policy['version']!r}, which ledger.policies does not hold"
        raise DifferenceError(f"ledger.{policy['name']} names {told}")
