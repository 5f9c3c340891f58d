"""Each service's role in hostile hands: the database refuses what it writes, an audit names it, or the page admits it.

Every right of a role to write into the ledger is tried with the worst use of it.
"""

import json
import re
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import asyncpg
import pytest

from drawdown.deployment.migrate import migrate
from services.allocation.lease import claim
from services.allocation.memory import looking_up, snapshot_pieces, snapshots
from services.auditor.checks.recorded_policies import MOST_NOTES
from services.auditor.cli import replay, verify
from shared.contracts.zones import installed_zones
from shared.ledger.lookup import plain_types, read_events, read_grants
from shared.ledger.replay import ReplayDiffersError, policies
from shared.ledger.zones import recorded_zones
from shared.rules.policy import STANDARD
from shared.runtime.errors import CannotGoOnError
from shared.runtime.roles import SERVICE_ROLES
from shared.runtime.settings import Settings
from tests.integration.audit_ledger import SHARDS, fold, write_random_ledger
from tests.integration.test_audit_replay import copied
from tests.servers import Postgres, fresh_database

# PostgreSQL refuses the same in a container, where hundreds of databases would take minutes.
pytestmark = pytest.mark.embedded
SECURITY = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
WRITES = {"a": "INSERT", "w": "UPDATE", "d": "DELETE"}


class Hostile(NamedTuple):
    """Statements of a role, and the rights that they use: letters as in docs/database.md, then the object.

    Either the server refuses one of the statements with `refused`, or `audit verify` finds `said`, or it passes and
    docs/security.md says the words `unseen` about it.
    """

    role: str
    rights: tuple[str, ...]
    statements: tuple[str, ...]
    refused: type[asyncpg.PostgresError] | None = None
    said: str = ""
    unseen: str = ""


BOUND = asyncpg.CheckViolationError
TAKEN = asyncpg.UniqueViolationError
NOT_ITS_OWN = asyncpg.InsufficientPrivilegeError
WRITER, BALANCE, INCENTIVES = "drawdown_allocation", "drawdown_balance", "drawdown_incentives"
SIGNALS, API = "drawdown_signals", "drawdown_api"
MAKES_IT_UP = "makes up a record that came from nobody"
LEAVES_IT_OUT = "leaves out a record that came"
HOLDS_IT_UP = "holds a service up"
LEAVES_A_SIGNAL_OUT = "leaves out a signal"
KEEPS_AN_OLD_SIGNAL = "keeps an old signal from being found"
KEEPS_THE_STATE_FROM_A_BROKER = "keeps the present state from a new broker"
NO_CALENDAR_HAS = ("infinity", "-infinity", "0044-03-15 BC", "294276-12-31", "1959-12-31T23:59Z", "3001-01-02Z")

AN_ENTRY = (
    "INSERT INTO ledger.entries SELECT shard, {position}, amount, occurred_at, recorded_at, {source}, {part}, day,"
    " period, kind, holder, pocket, grant_id, business_center_id, ad_account_id, campaign_id, cause, reverses, details"
    " FROM ledger.entries WHERE shard = 0 AND day IS NOT NULL LIMIT 1"
)
A_BATCH = (
    "INSERT INTO ledger.batches SELECT {shard}, {first}, {last}, recorded_at, policy_version, {root}, epoch,"
    " spend_offset, command_offset, rules_version, zones_release FROM ledger.batches WHERE shard = 0"
    " ORDER BY last_position DESC LIMIT 1"
)
AN_OUTCOME = (
    "INSERT INTO ledger.outcomes SELECT {shard}, {sequence}, {command}, {first}, business_center_id, type, content,"
    " status, code, message, first_position, position, recorded_at, rules_version, zones_release"
    " FROM ledger.outcomes WHERE shard = 0 AND first AND status = '{status}' ORDER BY sequence DESC LIMIT 1"
)
A_RECORD = (
    'INSERT INTO ledger.quarantine (shard, sequence, reason, detail, topic, partition, "offset", recorded_at)'
    " SELECT {shard}, {sequence}, 'malformed', '', 'spend.events', 0, {offset}, ledger_time"
    " FROM ledger.shards WHERE shard = 0"
)
# Compressed: a line of 64 MB, and a line without an end.
A_LONG_LINE = zlib.compress(b"[" * 64_000_000)
A_NEW_ID = "'00000000-0000-0000-0000-00000000dead'"
THE_HEAD = "(SELECT {} FROM ledger.shards WHERE shard = 0)"
NEXT_OUTCOME = THE_HEAD.format("outcome_sequence + 1")
NEXT_RECORD = THE_HEAD.format("quarantine_sequence + 1")
NEXT = THE_HEAD.format("position + 1")
# The content of an outcome, and what the audit says about it.
UNREADABLE_CONTENTS = {
    "'{}'": " cannot be read: it is not a command: KeyError: 'actor'",
    "'[]'": " cannot be read: it is not a command",
    "'\"sha256\"'": " cannot be read: it is not a command",
    "(repeat('[', 4000) || repeat(']', 4000))::json": " cannot be read: Invalid JSON: recursion limit exceeded",
    "(repeat('[', 150) || repeat(']', 150))::json": " cannot be read: Invalid JSON: it is nested deeper",
    '\'{"command_id": "zz", "actor": {"role": "admin"}}\'': " cannot be read: badly formed hexadecimal UUID string",
    '\'{"command_id": 7, "actor": {"role": "admin"}}\'': " cannot be read: it is not a command: AttributeError",
    '\'{"command_id": "zz", "sha256": 7, "bytes": 7}\'': " cannot be read: it is not the hash of a command",
    '\'{"command_id": "zz", "amount": 7, "actor": {"role": "admin"}}\'': " cannot be read: it is not a command",
    '\'{"type": "\\ud800"}\'': " cannot be read: Invalid JSON",
    """'{"command_id": "00000000-0000-0000-0000-00000000dead", "business_center_id": 1, "type": 2, "actor":
        {"role": "admin"}}'""": " cannot be read: it is not a command: its Business Center and its type must be text",
    "content": ": the row names .*, its content ",
}
MOVE = "UPDATE ledger.shards SET {} WHERE shard = 0"
ANOTHER_RECORD = MOVE.format("quarantine_sequence = quarantine_sequence + 1")
LOOKS_GOOD = '{"order": 0, "causes": 0, "budget": {}}'
A_ZONE = "INSERT INTO ledger.time_zones SELECT '{}', '{}', data FROM ledger.time_zones WHERE name = 'UTC' LIMIT 1"


NO_MORE_SIGNALS = (
    "UPDATE ledger.checkpoints_signals c SET position = s.position, recorded_at = (SELECT e.recorded_at"
    " FROM ledger.entries e WHERE e.shard = s.shard AND e.position = s.position)"
    " FROM ledger.shards s WHERE s.shard = c.shard"
)


AS_IF_PUBLISHED = """
    INSERT INTO signals.latest
    SELECT shard, ad_account_id, coalesce(campaign_id, ''), max(position) FROM ledger.entries
    WHERE kind IN ('pause', 'resume') GROUP BY 1, 2, 3
"""


def entry(position: str = NEXT, source: str = A_NEW_ID, part: int = 0) -> str:
    return AN_ENTRY.format(position=position, source=source, part=part)


def batch(first: str, last: str, shard: int = 0, root: str = "root") -> str:
    return A_BATCH.format(first=first, last=last, shard=shard, root=root)


def outcome(
    sequence: str = NEXT_OUTCOME, shard: int = 0, command: str = A_NEW_ID, first: str = "true", status: str = "rejected"
) -> str:
    return AN_OUTCOME.format(sequence=sequence, shard=shard, command=command, first=first, status=status)


def outcome_with(content: str) -> tuple[str, str]:
    """Return the statements that insert the next outcome with this content, and move the lease."""
    insert = outcome().replace(" content,", f" {content},")
    return insert, MOVE.format("outcome_sequence = outcome_sequence + 1")


def record(sequence: str = NEXT_RECORD, shard: int = 0, offset: int = 0) -> str:
    return A_RECORD.format(sequence=sequence, shard=shard, offset=offset)


def replayed(shard: str, sequence: str) -> str:
    """Return the statements for the next quarantined record, which claims to be a failed replay of another one."""
    insert = record().replace("recorded_at)", "recorded_at, replay_shard, replay_sequence)")
    return insert.replace("ledger_time FROM", f"ledger_time, {shard}, {sequence} FROM")


def at_rest(
    shard: str = "0",
    position: str = THE_HEAD.format("position"),
    state: str = LOOKS_GOOD,
    account: str = "ad_account_id",
) -> str:
    return (
        f"INSERT INTO ledger.resting_campaigns SELECT {shard}, {account}, campaign_id, {position}, '{state}'"
        " FROM ledger.entries WHERE shard = 0 AND campaign_id IS NOT NULL LIMIT 1"
    )


def forwarded(**fields: str) -> str:
    row = {"shard": "0", "topic": "'spend.events'", "partition": "0", "offset": "0", **fields}
    names = ", ".join(f'"{name}"' for name in row)
    return f"INSERT INTO ledger.forwarded ({names}) VALUES ({', '.join(row.values())})"


NO_RECORDS: list[dict[str, str]] = [
    {"topic": "'finance.outcomes'"},
    {"replay_shard": "3"},
    {"replay_sequence": "3"},
    {"replay_bytes": "-1"},
    {"shard": "-1"},
    {"replay_shard": "-1", "replay_sequence": "1"},
    {"replay_shard": "0", "replay_sequence": "0"},
    {"raw": "decode(repeat('00', 65537), 'hex')"},
    {"key": "decode(repeat('00', 81921), 'hex')"},
    {"headers": "json_build_array(repeat('x', 1048576))"},
]


def large_record(column: str, value: str) -> str:
    """Return the statements for a quarantined record with this value in one of its columns."""
    usual = {"reason": "'malformed'", "detail": "''", "topic": "'spend.events'"}
    row = {"shard": "0", "sequence": "quarantine_sequence + 1", **usual, "partition": "0", "offset": "0"}
    row |= {"recorded_at": "ledger_time", column: value}
    names, values = ", ".join(f'"{name}"' for name in row), ", ".join(row.values())
    return f"INSERT INTO ledger.quarantine ({names}) SELECT {values} FROM ledger.shards WHERE shard = 0"


LARGE_RECORDS = {
    "detail": "repeat('x', 8001)",
    "reason": "repeat('x', 65)",
    "topic": "repeat('x', 250)",
    "business_center_id": "repeat('x', 257)",
    "raw": "decode(repeat('00', 65537), 'hex')",
    "key": "decode(repeat('00', 81921), 'hex')",
    "headers": "json_build_array(repeat('x', 1048576))",
}


def skipped(person: str = "'nobody'", because: str = "'no reason'", **fields: str) -> str:
    details = {"shard": "0", "topic": '"spend.events"', "offset": "1", "was_read": "false", **fields}
    return f"SELECT ledger.note_offset_skipped({person}, {because}, '{{{_members(details)}}}')"


def _members(fields: dict[str, str]) -> str:
    return ", ".join(f'"{name}": {value}' for name, value in fields.items())


NO_NOTES = (
    skipped(person="repeat('x', 301)"),
    skipped(because="repeat('x', 301)"),
    skipped(because="''"),
    skipped(because="NULL"),
    skipped(shard='"\\u0000"'),
    skipped(shard='"0"'),
    skipped(shard="1e400"),
    skipped(shard="77"),
    skipped(topic='"finance.outcomes"'),
    skipped(offset="-1"),
    skipped(offset="null"),
    skipped(more='"' + "x" * 1_000 + '"'),
    "SELECT ledger.note_offset_skipped('nobody', 'no reason', '{}')",
    "SELECT ledger.note_offset_skipped('nobody', 'no reason', '[]')",
    "SELECT ledger.note_offset_skipped('nobody', 'no reason', NULL)",
)


def of_the_writer(
    rights: str,
    *statements: str,
    refused: type[asyncpg.PostgresError] | None = None,
    said: str = "",
    unseen: str = "",
) -> Hostile:
    return Hostile(WRITER, tuple(rights.split(", ")), statements, refused, said, unseen)


def of_a_follower(name: str) -> list[Hostile]:
    """Return what the role of a read model's follower can do to its checkpoints."""
    role, table = f"drawdown_{name}", f"ledger.checkpoints_{name}"
    return [
        Hostile(role, (f"w {table}",), (f"UPDATE {table} SET position = -1",), BOUND),
        Hostile(role, (f"w {table}",), (f"UPDATE {table} SET follower = 'outcomes'",), BOUND),
        Hostile(role, (f"a {table}",), (f"INSERT INTO {table} VALUES ('outcomes', 0)",), BOUND),
        Hostile(
            role,
            (f"w {table}",),
            (f"UPDATE {table} c SET position = s.position + 1 FROM ledger.shards s WHERE s.shard = c.shard",),
            BOUND,
        ),
        *(
            Hostile(role, (f"w {table}",), (f"UPDATE {table} SET recorded_at = '{time}'",), BOUND)
            for time in NO_CALENDAR_HAS
        ),
        Hostile(
            role,
            (f"w {table}",),
            (f"UPDATE {table} SET position = position - 1, recorded_at = NULL WHERE shard = 0",),
            said="the checkpoint of|the read model|was closed at",
        ),
        Hostile(role, (f"a {table}",), (f"INSERT INTO {table} VALUES ('{name}', 77)",), BOUND),
    ]


CASES = [
    # Entries.
    of_the_writer("a ledger.entries", entry("-1"), refused=BOUND),
    of_the_writer("a ledger.entries", entry("0"), refused=BOUND),
    of_the_writer("a ledger.entries", entry(part=-1), refused=BOUND),
    of_the_writer("a ledger.entries", entry("1"), refused=TAKEN),
    of_the_writer("a ledger.entries", entry(source="source_event_id"), refused=TAKEN),
    of_the_writer("a ledger.entries", entry(), said=r"shard 0: the entries end at \d+, but the lease says \d+"),
    *(
        of_the_writer("a ledger.entries", entry().replace(column, large), refused=BOUND)
        for column, large in (
            ("details", "json_build_array(repeat('x', 65536))"),
            ("campaign_id, cause", "repeat('x', 257), cause"),
        )
    ),
    of_the_writer("a ledger.entries", entry("1000000000"), said="shard 0: the entries end at 1000000000"),
    of_the_writer(
        "a ledger.entries", entry().replace("SELECT shard,", "SELECT 9,"), refused=asyncpg.CheckViolationError
    ),
    of_the_writer(
        "a ledger.entries, w ledger.shards",
        entry(),
        MOVE.format("position = position + 1"),
        said="shard 0: the batches end",
    ),
    # Batches.
    of_the_writer("a ledger.batches", batch("0", "5"), refused=BOUND),
    of_the_writer("a ledger.batches", batch("-9", "-5"), refused=BOUND),
    of_the_writer("a ledger.batches", batch("7", "6"), refused=BOUND),
    of_the_writer("a ledger.batches", batch(NEXT, NEXT, root="''"), refused=BOUND),
    of_the_writer("a ledger.batches", batch(NEXT, NEXT), said=r"shard 0: the batches end at \d+, but the lease says"),
    of_the_writer("a ledger.batches", batch("1", "1"), said="shard 0, position 2: the next batch begins at 1"),
    of_the_writer("a ledger.batches", batch("1", "1", shard=9), said="ledger.batches holds rows of shard 9"),
    # Outcomes.
    *(
        of_the_writer("a ledger.outcomes", outcome().replace(column, f"repeat('x', {size})"), refused=BOUND)
        for column, size in (("message", 65_537), ("type", 257), ("code", 257))
    ),
    of_the_writer("a ledger.outcomes", outcome("0"), refused=BOUND),
    of_the_writer("a ledger.outcomes", outcome("-5"), refused=BOUND),
    of_the_writer("a ledger.outcomes", outcome(command="command_id"), refused=TAKEN),
    of_the_writer("a ledger.outcomes", outcome("1"), refused=TAKEN),
    of_the_writer("a ledger.outcomes", outcome(), said=r"shard 0: the outcomes end at \d+, but the lease says"),
    of_the_writer("a ledger.outcomes", outcome(shard=9, sequence="1"), said="ledger.outcomes holds rows of shard 9"),
    of_the_writer(
        "a ledger.outcomes, w ledger.shards",
        outcome(THE_HEAD.format("outcome_sequence + 2")),
        MOVE.format("outcome_sequence = outcome_sequence + 2"),
        said=r"shard 0: the outcome \d+ is missing",
    ),
    of_the_writer(
        "a ledger.outcomes, w ledger.shards",
        outcome(first="false"),
        MOVE.format("outcome_sequence = outcome_sequence + 1"),
        said="the row names|it repeats a decision that was never made",
    ),
    of_the_writer(
        "a ledger.outcomes, w ledger.shards",
        outcome(status="accepted", command="command_id", first="false").replace(" status,", " 'rejected',"),
        MOVE.format("outcome_sequence = outcome_sequence + 1"),
        said="repeated with the answer",
    ),
    *(
        of_the_writer(
            "a ledger.outcomes, w ledger.shards",
            *outcome_with(content),
            said=rf"shard 0, outcome \d+ of command 0{{8}}-.*dead{said}",
        )
        for content, said in UNREADABLE_CONTENTS.items()
    ),
    # Quarantine.
    of_the_writer("a ledger.quarantine", record("-5"), refused=BOUND),
    of_the_writer("a ledger.quarantine", record("0"), refused=BOUND),
    of_the_writer("a ledger.quarantine", record(str(10**18)), refused=BOUND),
    of_the_writer("a ledger.quarantine", record(shard=-1), refused=BOUND),
    of_the_writer("a ledger.quarantine", record(offset=-1), refused=BOUND),
    *(
        of_the_writer("a ledger.quarantine", replayed(*first), refused=BOUND)
        for first in (("-1", "1"), ("0", "0"), ("0", str(10**18)))
    ),
    *(
        of_the_writer("a ledger.quarantine", record().replace("'spend.events'", topic), refused=BOUND)
        for topic in ("'delivery.signals'", "'finance.outcomes'", "E'sp\\x01'", "''")
    ),
    of_the_writer("a ledger.quarantine", record(), said="shard 0: the quarantine ends at"),
    of_the_writer("a ledger.quarantine", record("1", shard=9), said="ledger.quarantine holds rows of shard 9"),
    of_the_writer(
        "a ledger.quarantine, w ledger.shards",
        record(THE_HEAD.format("quarantine_sequence + 2")),
        MOVE.format("quarantine_sequence = quarantine_sequence + 2"),
        said=r"shard 0: the quarantined record \d+ is missing",
    ),
    of_the_writer(
        "a ledger.quarantine, w ledger.shards",
        record(),
        ANOTHER_RECORD,
        unseen=MAKES_IT_UP,
    ),
    *(
        of_the_writer("a ledger.quarantine", large_record(column, value), refused=BOUND)
        for column, value in LARGE_RECORDS.items()
    ),
    # Tables that are written together with them.
    of_the_writer(
        "a ledger.ad_accounts",
        "INSERT INTO ledger.ad_accounts VALUES ('squatted', 0, 'bc-0')",
        said="shard 0: ledger.ad_accounts holds squatted of bc-0, but the entries open it in None",
    ),
    of_the_writer(
        "a ledger.ad_accounts",
        "INSERT INTO ledger.ad_accounts VALUES ('squatted', 9, 'bc-0')",
        said="ledger.ad_accounts holds rows of shard 9",
    ),
    of_the_writer(
        "a ledger.ad_accounts",
        "INSERT INTO ledger.ad_accounts SELECT ad_account_id, 1, 'bc-9' FROM ledger.ad_accounts LIMIT 1",
        refused=TAKEN,
    ),
    *(
        of_the_writer("a ledger.policies", f"INSERT INTO ledger.policies VALUES ('next', {content})", refused=BOUND)
        for content in (
            "'{}'",
            "'[]'",
            "'null'",
            """'{"version": "standard-1"}'""",
            "json_build_object('version', 'next', 'more', repeat('x', 65536))",
        )
    ),
    of_the_writer(
        "a ledger.policies",
        "INSERT INTO ledger.policies VALUES ('next', '{\"version\": \"next\"}')",
        said="Note: ledger.policies: the policy 'next' cannot be read: .* no batch names it",
    ),
    of_the_writer(
        "a ledger.policies",
        """
        INSERT INTO ledger.policies VALUES ('next', '{"version": "next", "ad_account": [], "business_center": []}')
        """,
        unseen="a policy that nothing names",
    ),
    of_the_writer(
        "a ledger.policies", "INSERT INTO ledger.policies SELECT version, content FROM ledger.policies", refused=TAKEN
    ),
    of_the_writer(
        "a ledger.time_zones",
        A_ZONE.format(installed_zones().release, "Antarctica/Troll"),
        said="ledger.time_zones: Antarctica/Troll of the release",
    ),
    of_the_writer(
        "a ledger.time_zones",
        A_ZONE.format("2999a", "Asia/Tokyo"),
        said="Note: time zones of the release 2999a are recorded",
    ),
    of_the_writer("a ledger.time_zones", A_ZONE.format(installed_zones().release, "UTC"), refused=TAKEN),
    *(
        of_the_writer("a ledger.time_zones", f"INSERT INTO ledger.time_zones {rows}", refused=BOUND)
        for rows in (
            "VALUES ('2999a', 'A', decode(repeat('00', 16385), 'hex'))",
            "VALUES ('2999a', repeat('A', 257), '')",
            "VALUES (repeat('2', 257), 'A', '')",
            "SELECT '2999a', 'A' || n, '' FROM generate_series(1, 2001) AS n",
            "SELECT '2999a', 'A' || n, decode(repeat('00', 16384), 'hex') FROM generate_series(1, 257) AS n",
        )
    ),
    # The lease.
    of_the_writer("w ledger.shards", MOVE.format("position = position + 1"), said="shard 0: the entries end at"),
    of_the_writer("w ledger.shards", MOVE.format("position = position - 1"), refused=NOT_ITS_OWN),
    of_the_writer("w ledger.shards", MOVE.format("epoch = epoch - 1"), refused=NOT_ITS_OWN),
    of_the_writer("w ledger.shards", MOVE.format("shard = 9"), refused=NOT_ITS_OWN),
    of_the_writer("w ledger.shards", MOVE.format("ledger_time = ledger_time - interval '1 s'"), refused=NOT_ITS_OWN),
    of_the_writer("w ledger.shards", MOVE.format("outcome_sequence = outcome_sequence - 1"), refused=NOT_ITS_OWN),
    of_the_writer("w ledger.shards", MOVE.format("quarantine_sequence = 0"), refused=NOT_ITS_OWN),
    of_the_writer("w ledger.shards", MOVE.format("spend_offset = -1"), refused=BOUND),
    of_the_writer("w ledger.shards", MOVE.format("frontier = ''"), said="shard 0: the lease's frontier at"),
    of_the_writer(
        "w ledger.shards", MOVE.format("outcome_sequence = outcome_sequence + 1"), said="shard 0: the outcomes end at"
    ),
    of_the_writer("w ledger.shards", MOVE.format("spend_offset = spend_offset + 1000"), unseen=LEAVES_IT_OUT),
    of_the_writer("w ledger.shards", MOVE.format("epoch = epoch + 1, owner = NULL"), unseen=HOLDS_IT_UP),
    of_the_writer("w ledger.shards", MOVE.format("epoch = epoch + 2"), refused=NOT_ITS_OWN),
    of_the_writer("w ledger.shards", MOVE.format("epoch = 9223372036854775807"), refused=NOT_ITS_OWN),
    *(
        of_the_writer("w ledger.shards", MOVE.format(f"ledger_time = '{time}'"), refused=BOUND)
        for time in ("infinity", "294276-12-31", "3000-01-01Z")
    ),
    of_the_writer(
        "w ledger.shards",
        MOVE.format("ledger_time = ledger_time + interval '10 years'"),
        said="Note: shard 0: ledger time is",
    ),
    of_the_writer(
        "X ledger.move_lease(), X ledger.moment()",
        "SELECT ledger.move_lease(shard, epoch, position, spend_offset, command_offset, position + 1, 0, frontier,"
        " spend_offset, command_offset, outcome_sequence, quarantine_sequence, incarnation) FROM ledger.shards",
        refused=NOT_ITS_OWN,
    ),
    # Tables that follow the ledger, or wait for it.
    of_the_writer(
        "a ledger.checkpoints_outcomes",
        f"INSERT INTO ledger.checkpoints_outcomes VALUES ('outcomes', 0, {NEXT_OUTCOME})",
        refused=BOUND,
    ),
    of_the_writer(
        "a ledger.checkpoints_outcomes",
        f"INSERT INTO ledger.checkpoints_outcomes VALUES ('outcomes', 0, {THE_HEAD.format('outcome_sequence')})",
        unseen=LEAVES_IT_OUT,
    ),
    of_the_writer(
        "a ledger.checkpoints_outcomes, w ledger.checkpoints_outcomes",
        "INSERT INTO ledger.checkpoints_outcomes VALUES ('outcomes', 0, 1)",
        "UPDATE ledger.checkpoints_outcomes SET follower = 'balance'",
        refused=BOUND,
    ),
    of_the_writer(
        "a ledger.forwarded",
        "INSERT INTO ledger.forwarded (shard, topic, partition, \"offset\") VALUES (9, 'spend.events', 0, 0)",
        said="ledger.forwarded holds rows of shard 9",
    ),
    of_the_writer(
        "a ledger.forwarded",
        "INSERT INTO ledger.forwarded (shard, topic, partition, \"offset\") VALUES (0, 'spend.events', 0, -1)",
        refused=BOUND,
    ),
    of_the_writer(
        "a ledger.forwarded",
        "INSERT INTO ledger.forwarded (shard, topic, partition, \"offset\") VALUES (0, 'spend.events', 0, 0)",
        unseen=MAKES_IT_UP,
    ),
    *(of_the_writer("a ledger.forwarded", forwarded(**fields), refused=BOUND) for fields in NO_RECORDS),
    *(
        of_the_writer(
            "a ledger.forwarded",
            forwarded(headers=f"'{headers}'"),
            said="the record .* of ledger.forwarded cannot be read: its headers",
        )
        for headers in ("[1]", "[[null, null]]", '[["h", "no base64"]]', '{"h": null}', "[" * 3_000 + "]" * 3_000)
    ),
    of_the_writer(
        "a ledger.forwarded",
        forwarded(replay_shard="0", replay_sequence="77"),
        said="shard 0: the row .* of ledger.forwarded refers to the quarantined record 0-77, which does not",
    ),
    of_the_writer(
        "a ledger.quarantine, w ledger.shards, a ledger.forwarded",
        replayed("0", "1"),
        ANOTHER_RECORD,
        forwarded(replay_shard="0", replay_sequence=THE_HEAD.format("quarantine_sequence")),
        said=r"the row .* of ledger.forwarded refers to the quarantined record 0-\d+, which is a replay itself",
    ),
    *(
        of_the_writer(
            "a ledger.quarantine, w ledger.shards",
            replayed(shard, sequence),
            ANOTHER_RECORD,
            said=rf"the row \d+ of ledger.quarantine refers to the quarantined record {shard}-\d+, which {wrong}",
        )
        for shard, sequence, wrong in (
            ("0", "77", "does not exist"),
            ("9", "1", "does not exist"),
            ("0", NEXT_RECORD, "is a replay itself"),
        )
    ),
    of_the_writer("d ledger.forwarded", "DELETE FROM ledger.forwarded", unseen=LEAVES_IT_OUT),
    of_the_writer(
        "a ledger.snapshots, w ledger.snapshots", "INSERT INTO ledger.snapshots VALUES (0, -1, 3, '')", refused=BOUND
    ),
    of_the_writer(
        "a ledger.snapshots", "INSERT INTO ledger.snapshots VALUES (0, 1, 3, '')", unseen="a forged snapshot"
    ),
    of_the_writer(
        "a ledger.snapshots",
        f"INSERT INTO ledger.snapshots VALUES (0, 1, {snapshot_pieces.FORMAT}, '\\x{A_LONG_LINE.hex()}')",
        unseen="a forged snapshot",
    ),
    of_the_writer(
        "a ledger.allocators, w ledger.allocators, d ledger.allocators",
        "INSERT INTO ledger.allocators VALUES ('nobody', now())",
        "UPDATE ledger.allocators SET beat = 0",
        "DELETE FROM ledger.allocators",
        unseen=HOLDS_IT_UP,
    ),
    of_the_writer(
        "a ledger.shard_states, w ledger.shard_states, d ledger.shard_states",
        "INSERT INTO ledger.shard_states VALUES (0, 'nobody', 'writing', '', 0, NULL, now(), now())",
        "UPDATE ledger.shard_states SET state = 'stopped'",
        "DELETE FROM ledger.shard_states",
        unseen=HOLDS_IT_UP,
    ),
    *(
        of_the_writer("a ledger.shard_states", f"INSERT INTO ledger.shard_states VALUES ({row})", refused=BOUND)
        for row in (
            "0, repeat('x', 1025), '', '', 0, NULL, now(), now()",
            "0, '', repeat('x', 65), '', 0, NULL, now(), now()",
            "0, '', '', repeat('x', 8001), 0, NULL, now(), now()",
        )
    ),
    of_the_writer(
        "a ledger.allocators", "INSERT INTO ledger.allocators VALUES (repeat('x', 1025), now())", refused=BOUND
    ),
    of_the_writer("X ledger.end_sessions()", "SELECT ledger.end_sessions('everybody')", unseen=HOLDS_IT_UP),
    of_the_writer(
        "X ledger.make_quarantine_part()",
        "SELECT ledger.make_quarantine_part(now() + interval '1 month')",
        unseen=HOLDS_IT_UP,
    ),
    *(
        of_the_writer("X ledger.make_quarantine_part()", f"SELECT ledger.make_quarantine_part({moment})", refused=BOUND)
        for moment in ("now() + interval '26 months'", "'2999-01-01'", "'infinity'", "'-infinity'", "'1969-12-31Z'")
    ),
    of_the_writer("X ledger.note_offset_skipped()", skipped(), unseen="a skip that never happened"),
    *(of_the_writer("X ledger.note_offset_skipped()", note, refused=BOUND) for note in NO_NOTES),
    of_the_writer("a ledger.resting_campaigns", at_rest("0", "0"), refused=BOUND),
    of_the_writer(
        "a ledger.resting_campaigns", at_rest("9", "1"), said="ledger.resting_campaigns holds rows of shard 9"
    ),
    of_the_writer("a ledger.resting_campaigns", at_rest("0", NEXT), said="shard 0: a campaign rests at position"),
    of_the_writer(
        "a ledger.resting_campaigns",
        at_rest(
            position="(SELECT max(last_position) - 1 FROM ledger.batches WHERE shard = 0 AND"
            " last_position > first_position)"
        ),
        said="the resting campaign .* is kept where no batch ends",
    ),
    of_the_writer(
        "a ledger.resting_campaigns",
        at_rest(account="'nobody'"),
        said="the resting campaign .* of nobody belongs to no ad account of this shard",
    ),
    *(
        of_the_writer(
            "a ledger.resting_campaigns",
            at_rest(state=state),
            said="the resting campaign .* cannot be read: it was kept as",
        )
        for state in (
            "[]",
            "{}",
            "[" * 3_000 + "]" * 3_000,
            '{"order": 1, "causes": null, "budget": {}}',
            '{"order": 1, "causes": 0, "budget": {"amount": 1.5}}',
            '{"order": 1, "causes": 0, "budget": {"days": [1]}}',
            '{"order": 1, "causes": 0, "budget": {}, "more": 1}',
            '{"order": ' + "9" * 5_000 + ', "causes": 0, "budget": {}}',
        )
    ),
    of_the_writer(
        "a ledger.resting_campaigns",
        at_rest(),
        said="the resting campaign .* was kept as .*, but the entries give",
    ),
    # The others.
    *of_a_follower("balance"),
    *of_a_follower("incentives"),
    *(each for each in of_a_follower("signals") if each.refused),
    Hostile(SIGNALS, ("w ledger.checkpoints_signals",), (NO_MORE_SIGNALS, AS_IF_PUBLISHED), unseen=LEAVES_A_SIGNAL_OUT),
    Hostile(SIGNALS, (), (NO_MORE_SIGNALS,), said="signals.latest .*: the read model has no such row"),
    *(
        Hostile(SIGNALS, (), (f"INSERT INTO signals.incarnations VALUES {row}",), unseen=unseen)
        for row, unseen in (
            ("(0, 'this broker', 1000)", KEEPS_AN_OLD_SIGNAL),
            ("(0, 'the next broker', 0)", KEEPS_THE_STATE_FROM_A_BROKER),
        )
    ),
    Hostile(SIGNALS, (), ("INSERT INTO signals.incarnations VALUES (0, 'this broker', -1)",), BOUND),
    Hostile(SIGNALS, (), ("INSERT INTO signals.latest VALUES (0, 'zz', '', 0)",), BOUND),
    Hostile(
        BALANCE,
        (),
        ("UPDATE balance.pockets SET amount = '0.5'",),
        said=r"balance.pockets .* as of shard 0, position \d+: the read model holds amount",
    ),
    *(
        Hostile(BALANCE, (), (f"UPDATE balance.pockets SET amount = '{amount}'",), BOUND)
        for amount in ("NaN", "Infinity", "-Infinity", "1e100")
    ),
    Hostile(INCENTIVES, (), ("UPDATE incentives.cash_spend SET amount = 'NaN'",), BOUND),
    *(
        Hostile(role, (), (statement,), BOUND)
        for role, statement in (
            (BALANCE, "INSERT INTO balance.left_out VALUES ('zz', 'zz', repeat('x', 1025))"),
            (BALANCE, "UPDATE balance.pauses SET causes = ARRAY[repeat('x', 1048577)]"),
            (SIGNALS, "INSERT INTO signals.latest VALUES (0, 'zz', repeat('x', 1025), 1)"),
        )
    ),
    Hostile(
        API,
        ("X ledger.replay_quarantined()",),
        ("SELECT ledger.replay_quarantined('{0}', '{1}', '{9}', now(), 10)",),
        said="ledger.forwarded holds rows of shard 9",
    ),
    Hostile(
        API,
        ("X ledger.replay_quarantined()",),
        ("SELECT ledger.replay_quarantined('{0}', '{1}', '{0}', 'infinity', 10)",),
        BOUND,
    ),
    *(
        Hostile(role, (), (statement,), BOUND)
        for role, statement in (
            (INCENTIVES, "INSERT INTO incentives.cash_spend VALUES ('zz', 'infinity', 1)"),
            (BALANCE, "INSERT INTO balance.automatic_allocation VALUES ('zz', 'infinity')"),
            (BALANCE, "INSERT INTO balance.business_center_days VALUES ('zz', '-infinity', 0, 0)"),
            (WRITER, "INSERT INTO ledger.allocators VALUES ('nobody', 'infinity')"),
        )
    ),
]


# A row of a shard that does not exist, in each table with a shard.
OF_NO_SHARD = {
    "ledger.entries": entry("1").replace("SELECT shard,", "SELECT 77,"),
    "ledger.batches": batch("1", "1", shard=77),
    "ledger.outcomes": outcome("1", shard=77),
    "ledger.ad_accounts": "INSERT INTO ledger.ad_accounts VALUES ('squatted', 77, 'bc-0')",
    "ledger.resting_campaigns": at_rest("77", "1"),
    "ledger.shards": "INSERT INTO ledger.shards (shard) VALUES (77)",
    "ledger.shard_states": "INSERT INTO ledger.shard_states VALUES (77, 'x', 'writing', '', 0, NULL, now(), now())",
    "ledger.snapshots": "INSERT INTO ledger.snapshots VALUES (77, 1, 3, '')",
    "ledger.quarantine": record("1", shard=77),
    "ledger.quarantine_replays": "INSERT INTO ledger.quarantine_replays VALUES (77, 1, now(), now())",
    "ledger.forwarded": forwarded(shard="77"),
    "ledger.checkpoints": "INSERT INTO ledger.checkpoints VALUES ('signals', 77)",
}
WITH_A_SHARD = """
    SELECT c.oid::regclass::text FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE c.relnamespace = 'ledger'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
        AND a.attname = 'shard'
"""


@pytest.fixture(scope="module")
async def original(postgres: Postgres) -> AsyncIterator[str]:
    """Yield a database with a folded ledger that no test changes."""
    async with fresh_database(postgres.url) as url:
        await migrate(Settings(database_url=url, shards=4))
        await write_random_ledger(url, seed=11, steps=60)
        await fold(url)
        connection = await asyncpg.connect(url)
        await connection.execute("INSERT INTO ledger.checkpoints SELECT 'signals', shard FROM ledger.shards")
        await connection.execute("SELECT ledger.make_month('quarantine_replays', date_trunc('month', now(), 'UTC'))")
        await connection.close()
        yield url


async def audit(url: str, by: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the difference that an audit found, or its notes. Empty if it has neither."""
    capsys.readouterr()
    await {"verify": verify, "replay": replay}[by](Settings(database_url=url), as_json=True)
    report = json.loads(capsys.readouterr().out)
    found: str = report["difference"] or "".join(f"Note: {note}" for note in report["notes"])
    return found


async def act(url: str, case: Hostile) -> None:
    """Execute the statements as their role, all or none."""
    connection = await asyncpg.connect(url, server_settings={"role": case.role, "timezone": "UTC"})
    try:
        async with connection.transaction():
            for statement in case.statements:
                await connection.execute(statement)
    finally:
        await connection.close()


async def test_an_untouched_ledger_gives_no_difference_and_no_note(
    original: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await audit(original, "verify", capsys) == await audit(original, "replay", capsys) == ""


@pytest.mark.parametrize("case", [case for case in CASES if case.refused], ids=lambda case: case.statements[-1][:60])
async def test_the_server_refuses_the_hostile_writes_that_it_can_detect(case: Hostile, original: str) -> None:
    assert case.refused is not None
    with pytest.raises(case.refused):
        await act(original, case)


@pytest.mark.parametrize("case", [case for case in CASES if case.said], ids=lambda case: case.statements[-1][:60])
async def test_an_audit_names_the_hostile_writes_that_the_server_accepts(
    case: Hostile, original: str, postgres: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    async with copied(original, postgres, "hostile") as url:
        await act(url, case)
        found = await audit(url, "verify", capsys)
    assert re.search(case.said, found), found


@pytest.mark.parametrize("case", [case for case in CASES if case.unseen], ids=lambda case: case.statements[-1][:60])
async def test_the_security_page_admits_the_hostile_writes_that_no_audit_can_detect(
    case: Hostile, original: str, postgres: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    assert case.unseen in SECURITY
    async with copied(original, postgres, "hostile") as url:
        await act(url, case)
        assert await audit(url, "verify", capsys) == ""
        await load_all(url)


async def test_every_table_with_a_shard_is_tried(original: str) -> None:
    connection = await asyncpg.connect(original)
    try:
        assert {row[0] for row in await connection.fetch(WITH_A_SHARD)} == set(OF_NO_SHARD)
    finally:
        await connection.close()


@pytest.mark.parametrize("table", OF_NO_SHARD)
async def test_a_row_of_a_shard_that_does_not_exist_is_refused_or_named(
    table: str, original: str, postgres: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    """This holds even for the owner."""
    async with copied(original, postgres, "hostile") as url:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(OF_NO_SHARD[table])
        except BOUND:
            return
        finally:
            await connection.close()
        found = await audit(url, "verify", capsys)
    if table == "ledger.shards":
        assert "77]: one is missing" in found
    else:
        assert f"{table} holds rows of shard 77, but there are {SHARDS} shards" in found


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        (
            ("INSERT INTO ledger.quarantine_replays VALUES (0, 77, now(), now())",),
            "shard 0: the row 77 of ledger.quarantine_replays refers to the quarantined record 0-77, which does not",
        ),
        (
            (
                outcome().replace("zones_release FROM", "zones_release, NULL, 'nowhere' FROM"),
                MOVE.format("outcome_sequence = outcome_sequence + 1"),
            ),
            "ledger.outcomes names the policy 'nowhere', which ledger.policies does not hold",
        ),
        (
            (
                entry(),
                batch(NEXT, NEXT).replace("policy_version", "'nowhere'"),
                MOVE.format("position = position + 1"),
            ),
            "ledger.batches names the policy 'nowhere', which ledger.policies does not hold",
        ),
    ],
    ids=("replays", "outcomes", "batches"),
)
async def test_a_dangling_reference_is_named(
    statements: tuple[str, ...], said: str, original: str, postgres: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    async with copied(original, postgres, "hostile") as url:
        connection = await asyncpg.connect(url)
        for statement in statements:
            await connection.execute(statement)
        await connection.close()
        found = await audit(url, "verify", capsys)
    assert said in found


async def test_any_number_of_policies_is_checked_and_only_a_few_are_named(
    original: str, postgres: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    many = (
        "INSERT INTO ledger.policies SELECT v, json_build_object('version', v, 'note', repeat('x', 60000))"
        " FROM (SELECT 'x-' || n AS v FROM generate_series(1, 500) n) AS versions"
    )
    async with copied(original, postgres, "hostile") as url:
        await act(url, Hostile(WRITER, (), (many,)))
        found = await audit(url, "verify", capsys)
    assert found.count("cannot be read: ") == MOST_NOTES
    assert f"500 policies cannot be read, the first {MOST_NOTES} are named here" in found


# Each release has all the bytes that one may have.
RELEASES = (
    "INSERT INTO ledger.time_zones SELECT 'zz' || r, 'A' || n, decode(repeat('00', 16384), 'hex')"
    " FROM generate_series(1, 256) AS n, generate_series(1, 20) AS r"
)


async def test_releases_of_batches_behind_the_lease_are_not_read(
    original: str, postgres: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    batches = (
        A_BATCH.format(shard=0, first=1, last="9223372036854770000 + r", root="root")
        .replace("zones_release FROM", "'zz' || r FROM")
        .replace("LIMIT 1", "LIMIT 20")
        .replace("FROM ledger.batches", "FROM generate_series(1, 20) AS r, ledger.batches")
    )
    async with copied(original, postgres, "hostile") as url:
        await act(url, Hostile(WRITER, (), (RELEASES, batches)))
        await load_all(url)
        found = await audit(url, "verify", capsys)
    assert re.search(r"the batches end at \d+, but the lease says", found)


# As many zones as a release may have, without any bytes.
EMPTY_ZONES = (
    "INSERT INTO ledger.time_zones SELECT 'zz' || r, repeat('A', 250) || n, ''"
    " FROM generate_series(1, 2000) AS n, generate_series(1, 70) AS r"
)


@pytest.mark.parametrize(("releases", "read"), [(RELEASES, 15), (EMPTY_ZONES, 59)])
async def test_too_many_time_zones_stop_the_load_and_are_reported(
    releases: str, read: int, original: str, postgres: Postgres
) -> None:
    async with copied(original, postgres, "hostile") as url:
        await act(url, Hostile(WRITER, (), (releases,)))
        connection = await asyncpg.connect(url)
        try:
            names = [f"zz{number}" for number in range(1, read + 3)]
            assert (await recorded_zones(connection, 0, 0, 0, names[:read])).keys() >= {*names[:read]}
            with pytest.raises(CannotGoOnError, match="'drawdown audit verify' names what was forged"):
                await recorded_zones(connection, 0, 0, 0, names)
        finally:
            await connection.close()


async def test_a_policy_longer_than_any_valid_one_is_not_read(original: str, postgres: Postgres) -> None:
    async with copied(original, postgres, "hostile") as url:
        long = (
            "INSERT INTO ledger.policies VALUES ('next', json_build_object('version', 'next', 'n', repeat('x', 5000)))"
        )
        await act(url, Hostile(WRITER, (), (long,)))
        connection = await asyncpg.connect(url)
        try:
            with pytest.raises(ReplayDiffersError, match="'next' is not valid: it is longer than any policy"):
                await policies(connection, ["next", STANDARD.version])
        finally:
            await connection.close()


@asynccontextmanager
async def forged_by_the_writer(original: str, postgres: Postgres, statement: str) -> AsyncIterator[asyncpg.Connection]:
    """Yield a connection to a copy of the ledger, after this statement of the writer's role."""
    async with copied(original, postgres, "hostile") as url:
        await act(url, Hostile(WRITER, (), (statement,)))
        connection = await asyncpg.connect(url)
        await plain_types(connection)
        try:
            yield connection
        finally:
            await connection.close()


@asynccontextmanager
async def little_memory() -> AsyncIterator[None]:
    """Assert that the block never holds as much as ten megabytes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


async def test_what_is_decided_already_is_read_little_by_little(original: str, postgres: Postgres) -> None:
    """A command may name any number of outcomes, and a forged one has a mebibyte."""
    forged = (
        "INSERT INTO ledger.outcomes (shard, sequence, command_id, first, business_center_id, type, content, status,"
        " code, message, first_position, position, recorded_at, via, rules_version, zones_release, policy_version)"
        " SELECT 0, outcome_sequence + n, uuid_of(n), true, 'bc', 'deposit_cash',"
        " json_build_object('x', repeat('y', 1000000)), 'accepted', NULL, '', 1, 1, now(), 'api', 4, '', 'standard-1'"
        " FROM ledger.shards, generate_series(1, 60) AS n WHERE shard = 0"
    ).replace("uuid_of(n)", "('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid")
    ids = [UUID(int=int(str(number), 16)).bytes for number in range(1, 61)]
    async with forged_by_the_writer(original, postgres, forged) as connection, little_memory():
        known = await looking_up._decided_commands(connection, 0, ids)
    assert {command.meaning for command in known.values()} == {None}
    assert len(known) == 60


async def test_forged_entries_behind_the_lease_make_no_grant(original: str, postgres: Postgres) -> None:
    forged = (
        "INSERT INTO ledger.entries (shard, position, amount, occurred_at, recorded_at, source_event_id, part, kind,"
        " holder, pocket, grant_id, business_center_id, details) SELECT 0, 1000000000000 + n, 1, now(), now(),"
        " gen_random_uuid(), 0, 'grant', 'business_center', 'voucher', 'v', 'bc', '[]' FROM generate_series(1, 9) AS n"
    )
    async with forged_by_the_writer(original, postgres, forged) as connection:
        with pytest.raises(TypeError):
            await read_grants(connection, 0, [("bc", "voucher", "v")])
        assert await read_grants(connection, 0, [("bc", "voucher", "v")], before=1_000_000) == {}


async def test_of_an_event_only_the_details_of_its_first_entry_are_read(original: str, postgres: Postgres) -> None:
    """Further entries of an event have no details, and forged ones have 60,000 characters each."""
    forged = (
        "INSERT INTO ledger.entries (shard, position, amount, occurred_at, recorded_at, source_event_id, part, kind,"
        " holder, pocket, cause, business_center_id, ad_account_id, campaign_id, day, period, details)"
        " SELECT 0, 1000000000000 + n, 1, now(), now(), '00000000-0000-0000-0000-000000000009', n, 'cash_debit',"
        " 'business_center', 'cash', 'x', 'bc', 'account', 'campaign', '2026-01-01', '2026-01-01',"
        " json_build_object('reason', 'first', 'x', repeat('y', CASE n WHEN 0 THEN 1 ELSE 60000 END))"
        " FROM generate_series(0, 300) AS n"
    )
    async with forged_by_the_writer(original, postgres, forged) as connection, little_memory():
        found = await read_events(connection, 0, [1_000_000_000_000], lambda _: "USD")
    (event,) = found.values()
    assert (event[4], event[8]) == (301, "first")


async def load_all(url: str) -> None:
    """Load every shard, as its next owner would."""
    connection = await asyncpg.connect(url, server_settings={"timezone": "UTC"})
    try:
        await plain_types(connection)
        for lease in await claim(connection, "heir", SHARDS):
            await snapshots.load(connection, lease, STANDARD, deduplication_days=7)
    finally:
        await connection.close()


async def test_every_right_to_write_into_the_ledger_is_tried(original: str) -> None:
    tried = {(case.role, right) for case in CASES for right in case.rights}
    connection = await asyncpg.connect(original)
    try:
        held = {each for role in SERVICE_ROLES for each in await _rights(connection, role)}
    finally:
        await connection.close()
    assert tried == held


async def _rights(connection: asyncpg.Connection, role: str) -> set[tuple[str, str]]:
    tables = await connection.fetch(
        "SELECT oid, oid::regclass::text AS name FROM pg_class WHERE relnamespace = 'ledger'::regnamespace"
        " AND relkind IN ('r', 'p') AND NOT relname ~ '^entries_'"
    )
    rights = set()
    for table in tables:
        for letter, right in WRITES.items():
            if await connection.fetchval(
                "SELECT has_table_privilege($1::text, $2::oid, $3)", role, table["oid"], right
            ):
                rights.add((role, f"{letter} {table['name']}"))
    functions = await connection.fetch(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'ledger'::regnamespace"
        " AND has_function_privilege($1::text, oid, 'EXECUTE')",
        role,
    )
    return rights | {(role, f"X ledger.{row[0]}()") for row in functions}
