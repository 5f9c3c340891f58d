"""Reads the current waterfall policy of a shard, which names the pockets that may be drawn."""

import json
from typing import Any

import asyncpg

from shared.rules.vocabulary import AD_ACCOUNT_WATERFALL, BUSINESS_CENTER_WATERFALL

# The built-in waterfall, which holds until a batch names a policy (domain page, section 2).
DEFAULT_POLICY: dict[str, list[str]] = {
    "ad_account": [*AD_ACCOUNT_WATERFALL],
    "business_center": [*BUSINESS_CENTER_WATERFALL],
}


async def read_policies(connection: asyncpg.Connection, shards: list[int]) -> dict[int, dict[str, Any]]:
    """Return the policy of each shard's last batch."""
    rows = await connection.fetch(
        """
        SELECT s.shard, p.content
        FROM ledger.shards s
        CROSS JOIN LATERAL (
            SELECT policy_version FROM ledger.batches b
            WHERE b.shard = s.shard ORDER BY last_position DESC LIMIT 1
        ) AS latest
        JOIN ledger.policies p ON p.version = latest.policy_version
        WHERE s.shard = ANY($1::smallint[])
        """,
        shards,
    )
    named = {row["shard"]: json.loads(row["content"]) for row in rows}
    return {shard: named.get(shard, DEFAULT_POLICY) for shard in shards}
