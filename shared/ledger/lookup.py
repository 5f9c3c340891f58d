"""Looks up what the ledger holds: events by id, spends that reversals name, grants and campaigns that left memory.

Connections that are given to these functions must have `plain_types`: UUIDs are 16 bytes.
"""

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import asyncpg

from shared.contracts.commands import sent_command
from shared.rules.command_types import Command, GrantAdCredit, GrantVoucher, SetCampaignBudget
from shared.rules.entries import canonical_json
from shared.rules.events import Event
from shared.rules.grants import GrantKey, RecordedGrant, named_by
from shared.rules.instants import from_datetime
from shared.rules.resting import Recorded, dump_campaign
from shared.rules.reversals import ChargedSpend, Part, take_back
from shared.rules.shard import Shard
from shared.rules.state import Campaign
from shared.rules.ways import TOPIC

_BLOCK = 64
# Yield to other tasks after this many rows.
_ROWS_AT_ONCE = 250
# Ad account and campaign; None stands for all campaigns of the account.
CampaignKey = tuple[str, str | None]


class RestingRow(NamedTuple):
    """A campaign that rests, with the position up to which its state holds."""

    ad_account_id: str
    campaign_id: str
    position: int
    state: dict[str, Any]


async def plain_types(connection: asyncpg.Connection) -> None:
    """Set the connection to return UUIDs as 16 bytes, which are far cheaper than objects, and JSON as parsed values."""
    await connection.set_type_codec("uuid", encoder=bytes, decoder=bytes, schema="pg_catalog", format="binary")
    await connection.set_type_codec(
        "json", encoder=_json_bytes, decoder=json.loads, schema="pg_catalog", format="binary"
    )


def _json_bytes(value: Any) -> bytes:
    return canonical_json(value).encode()


async def find_events(connection: asyncpg.Connection, shard: int, event_ids: Sequence[bytes]) -> dict[bytes, int]:
    """Return the events among these that the ledger holds, with the position of each one's first entry."""
    rows = await connection.fetch(
        f"SELECT source_event_id, position FROM ledger.entries_{shard:d}"
        " WHERE source_event_id = ANY($1::uuid[]) AND part = 0 AND day IS NOT NULL",
        event_ids,
    )
    return dict(rows)


async def read_events(
    connection: asyncpg.Connection, shard: int, positions: Iterable[int], currency_of: Callable[[str], str]
) -> dict[bytes, Event]:
    """Return the events whose first entries are at these positions, by id.

    `currency_of` gives the currency of a Business Center, because entries do not hold it.
    """
    events: dict[bytes, Event] = {}
    for rows in (await _money_of(connection, shard, positions)).values():
        first = rows[0]
        details = first["details"]
        event_id = first["source_event_id"]
        events[event_id] = (
            event_id,
            first["business_center_id"],
            first["ad_account_id"],
            first["campaign_id"],
            sum(abs(row["amount"]) for row in rows),
            currency_of(first["business_center_id"]),
            from_datetime(first["occurred_at"]),
            first["reverses"],
            None if details is None else details.get("reason"),
        )
    return events


async def read_spends(
    connection: asyncpg.Connection, shard: int, event_ids: Sequence[bytes], before: int = 2**62
) -> dict[bytes, ChargedSpend]:
    """Return the spends among these events below the position `before`, by id.

    Each has the parts that had not been reversed before that position.
    """
    positions = await find_events(connection, shard, event_ids)
    spends = {}
    for position, rows in (await _money_of(connection, shard, positions.values())).items():
        if rows[0]["reverses"] is None and position < before:
            spends[rows[0]["source_event_id"]] = _charged_spend(position, rows)
    reversed_sums = await connection.fetch(
        f"SELECT reverses, sum(abs(amount))::text FROM ledger.entries_{shard:d}"
        " WHERE reverses = ANY($1::uuid[]) AND position < $2 GROUP BY reverses",
        list(spends),
        before,
    )
    for event_id, amount in reversed_sums:
        take_back(spends[event_id], int(amount))
    return spends


def grants_of(commands: Iterable[Command], spends: Iterable[ChargedSpend]) -> list[GrantKey]:
    """Return the grants that commands name and that spends drew on, each once."""
    named = {key for command in commands if (key := named_by(command)) is not None}
    for spend in spends:
        center = spend.business_center_id
        named.update((center, part.pocket, part.grant_id) for part in spend.parts if part.pocket and part.grant_id)
    return sorted(named)


async def read_grants(
    connection: asyncpg.Connection, shard: int, keys: Sequence[GrantKey], before: int = 2**62
) -> dict[GrantKey, RecordedGrant]:
    """Return the grants among these that the ledger holds below the position `before`.

    Raise LookupError, TypeError, ValueError or AttributeError if an entry of a grant holds no command that makes one.
    """
    grants: dict[GrantKey, RecordedGrant] = {}
    if not keys:
        return grants
    rows = await connection.fetch(
        "SELECT kind, business_center_id, pocket, grant_id, position, ad_account_id, details"
        f" FROM ledger.entries_{shard:d} WHERE kind IN ('grant', 'allocation_in')"
        " AND (business_center_id, grant_id) IN (SELECT * FROM unnest($1::text[], $2::text[])) AND position < $3"
        " ORDER BY position",
        [key[0] for key in keys],
        [key[2] for key in keys],
        before,
    )
    for row in rows:
        key = (row["business_center_id"], row["pocket"], row["grant_id"])
        if row["kind"] == "grant":
            grants.setdefault(key, _recorded_grant(row))
        elif key in grants:  # An allocation without its grant was forged: the auditor says where.
            grants[key].allocated.append((row["position"], row["ad_account_id"]))
    return grants


def campaigns_named(rules: Shard, commands: Iterable[Command], events: Iterable[Event]) -> set[CampaignKey]:
    """Return the campaigns that commands and events name, if they may be out of memory."""
    if not rules.campaigns.some_rest:
        return set()
    named: set[CampaignKey] = {(account_id, campaign_id) for _, _, account_id, campaign_id, *_ in events}
    for command in commands:
        if isinstance(command, SetCampaignBudget):
            named.add((command.ad_account_id, command.campaign_id))
        elif isinstance(command, GrantVoucher) and command.campaign_ids is not None and command.ad_account_id:
            named.add((command.ad_account_id, None))
    return {key for key in named if _may_rest(rules, *key)}


def _may_rest(rules: Shard, account_id: str, campaign_id: str | None) -> bool:
    account = rules.accounts.get(account_id)
    if account is None or account.campaigns_ever == len(account.campaigns):
        return False
    if campaign_id is None:
        return rules.needs_all_to_tie(account)
    return campaign_id not in account.campaigns


async def read_resting(
    connection: asyncpg.Connection, shard: int, keys: Iterable[CampaignKey], before: int = 2**62
) -> Recorded:
    """Return the state with which each of these campaigns last rested before that position; None if it never did."""
    found: dict[str, dict[str, Any]] = {}
    single, whole = [], []
    for account_id, campaign_id in keys:
        of_account = found.setdefault(account_id, {})
        if campaign_id is None:
            whole.append(account_id)
        else:
            of_account[campaign_id] = None
            single.append((account_id, campaign_id))
    for query, arguments in ((_RESTING, list(zip(*single, strict=True))), (_ALL_RESTING, [whole] if whole else [])):
        if arguments:
            for account_id, campaign_id, state in await connection.fetch(query, shard, before, *arguments):
                found[account_id][campaign_id] = state
    return found


_RESTING = """
    SELECT ad_account_id, campaign_id, state FROM unnest($3::text[], $4::text[]) AS named (ad_account_id, campaign_id),
        LATERAL (SELECT state FROM ledger.resting_campaigns r WHERE r.shard = $1 AND r.position < $2
            AND (r.ad_account_id, r.campaign_id) = (named.ad_account_id, named.campaign_id)
            ORDER BY position DESC LIMIT 1) AS newest
"""
_ALL_RESTING = """
    SELECT DISTINCT ON (ad_account_id, campaign_id) ad_account_id, campaign_id, state FROM ledger.resting_campaigns
    WHERE shard = $1 AND position < $2 AND ad_account_id = ANY($3::text[])
    ORDER BY ad_account_id, campaign_id, position DESC
"""


def resting_row(campaign: Campaign, position: int) -> RestingRow:
    """Return the row to keep for a campaign that rests from this position on."""
    return RestingRow(campaign.account.id, campaign.id, position, dump_campaign(campaign))


async def resting_rows(campaigns: Sequence[Campaign], position: int) -> list[RestingRow]:
    """Return the rows to keep for campaigns that rest from this position on."""
    rows: list[RestingRow] = []
    for start in range(0, len(campaigns), _ROWS_AT_ONCE):
        rows += [resting_row(campaign, position) for campaign in campaigns[start : start + _ROWS_AT_ONCE]]
        await asyncio.sleep(0)
    return rows


def _recorded_grant(row: Any) -> RecordedGrant:
    command = sent_command(row["details"]["command"], TOPIC).command
    if not isinstance(command, GrantVoucher | GrantAdCredit):
        raise TypeError(f"the first entry of a grant holds a command of the type {command.type}")
    campaigns = command.campaign_ids if isinstance(command, GrantVoucher) else None
    tied_to = None if campaigns is None else frozenset(campaigns)
    return RecordedGrant(row["position"], command.expires_at, tied_to, row["ad_account_id"])


def _charged_spend(position: int, rows: list[Any]) -> ChargedSpend:
    first = rows[0]
    return ChargedSpend(
        first["business_center_id"],
        first["ad_account_id"],
        first["campaign_id"],
        from_datetime(first["occurred_at"]),
        position,
        first["day"].toordinal(),
        first["period"].toordinal(),
        [Part(row["holder"], row["pocket"], row["grant_id"], row["cause"], abs(row["amount"])) for row in rows],
    )


async def _money_of(connection: asyncpg.Connection, shard: int, positions: Iterable[int]) -> dict[int, list[Any]]:
    """Return the money entries of the event that begins at each of these positions, in order, by that position."""
    found: dict[int, list[Any]] = {position: [] for position in positions}
    pending = {position: position for position in found}
    while pending:
        rows = await connection.fetch(
            f"""
            SELECT first, e.source_event_id, e.business_center_id, e.ad_account_id, e.campaign_id, e.holder, e.pocket,
                e.grant_id, e.cause, e.amount, e.occurred_at, e.day, e.period, e.reverses,
                CASE WHEN e.position = first THEN e.details END AS details -- The others have none, unless forged.
            FROM unnest($1::bigint[], $2::bigint[]) AS s (first, start)
            JOIN ledger.entries_{shard:d} f ON f.position = first
            JOIN ledger.entries_{shard:d} e ON e.position >= start AND e.position < start + {_BLOCK}
                AND e.source_event_id = f.source_event_id AND e.day IS NOT NULL
            ORDER BY first, e.position
            """,
            list(pending),
            list(pending.values()),
        )
        count = dict.fromkeys(pending, 0)
        for row in rows:
            found[row["first"]].append(row)
            count[row["first"]] += 1
        pending = {first: start + _BLOCK for first, start in pending.items() if count[first] == _BLOCK}
    return found
