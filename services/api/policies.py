"""Reads the waterfall policy of a shard, which names the pockets that may be drawn."""

import json
from typing import Any, Final

import asyncpg
import structlog

from services.api.door.errors import ApiError, unreadable
from shared.rules.vocabulary import AD_ACCOUNT_WATERFALL, BUSINESS_CENTER_WATERFALL

Waterfalls = dict[str, list[str]]

_POLICY: Final = "its shard's waterfall policy"

# The built-in waterfall, which holds until a batch names a policy (domain page, section 2).
DEFAULT_POLICY: Waterfalls = {
    "ad_account": [*AD_ACCOUNT_WATERFALL],
    "business_center": [*BUSINESS_CENTER_WATERFALL],
}


async def read_policies(connection: asyncpg.Connection, shards: list[int]) -> dict[int, Waterfalls]:
    """Return the policy of each shard's last batch. A shard whose policy cannot be read is left out, and logged."""
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
    policies = dict.fromkeys(shards, DEFAULT_POLICY)
    for shard, content in rows:
        try:
            policies[shard] = parse_policy(content)
        except ApiError as error:
            structlog.get_logger().error("a policy cannot be read", shard=shard, error=error.message)
            del policies[shard]
    return policies


async def require_policy(connection: asyncpg.Connection, shard: int) -> None:
    """Raise ApiError (409) if the policy of the shard's last batch cannot be read."""
    if shard not in await read_policies(connection, [shard]):
        raise unreadable(_POLICY)


def parse_policy(content: str | None) -> Waterfalls:
    """Return a stored policy, or the built-in one for None. Raise ApiError (409) for what is no policy.

    The API shows any pockets that a policy names, because a newer release may know more of them.
    """
    if content is None:
        return DEFAULT_POLICY
    policy = json.loads(content)
    if not isinstance(policy, dict) or not all(_is_list_of_texts(policy.get(holder)) for holder in DEFAULT_POLICY):
        raise unreadable(_POLICY)
    return policy


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)
