"""Looking up what the ledger holds about the records of a batch, after they are decoded and before they are decided."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import asyncpg

from services.allocation.records.batch_decoding import DecodedRecords
from shared.contracts.commands import SentCommand, kept_meaning_hash
from shared.ledger.lookup import (
    campaigns_named,
    find_events,
    grants_of,
    read_events,
    read_grants,
    read_resting,
    read_spends,
)
from shared.rules.command_types import Command, GrantVoucher
from shared.rules.events import EVENT_ID, REVERSES, Event
from shared.rules.grants import GrantKey, RecordedGrant
from shared.rules.resting import Recorded
from shared.rules.reversals import ChargedSpend
from shared.rules.shard import Shard

# Vouchers of one batch may bring back this many campaigns. A voucher tied to campaigns brings back all of its account.
MOST_AWOKEN = 20_000
# A command has 64 KiB, and six times as much where each of its characters is escaped. Longer content was forged, and
# counts as unreadable.
_LONGEST_CONTENT_BYTES = 512 * 1024
_CONTENTS_AT_ONCE = 20


class Outcome(NamedTuple):
    """The answer to a command. `via` says how the command came; None if that was not recorded then."""

    status: str
    code: str | None
    message: str
    first_position: int | None
    position: int
    recorded_at: Any
    via: str | None


class DecidedCommand(NamedTuple):
    """The hash of a decided command's meaning (None if its content can no longer be read), and its outcome."""

    meaning: str | None
    outcome: Outcome


@dataclass(slots=True)
class Known:
    """What the ledger already holds about the records of a batch."""

    events: dict[bytes, Event] = field(default_factory=dict)
    spends: dict[bytes, ChargedSpend] = field(default_factory=dict)
    grants: dict[GrantKey, RecordedGrant] = field(default_factory=dict)
    commands: dict[bytes, DecidedCommand] = field(default_factory=dict)
    accounts_elsewhere: set[str] = field(default_factory=set)
    resting: Recorded = field(default_factory=dict)


def within_memory(rules: Shard, decoded: DecodedRecords) -> DecodedRecords:
    """Return as many records as bring no more than `MOST_AWOKEN` campaigns back into memory, but at least one."""
    if not rules.campaigns.some_rest:
        return decoded
    awoken = 0
    for number, (_, command) in enumerate(decoded.commands):
        if isinstance(command, SentCommand):
            awoken += _awoken_by(command.command, rules)
        if awoken > MOST_AWOKEN and number:
            return decoded.first(number)
    return decoded


def _awoken_by(command: Command, rules: Shard) -> int:
    """Return how many campaigns a command brings back into memory because it ties a voucher to campaigns."""
    if not isinstance(command, GrantVoucher) or command.campaign_ids is None:
        return 0
    account = rules.accounts.get(command.ad_account_id or "")
    if account is None or not rules.needs_all_to_tie(account):
        return 0
    return account.campaigns_ever - len(account.campaigns)


async def look_up(connection: asyncpg.Connection, shard: int, rules: Shard, decoded: DecodedRecords) -> Known:
    """Return what the ledger holds about these records: repeated ids, reversed spends, grants, decided commands."""
    known = Known()
    events = [event for _, event in decoded.events if type(event) is tuple]
    if events:
        found = await find_events(connection, shard, [event[EVENT_ID] for event in events])
        if found:
            known.events = await read_events(
                connection, shard, found.values(), lambda center: rules.business_centers[center].currency
            )
        reversed_ids = [reverses for event in events if (reverses := event[REVERSES]) is not None]
        if reversed_ids:
            known.spends = await read_spends(connection, shard, reversed_ids)
    commands = [command for _, command in decoded.commands if isinstance(command, SentCommand)]
    if commands:
        known.commands = await _decided_commands(connection, shard, [command.id for command in commands])
        opened = [command.content.get("ad_account_id") for command in commands]
        known.accounts_elsewhere = {
            row["ad_account_id"]
            for row in await connection.fetch(
                "SELECT ad_account_id FROM ledger.ad_accounts WHERE ad_account_id = ANY($1) AND shard <> $2",
                [account for account in opened if account],
                shard,
            )
        }
    named = grants_of((each.command for each in commands), known.spends.values())
    known.grants = await read_grants(connection, shard, rules.forgotten(named), rules.batch.last_position() + 1)
    campaigns = campaigns_named(rules, (each.command for each in commands), events)
    if campaigns:
        known.resting = await read_resting(connection, shard, campaigns)
    return known


async def _decided_commands(
    connection: asyncpg.Connection, shard: int, ids: list[bytes]
) -> dict[bytes, DecidedCommand]:
    rows = await connection.fetch(
        "SELECT command_id, status, code, message, first_position, position, recorded_at, via"
        " FROM ledger.outcomes WHERE command_id = ANY($1::uuid[]) AND shard = $2 AND first",
        ids,
        shard,
    )
    meanings = await _meanings(connection, shard, [row["command_id"] for row in rows])
    return {id: DecidedCommand(meanings[id], Outcome(*answer)) for id, *answer in rows}


async def _meanings(connection: asyncpg.Connection, shard: int, ids: list[bytes]) -> dict[bytes, str | None]:
    """Return the hash of each decided command's meaning. Few of their contents are in memory at once."""
    found: dict[bytes, str | None] = {}
    for start in range(0, len(ids), _CONTENTS_AT_ONCE):
        rows = await connection.fetch(
            "SELECT command_id, CASE WHEN octet_length(content::text) <= $3 THEN content::text ELSE '' END"
            " FROM ledger.outcomes WHERE command_id = ANY($1::uuid[]) AND shard = $2 AND first",
            ids[start : start + _CONTENTS_AT_ONCE],
            shard,
            _LONGEST_CONTENT_BYTES,
        )
        found |= {id: kept_meaning_hash(content) for id, content in rows}
    return found
