"""Refuses commands that the caller's role may never give (domain page, section 4.7), without publishing them.

A published command stays in Kafka and in the ledger for good, so a role without the right to a command must not write
anything. The answer is the one that the ledger would give, in the order of its checks, from what the read model knows.
One check is left out: whether a balance would exceed 64 bits.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import structlog
from prometheus_client import Counter

from services.api.context import Context
from shared.contracts.commands import kept_meaning_hash, meaning_hash, sent_command
from shared.contracts.zones import installed_zones
from shared.rules.money import parse_amount
from shared.rules.roles import may
from shared.rules.shard import Shard
from shared.rules.ways import API, TOPIC

REFUSED = Counter(
    "drawdown_http_commands_refused",
    "Commands refused for the caller's role, without being published",
    ["role", "type"],
)
_WHAT_IS_THERE = """
    SELECT EXISTS (SELECT FROM balance.business_centers WHERE business_center_id = $1) AS center,
        EXISTS (SELECT FROM balance.ad_accounts WHERE ad_account_id = $2 AND business_center_id = $1) AS account,
        EXISTS (SELECT FROM balance.grants WHERE business_center_id = $1 AND ad_account_id = '' AND pocket = 'ad_credit'
                AND grant_id = $3) AS credit,
        coalesce((SELECT amount FROM balance.credit_limits WHERE business_center_id = $1), 0)
            - coalesce((SELECT amount FROM balance.pockets WHERE business_center_id = $1 AND ad_account_id = ''
                        AND pocket = 'credit_line'), 0) AS used
"""
Refusal = tuple[str, str]  # code and message
_CONFLICT: Refusal = ("conflict", "another command with this command_id was decided before")


async def refused_by_role(context: Context, shard: int, content: dict[str, Any]) -> Mapping[str, Any] | None:
    """Return the outcome of a command that the role may not give in any Business Center; None for other commands."""
    role, type_ = content["actor"]["role"], content["type"]
    if may(role, type_, finance_roles=True):
        return None
    async with context.snapshot() as connection:
        first = await first_decision(connection, shard, UUID(content["command_id"]))
        if first is not None and kept_meaning_hash(first["content"]) == meaning_hash(content):
            return first
        now = context.clock.now_us()
        code, message = _CONFLICT if first is not None else await _refusal(connection, content, now)
        position = await connection.fetchval("SELECT position FROM ledger.shards WHERE shard = $1", shard)
    REFUSED.labels(role, type_).inc()
    structlog.get_logger().info("a command was refused for its role", role=role, type=type_, by=content["actor"]["id"])
    return _outcome(content, code, message, shard, position, context.clock.now())


async def first_decision(connection: asyncpg.Connection, shard: int, command_id: UUID) -> Mapping[str, Any] | None:
    """Return the row of `ledger.outcomes` with the first decision under this id; None if there is none."""
    row: Mapping[str, Any] | None = await connection.fetchrow(
        "SELECT * FROM ledger.outcomes WHERE command_id = $1 AND shard = $2 AND first", command_id, shard
    )
    return row


async def _refusal(connection: asyncpg.Connection, content: dict[str, Any], now_us: int) -> Refusal:
    """Return the first of `invalid`, `not_found` and `permission_denied` that applies."""
    code, message = _without_a_ledger(content, now_us)
    if code != "not_found":
        return code, message
    center, account, credit = (content.get(name) for name in ("business_center_id", "ad_account_id", "ad_credit_id"))
    there = await connection.fetchrow(_WHAT_IS_THERE, center, account, credit)
    if not there["center"]:
        return code, message
    type_, role = content["type"], content["actor"]["role"]
    if type_ == "repay_credit" and parse_amount(content["amount"]) > there["used"]:
        return "invalid", "more would be repaid than is used"
    if type_ != "open_ad_account" and account is not None and not there["account"]:
        return "not_found", f"the Business Center {center} has no ad account {account}"
    if type_ == "allocate_ad_credit" and not there["credit"]:
        return "not_found", f"the Business Center has no ad credit {credit}"
    return "permission_denied", f"the role {role} may not {type_}"


def _without_a_ledger(content: dict[str, Any], now_us: int) -> Refusal:
    """Return what the rules say in an empty shard: `invalid` for a command that is invalid by itself."""
    rules = Shard()
    rules.begin(now_us, zones=installed_zones())
    sent = sent_command(content, TOPIC)
    refused = rules.command(sent.command, sent.id, content)
    assert refused is not None, "the rules accepted a command that the role may not give"
    return refused.code, refused.message


def _outcome(
    content: dict[str, Any], code: str, message: str, shard: int, position: int, recorded_at: datetime
) -> dict[str, Any]:
    """Return an outcome with the columns of `ledger.outcomes`."""
    return {
        **{name: content[name] for name in ("command_id", "business_center_id", "type")},
        "status": "rejected",
        "code": code,
        "message": message,
        "shard": shard,
        "position": position,
        "recorded_at": recorded_at,
        "via": API,
    }
