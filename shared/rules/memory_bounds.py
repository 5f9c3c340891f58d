"""Bounds of what the rules must keep in memory for a Business Center, since version 3 of the rules.

Since version 4 a Business Center also has a share of its shard's memory, so that one with very much of everything
leaves room for the others.

What can rest (`resting`) or ends by itself needs no bound. A command beyond a bound is refused with `limit_reached`,
and a spend is quarantined as `too_many_campaigns`, so the memory of one tenant never stops another.
"""

from typing import Final

from shared.rules.budgets import DAILY
from shared.rules.pauses import lacks_untied_money, pinned
from shared.rules.policy import Policy
from shared.rules.refusal import require
from shared.rules.state import AdAccount, BusinessCenter, Campaign, ShardMemory
from shared.rules.versions import CENTERS_BOUNDED, MEMORY_SHARED

MOST_AD_ACCOUNTS: Final = 20_000
MOST_OPEN_GRANTS: Final = 20_000
MOST_TIED_IDS: Final = 100_000
MOST_DAILY_BUDGETS: Final = 100_000
MOST_STOPPED: Final = 10_000
# For all Business Centers of a shard together, so that four shards fit into 1 GiB.
MOST_HELD_BYTES: Final = 128 * 2**20
# A Business Center may hold this many times what is left for all. So one alone leaves a third of the shard's memory, a
# second one takes at most two thirds of that, and a small one always finds room.
SHARE_OF_THE_REST: Final = 2


def require_memory(policy: Policy, memory: ShardMemory) -> None:
    """Raise Refused if the Business Centers of the shard already hold all the memory that they may have together."""
    allowed = policy.rules < CENTERS_BOUNDED or memory.bytes < MOST_HELD_BYTES
    is_shared = policy.rules >= MEMORY_SHARED
    advice = "others of its Business Centers have to hold less" if is_shared else "it needs more shards"
    require(allowed, "limit_reached", f"the shard of this Business Center holds all that it may: {advice}")


def _require_share(policy: Policy, center: BusinessCenter) -> None:
    """Raise Refused if the Business Center may not hold more, by its own share or by the bound of its shard."""
    require_memory(policy, center.memory.shard)
    require(
        not _has_its_share(policy, center),
        "limit_reached",
        "this Business Center holds its share of the shard's memory:"
        " end daily budgets of campaigns, or wait until vouchers are used up or expire",
    )


def _has_its_share(policy: Policy, center: BusinessCenter) -> bool:
    """Return whether a Business Center holds at least its share of a shard's memory, since version 4 of the rules."""
    rest = MOST_HELD_BYTES - center.memory.shard.bytes
    return policy.rules >= MEMORY_SHARED and center.memory.bytes >= SHARE_OF_THE_REST * rest


def require_ad_account(policy: Policy, center: BusinessCenter) -> None:
    """Raise Refused if the Business Center may not have one more ad account."""
    _require_share(policy, center)
    _require(policy, len(center.accounts) + 1, MOST_AD_ACCOUNTS, "ad accounts: no more can be opened")


def require_grant(policy: Policy, center: BusinessCenter, campaigns: frozenset[str] | None) -> None:
    """Raise Refused if the Business Center may not have one more open grant, tied to these campaigns."""
    _require(policy, center.open_grants + 1, MOST_OPEN_GRANTS, "open grants: wait until some are used up or expire")
    if campaigns is not None:
        tied = center.tied_ids + len(campaigns)
        _require(policy, tied, MOST_TIED_IDS, "campaigns named by open vouchers: name fewer, or none")
    _require_share(policy, center)


def require_daily_budget(policy: Policy, center: BusinessCenter, campaign: Campaign | None, mode: str) -> None:
    """Raise Refused if the mode is daily and one more campaign of the Business Center may not have a daily budget."""
    if mode == DAILY and (campaign is None or campaign.budget.mode != DAILY):
        daily = center.daily_campaigns + 1
        _require(policy, daily, MOST_DAILY_BUDGETS, "campaigns with a daily budget: end others first")
        _require_share(policy, center)


def takes_campaign(account: AdAccount, id: str, policy: Policy) -> bool:
    """Return whether a spend may create this campaign: not if nothing could pay for it and too many are stopped."""
    if policy.rules < CENTERS_BOUNDED or not account.has_tied or account.participates:
        return True
    center = account.business_center
    if pinned(account) and (center.memory.shard.bytes >= MOST_HELD_BYTES or _has_its_share(policy, center)):
        return False
    if len(account.stopped_campaigns) < MOST_STOPPED:
        return True
    return id in account.vouchers.tied_to or not lacks_untied_money(account, policy)


def _require(policy: Policy, wanted: int, most: int, of_what: str) -> None:
    allowed = policy.rules < CENTERS_BOUNDED or wanted <= most
    require(allowed, "limit_reached", f"a Business Center may have {most} {of_what}")
