"""Reads the waterfall policies of shards, which name the pockets that may be drawn.

The ledger's writer records a policy by its version. Its login could store any JSON there, up to 64 KiB. So the API
reads each version once, reads no more of it than a policy can have, and keeps only the pockets.
"""

from collections.abc import Set
from typing import Any, Final

import asyncpg
import structlog

from services.api.answers.pieces import unhurried
from services.api.door.errors import unreadable
from shared.contracts import strict_json
from shared.ledger.policies import read_contents
from shared.rules.vocabulary import AD_ACCOUNT_WATERFALL, BUSINESS_CENTER_WATERFALL

Waterfalls = dict[str, list[str]]

# Of each holder. The vocabulary has five pockets.
_MOST_POCKETS: Final = 64
_POLICY: Final = "its shard's waterfall policy"

# The built-in waterfall, which holds until a batch names a policy (domain page, section 2).
DEFAULT_POLICY: Final[Waterfalls] = {
    "ad_account": [*AD_ACCOUNT_WATERFALL],
    "business_center": [*BUSINESS_CENTER_WATERFALL],
}


async def read_policies(connection: asyncpg.Connection, shards: list[int]) -> dict[int, Waterfalls]:
    """Return the policy of each shard's last batch. A shard whose policy cannot be read is left out, and logged."""
    rows = await connection.fetch(
        """
        SELECT s.shard, latest.policy_version
        FROM ledger.shards s
        CROSS JOIN LATERAL (
            SELECT policy_version FROM ledger.batches b
            WHERE b.shard = s.shard ORDER BY last_position DESC LIMIT 1
        ) AS latest
        WHERE s.shard = ANY($1::smallint[])
        """,
        shards,
    )
    versions = await read_versions(connection, {row["policy_version"] for row in rows})
    policies = dict.fromkeys(shards, DEFAULT_POLICY)
    for shard, version in rows:
        policy = versions[version]
        if policy is None:
            structlog.get_logger().error("a policy cannot be read", shard=shard)
            del policies[shard]
        else:
            policies[shard] = policy
    return policies


async def require_policy(connection: asyncpg.Connection, shard: int) -> None:
    """Raise ApiError (409) if the policy of the shard's last batch cannot be read."""
    if shard not in await read_policies(connection, [shard]):
        raise unreadable(_POLICY)


async def read_policy(connection: asyncpg.Connection, version: str) -> Waterfalls:
    """Return the policy of a version, or the built-in one if it is not stored. Raise ApiError (409) for no policy."""
    policy = (await read_versions(connection, {version}))[version]
    if policy is None:
        raise unreadable(_POLICY)
    return policy


async def read_versions(connection: asyncpg.Connection, versions: Set[str]) -> dict[str, Waterfalls | None]:
    """Return the policies of these versions; None for one that cannot be read, the built-in one if it is not stored."""
    contents = await read_contents(connection, versions)
    policies: dict[str, Waterfalls | None] = dict.fromkeys(versions, DEFAULT_POLICY)
    async for version, content in unhurried(contents.items()):
        policies[version] = None if content is None else _parse(content)
    return policies


def _parse(content: str) -> Waterfalls | None:
    """Return the pockets of a stored policy; None if it is no policy.

    The API shows any pockets that a policy names, because a newer release may know more of them.
    """
    try:
        policy = strict_json.read(content.encode())
    except strict_json.MalformedError:
        return None
    if not isinstance(policy, dict) or not all(_is_list_of_names(policy.get(holder)) for holder in DEFAULT_POLICY):
        return None
    return {holder: policy[holder] for holder in DEFAULT_POLICY}


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= _MOST_POCKETS and all(isinstance(each, str) for each in value)
