"""`audit replay` and `audit verify` on a ledger with everything in it: they pass if it is whole, and say where it was
tampered with.

The superuser tampers, with the append-only triggers switched off and on again, which none of our roles could do.
"""

import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from drawdown.deployment.migrate import migrate
from services.auditor.checks.constraints import WITH_IDS, WITH_SIZES
from services.auditor.cli import replay, verify
from services.auditor.tables import TABLES
from services.balance.service import FOLLOWER as BALANCE
from services.incentives.service import FOLLOWER as INCENTIVES
from shared.ledger import replay as replaying
from shared.ledger.decoding import copy_entries, split_rows
from shared.ledger.encoding import FIELDS
from shared.ledger.follow import Follower
from shared.ledger.merkle import CompactRange, leaf_hashes
from shared.runtime.settings import Settings
from tests.integration.audit_ledger import fold, write_random_ledger
from tests.integration.followers_ledger import TRIGGERS
from tests.servers import Postgres, fresh_database

# It uses PostgreSQL alone, which is the same version in a container, where hundreds of databases would take minutes.
pytestmark = pytest.mark.embedded
EVERY_KIND = {
    *("voucher_debit", "ad_credit_debit", "cash_debit", "credit_debit", "business_center_draw", "overdelivery"),
    *("reversal", "forfeit", "deposit", "grant", "expiry", "allocation_out", "allocation_in", "transfer_out"),
    *("transfer_in", "credit_limit_change", "credit_repayment", "business_center_opened", "ad_account_opened"),
    *("automatic_allocation_enabled", "budget_set", "budget_synced", "budget_reset", "campaign_budget_set"),
    *("largest_spend_set", "pause", "resume"),
}
A_SPEND = (
    "(SELECT min(position) FROM ledger.entries WHERE shard = 0 AND amount < 0 AND part = 0 AND day IS NOT NULL"
    " AND reverses IS NULL)"
)
NEXT_BATCH = """
    INSERT INTO ledger.batches SELECT 0, s.position + 1, s.position + 1, s.ledger_time, b.policy_version, b.root,
        b.epoch, b.spend_offset, b.command_offset, b.rules_version, b.zones_release
        FROM ledger.shards s JOIN ledger.batches b ON b.shard = s.shard AND b.last_position = s.position
        WHERE s.shard = 0
"""


@pytest.fixture(scope="module")
async def original(postgres: Postgres) -> AsyncIterator[str]:
    """Yield a database with a folded ledger that no test changes."""
    async with fresh_database(postgres.url) as url:
        await migrate(Settings(database_url=url, shards=4))
        await write_random_ledger(url, seed=5, steps=700)
        await fold(url)
        yield url


@contextlib.asynccontextmanager
async def copied(original: str, postgres: Postgres, name: str) -> AsyncIterator[str]:
    """Yield a copy of a database."""
    admin = await asyncpg.connect(postgres.url)
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {original.rpartition('/')[2]} STRATEGY file_copy")
        yield f"{original.rpartition('/')[0]}/{name}"
    finally:
        await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await admin.close()


@pytest.fixture
async def copy(original: str, postgres: Postgres) -> AsyncIterator[str]:
    """Yield a copy of the ledger, to tamper with."""
    async with copied(original, postgres, "tampered") as url:
        yield url


async def tamper(url: str, *statements: str) -> int:
    """Execute statements while the triggers are off. Return how many rows the last one changed."""
    assert statements
    connection = await asyncpg.connect(url)
    try:
        triggers = await connection.fetch(TRIGGERS)
        for table, trigger in triggers:
            await connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER {trigger}")
        for statement in statements:
            status = await connection.execute(statement)
        for table, trigger in triggers:
            await connection.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger}")
        return int(status.split()[-1])
    finally:
        await connection.close()


async def fetch(url: str, query: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url)
    try:
        rows: list[asyncpg.Record] = await connection.fetch(query)
        return rows
    finally:
        await connection.close()


async def difference(url: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the difference that replay finds. It must find one."""
    capsys.readouterr()
    assert await replay(Settings(database_url=url), as_json=True) == 1
    found: str = json.loads(capsys.readouterr().out)["difference"]
    return found


async def chain_is_broken(url: str, capsys: pytest.CaptureFixture[str]) -> bool:
    """Return whether the first part of verify finds a difference, without deciding again."""
    code = await verify(Settings(database_url=url), as_json=True, chain_only=True)
    capsys.readouterr()
    return code == 1


async def test_entries_are_read_in_portions_bounded_by_bytes(
    original: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaying, "MOST_GROUP_BYTES", 1)
    assert await replay(Settings(database_url=original)) == 0, "one batch at a time"
    assert not await chain_is_broken(original, capsys)
    monkeypatch.setattr(replaying, "MOST_BATCH_BYTES", 5_000)
    told = "the batch has more than 0 MiB, which no writer writes at once"
    assert re.search(rf"^shard \d, position \d+ to \d+: {told}$", await difference(original, capsys))
    assert await verify(Settings(database_url=original), chain_only=True) == 1
    assert told in capsys.readouterr().out


async def reseal(url: str, shard: int = 0) -> None:
    """Make all roots and the lease fit the entries again, as an owner of the database could do."""
    connection = await asyncpg.connect(url)
    try:
        position = await connection.fetchval("SELECT position FROM ledger.shards WHERE shard = $1", shard)
        rows = split_rows(await copy_entries(connection, shard, 1, position))
        ends = await connection.fetch(
            "SELECT last_position FROM ledger.batches WHERE shard = $1 ORDER BY last_position", shard
        )
    finally:
        await connection.close()
    tree = CompactRange()
    statements = []
    for (last,) in ends:
        tree.append(leaf_hashes(rows[tree.size : last]))
        root = f"'\\x{tree.root().hex()}'"
        statements.append(f"UPDATE ledger.batches SET root = {root} WHERE shard = {shard} AND last_position = {last}")
    frontier = tree.frontier().hex()
    await tamper(url, *statements, f"UPDATE ledger.shards SET frontier = '\\x{frontier}' WHERE shard = {shard}")


# ---- Whole ------------------------------------------------------------------------------------------------------


async def test_an_untouched_ledger_passes_and_the_report_names_the_checks(
    original: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await replay(Settings(database_url=original), as_json=True) == 0
    report = json.loads(capsys.readouterr().out)
    (counts,) = await fetch(
        original,
        """
        SELECT (SELECT count(*) FROM ledger.entries) AS entries, (SELECT count(*) FROM ledger.batches) AS batches,
            (SELECT count(*) FROM ledger.outcomes WHERE first AND status = 'accepted') AS commands_accepted,
            (SELECT count(*) FROM ledger.outcomes WHERE first AND status = 'rejected') AS commands_refused,
            (SELECT count(*) FROM ledger.outcomes WHERE NOT first) AS outcomes_repeated,
            (SELECT count(*) FROM ledger.quarantine) AS quarantined,
            (SELECT count(*) FROM ledger.entries WHERE part = 0 AND day IS NOT NULL) AS events,
            (SELECT count(DISTINCT reverses) FROM ledger.entries) AS reversed_spends,
            (SELECT count(*) FROM balance.business_centers) AS business_centers
        """,
    )
    assert (report["passed"], report["difference"]) == (True, None)
    assert {name: report["checked"][name] for name in counts.keys()} == dict(counts)  # noqa: SIM118
    assert min(counts.values()) > 0
    assert report["entries_per_second"] > 0
    money = {name: float(amount) for name, amount in report["money"].items()}
    assert money["in"] == pytest.approx(money["held"] + money["billed"] + money["forfeited"])
    assert min(money.values()) > 0
    ends = await fetch(
        original, "SELECT DISTINCT ON (shard) shard, last_position, root FROM ledger.batches ORDER BY 1, 2 DESC"
    )
    roots = {(each["shard"], each["position"]): each["root"] for each in report["roots"]}
    assert {(row[0], row[1]): row[2].hex() for row in ends}.items() <= roots.items()


async def test_the_ledger_of_these_tests_holds_every_kind_of_entry(original: str) -> None:
    assert {row[0] for row in await fetch(original, "SELECT DISTINCT kind FROM ledger.entries")} == EVERY_KIND


async def test_the_tested_ledger_contains_an_account_refused_because_of_another_shard(original: str) -> None:
    """The shard alone is not enough to decide such a refusal."""
    elsewhere = await fetch(
        original,
        "SELECT o.content ->> 'ad_account_id' FROM ledger.outcomes o JOIN ledger.ad_accounts a"
        " ON a.ad_account_id = o.content ->> 'ad_account_id' AND a.shard <> o.shard"
        " WHERE o.type = 'open_ad_account' AND o.code = 'already_exists'",
    )
    assert elsewhere


async def test_verify_passes_and_gives_the_same_roots(original: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(database_url=original)
    assert await replay(settings, as_json=True) == 0
    replayed = json.loads(capsys.readouterr().out)
    assert await verify(settings, as_json=True) == 0
    verified = json.loads(capsys.readouterr().out)
    assert verified["roots"] == replayed["roots"]
    assert verified["checked"]["entries"] == replayed["entries"] == verified["entries"]


async def test_the_text_report_says_the_same_as_the_json_report(
    original: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await replay(Settings(database_url=original)) == 0
    said = capsys.readouterr().out
    assert "entries decided again and the same, byte for byte" in said
    assert re.search(r"audit replay: [\d,]+ entries in [\d.]+ s, [\d,]+ entries/s\nNo difference\.\n$", said)


async def test_followers_that_are_behind_are_compared_at_their_checkpoint(
    postgres: Postgres, capsys: pytest.CaptureFixture[str]
) -> None:
    async with fresh_database(postgres.url) as url:
        await migrate(Settings(database_url=url, shards=4))
        await write_random_ledger(url, seed=3, steps=60)
        for follower, length in ((BALANCE, 31), (INCENTIVES, 7)):
            await fold(url, Follower(follower.name, follower.fold, longest_range=length), steps=2)
        assert await replay(Settings(database_url=url), as_json=True) == 0
        capsys.readouterr()
        await tamper(url, "UPDATE balance.pauses SET causes = '{}' WHERE causes <> '{}'")
        found = await difference(url, capsys)
        assert re.match(r"balance\.pauses ad_account_id \S+, campaign_id .*, as of shard \d, position 62: ", found)


# ---- Entries ----------------------------------------------------------------------------------------------------


async def test_an_edited_amount_is_found(copy: str, capsys: pytest.CaptureFixture[str]) -> None:
    await tamper(copy, f"UPDATE ledger.entries SET amount = amount - 1 WHERE shard = 0 AND position = {A_SPEND}")
    ((position, first, last),) = await fetch(
        copy,
        f"SELECT p, first_position, last_position FROM {A_SPEND} AS s (p) JOIN ledger.batches"
        " ON shard = 0 AND p BETWEEN first_position AND last_position",
    )
    assert first <= position <= last
    found = await difference(copy, capsys)
    assert re.match(rf"shard 0, position ({first} to {last}|{position})\b", found)
    assert await chain_is_broken(copy, capsys)


async def test_an_edited_amount_is_found_even_if_all_roots_were_recomputed(
    copy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await tamper(copy, f"UPDATE ledger.entries SET amount = amount - 1 WHERE shard = 0 AND position = {A_SPEND}")
    await reseal(copy)
    assert not await chain_is_broken(copy, capsys)
    found = await difference(copy, capsys)
    assert await verify(Settings(database_url=copy), as_json=True) == 1
    assert json.loads(capsys.readouterr().out)["difference"] == found


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("cause", "'campaign_budget'"),
        ("occurred_at", "occurred_at + interval '1 microsecond'"),
        ("day", "day + 1"),
        ("grant_id", "'another'"),
        ("part", "part + 1"),
        ("details", """'{"causes": []}'"""),
        ("recorded_at", "recorded_at + interval '1 microsecond'"),
    ],
)
async def test_every_field_of_an_entry_is_covered(
    copy: str, capsys: pytest.CaptureFixture[str], column: str, value: str
) -> None:
    await tamper(copy, f"UPDATE ledger.entries SET {column} = {value} WHERE shard = 0 AND position = {A_SPEND}")
    assert (await difference(copy, capsys)).startswith("shard 0, position ")
    assert await chain_is_broken(copy, capsys)


async def test_a_lost_entry_is_found(copy: str, capsys: pytest.CaptureFixture[str]) -> None:
    await tamper(copy, "DELETE FROM ledger.entries WHERE shard = 0 AND position = 37")
    assert await difference(copy, capsys) == "shard 0, position 37: the entry is missing"
    assert await chain_is_broken(copy, capsys)


async def test_a_truncated_ledger_is_found(copy: str, capsys: pytest.CaptureFixture[str]) -> None:
    await tamper(
        copy, "DELETE FROM ledger.entries e USING ledger.shards s WHERE e.shard = 0 AND s.shard = 0"
        " AND e.position = s.position"
    )  # fmt: skip
    assert re.match(r"shard 0: the entries end at \d+, but the lease says \d+", await difference(copy, capsys))
    assert await chain_is_broken(copy, capsys)


async def test_two_swapped_entries_are_found(copy: str, capsys: pytest.CaptureFixture[str]) -> None:
    await tamper(
        copy,
        "UPDATE ledger.entries SET position = 1000000 WHERE shard = 0 AND position = 20",
        "UPDATE ledger.entries SET position = 20 WHERE shard = 0 AND position = 21",
        "UPDATE ledger.entries SET position = 21 WHERE shard = 0 AND position = 1000000",
    )
    assert re.match(r"shard 0, position (\d+ to )?\d+", await difference(copy, capsys))
    assert await chain_is_broken(copy, capsys)


async def test_a_duplicated_spend_is_found_even_with_its_own_batch_and_roots(
    copy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A spend is appended again unchanged, under an index that only claims to be unique."""
    index = "ledger.entries_0_source_event_id_idx"
    others = [f"e.{name}" for name in FIELDS if name not in ("shard", "position", "recorded_at")]
    columns = [name.removeprefix("e.") for name in others]
    await tamper(
        copy,
        f"DROP INDEX {index}",
        "CREATE INDEX entries_0_source_event_id_idx ON ledger.entries_0 (source_event_id)"
        " WHERE part = 0 AND day IS NOT NULL",
        f"INSERT INTO ledger.entries (shard, position, recorded_at, {', '.join(columns)})"
        f" SELECT 0, s.position + 1, s.ledger_time, {', '.join(others)}"
        f" FROM ledger.entries e JOIN ledger.shards s USING (shard) WHERE shard = 0 AND e.position = {A_SPEND}",
        NEXT_BATCH,
        "UPDATE ledger.shards SET position = position + 1 WHERE shard = 0",
    )
    await reseal(copy)
    assert await difference(copy, capsys) == "ledger.entries_0: the unique index of sources is missing or not valid"
    await tamper(copy, f"UPDATE pg_index SET indisunique = true WHERE indexrelid = '{index}'::regclass")
    ((spend, position),) = await fetch(copy, f"SELECT {A_SPEND}, position FROM ledger.shards WHERE shard = 0")
    said = rf"shard 0, position {position}: the source \S+ is in the ledger twice, first at {spend}"
    assert re.fullmatch(said, await difference(copy, capsys))


# ---- Batches, leases, guards ------------------------------------------------------------------------------------


async def test_an_edited_root_is_found(copy: str, capsys: pytest.CaptureFixture[str]) -> None:
    last = "(SELECT last_position FROM ledger.batches WHERE shard = 2 ORDER BY 1 OFFSET 5 LIMIT 1)"
    ((position,),) = await fetch(copy, f"SELECT {last[1:-1].removeprefix('SELECT ')}")
    await tamper(
        copy,
        f"UPDATE ledger.batches SET root = sha256(root) WHERE shard = 2 AND last_position = {position}",
    )
    said = rf"shard 2, position \d+ to {position}: the entries add up to the root "
    assert re.match(said, await difference(copy, capsys))
    assert await chain_is_broken(copy, capsys)


BESIDE_THE_ENTRIES = {
    "ledger.shards SET frontier = sha256(frontier) || substr(frontier, 33) WHERE shard = 0": (
        "shard 0: the lease's frontier at"
    ),
    "ledger.shards SET position = position - 1 WHERE shard = 0": "shard 0: the entries end at",
    "ledger.shards SET ledger_time = '2020-01-01Z' WHERE shard = 2": "shard 2: the lease's ledger time lies before",
    "ledger.shards SET epoch = 0 WHERE shard = 0": "shard 0: a batch was written under epoch 1, but the lease is at 0",
    "ledger.batches SET first_position = 31 WHERE shard = 0 AND 30 BETWEEN first_position AND last_position": (
        "shard 0, position"
    ),
    "ledger.batches SET policy_version = 'other-order' WHERE shard = 0": "shard 0, position",
    "ledger.batches SET policy_version = 'nobody''s' WHERE shard = 0": "shard 0, position 1: no policy",
    "ledger.batches SET recorded_at = '2020-01-01Z' WHERE shard = 0 AND first_position > 90": "shard 0, position",
    "ledger.batches SET rules_version = 99 WHERE shard = 0": "shard 0, position 1: written by newer rules (version 99",
    "ledger.batches SET rules_version = 1 WHERE shard = 0 AND first_position > 90": "shard 0, position",
    "ledger.batches SET zones_release = 'none' WHERE shard = 0": "shard 0, position 1: no time zones of the release",
    "ledger.time_zones SET data = (SELECT data FROM ledger.time_zones WHERE name = 'UTC')": "shard 0, position",
    "ledger.time_zones SET data = '' WHERE name = 'UTC'": "shard 0, position",
    "ledger.policies SET content = json_build_object('version', version)": "ledger.policies: the policy ",
    "ledger.ad_accounts SET business_center_id = 'bc-1' WHERE business_center_id = 'bc-0'": (
        "shard 0: ledger.ad_accounts holds"
    ),
    "ledger.quarantine SET recorded_at = recorded_at - interval '1 day' WHERE shard = 0 AND sequence = 2": (
        "shard 0, quarantined record 2: ledger time goes back"
    ),
}
LOST_BESIDE_THE_ENTRIES = {
    "ledger.batches WHERE shard = 0 AND first_position > 30 AND first_position < 60": "shard 0, position",
    "ledger.ad_accounts WHERE shard = 0": "shard 0: ledger.ad_accounts holds",
    "ledger.time_zones": "shard 0, position 1: no time zones of the release",
    "ledger.quarantine WHERE shard = 0 AND sequence = 2": "shard 0: the quarantined record 2 is missing",
}
STATEMENTS_BESIDE = {
    **{f"UPDATE {change}": said for change, said in BESIDE_THE_ENTRIES.items()},
    **{f"DELETE FROM {change}": said for change, said in LOST_BESIDE_THE_ENTRIES.items()},
}


@pytest.mark.parametrize("statement", STATEMENTS_BESIDE)
async def test_data_next_to_the_entries_is_covered(
    copy: str, capsys: pytest.CaptureFixture[str], statement: str
) -> None:
    assert await tamper(copy, statement) > 0
    assert (await difference(copy, capsys)).startswith(STATEMENTS_BESIDE[statement])


GUARDS = {
    "DROP TRIGGER append_only ON ledger.entries_2": "ledger.entries_2: the append-only trigger is missing",
    "ALTER TABLE ledger.outcomes DISABLE TRIGGER append_only": (
        "ledger.outcomes: the append-only trigger is not enabled ALWAYS"
    ),
    "ALTER TABLE ledger.batches ENABLE TRIGGER append_only": (
        "ledger.batches: the append-only trigger is not enabled ALWAYS"
    ),
    """CREATE OR REPLACE TRIGGER append_only BEFORE UPDATE ON ledger.policies
       FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();
       ALTER TABLE ledger.policies ENABLE ALWAYS TRIGGER append_only""": (
        "ledger.policies: the append-only trigger does not refuse every UPDATE, DELETE and TRUNCATE"
    ),
    "CREATE OR REPLACE FUNCTION ledger.refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'": (
        "the function ledger.refuse_change was changed: it no longer has the body of the migration"
    ),
    "GRANT DELETE ON ledger.entries TO drawdown_api": "ledger.entries: drawdown_api was granted DELETE",
    "ALTER TABLE ledger.entries_1 DROP CONSTRAINT entries_1_pkey": (
        "ledger.entries_1: the unique index of positions is missing or not valid"
    ),
    "ALTER TABLE ledger.entries DETACH PARTITION ledger.entries_1": "ledger.entries has the partitions",
    "ALTER TABLE ledger.outcomes DROP CONSTRAINT outcomes_bounds": (
        "ledger.outcomes: the constraint that keeps its rows within bounds is missing"
    ),
    """ALTER TABLE ledger.batches DROP CONSTRAINT batches_bounds;
       ALTER TABLE ledger.batches ADD CONSTRAINT batches_bounds CHECK (first_position > 0) NOT VALID""": (
        "ledger.batches: the constraint that keeps its rows within bounds is missing"
    ),
    "ALTER TABLE ledger.checkpoints DROP CONSTRAINT checkpoints_times": (
        "ledger.checkpoints: the constraint that bounds the times of recorded_at is missing"
    ),
    """ALTER TABLE incentives.cash_spend DROP CONSTRAINT cash_spend_times;
       INSERT INTO incentives.cash_spend VALUES ('zz', 'infinity', 1)""": (
        "incentives.cash_spend: the constraint that bounds the times of bucket is missing"
    ),
    **{
        f"ALTER TABLE ledger.{table} DROP CONSTRAINT {table}_sizes": (
            f"ledger.{table}: the constraint on the sizes of what it holds is missing"
        )
        for table in WITH_SIZES
    },
    **{
        f"ALTER TABLE ledger.{table} DROP CONSTRAINT {table}_ids": (
            f"ledger.{table}: the constraint on the ids of records is missing"
        )
        for table in WITH_IDS
    },
    "ALTER TABLE ledger.time_zones DISABLE TRIGGER few_zones": (
        "ledger.time_zones: the trigger that limits the zones of a release is missing, or not enabled ALWAYS"
    ),
    "DROP TRIGGER not_ahead ON ledger.checkpoints": (
        "ledger.checkpoints: the trigger that keeps checkpoints from running ahead of the ledger is missing"
    ),
    "ALTER TABLE ledger.forwarded DROP CONSTRAINT forwarded_sizes": (
        "ledger.forwarded: the constraints ['forwarded_sizes'] on what may wait are missing"
    ),
    """CREATE OR REPLACE TRIGGER only_onward BEFORE UPDATE ON ledger.shards FOR EACH ROW
       WHEN (NEW.shard <> OLD.shard) EXECUTE FUNCTION ledger.refuse_to_go_back();
       ALTER TABLE ledger.shards ENABLE ALWAYS TRIGGER only_onward""": (
        "ledger.shards: the trigger that lets leases only move forward is missing, or not enabled ALWAYS"
    ),
    "ALTER TABLE ledger.shards DISABLE TRIGGER only_onward": (
        "ledger.shards: the trigger that lets leases only move forward is missing, or not enabled ALWAYS"
    ),
}


@pytest.mark.parametrize("statement", GUARDS)
async def test_a_missing_guard_is_found_by_replay_and_verify(
    copy: str, capsys: pytest.CaptureFixture[str], statement: str
) -> None:
    connection = await asyncpg.connect(copy)
    await connection.execute(statement)
    await connection.close()
    assert (await difference(copy, capsys)).startswith(GUARDS[statement])
    assert await chain_is_broken(copy, capsys)


def fail_at_reversed_spends(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Make every later read of a spend that a reversal names fail."""

    async def read(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(replaying, "read_spends", read)


async def test_an_unreadable_reversed_spend_is_named(
    copy: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at_reversed_spends(monkeypatch, RecursionError("nested"))
    said = r"shard \d, position \d+ to \d+: the batch cannot be decided again: RecursionError: nested"
    assert re.fullmatch(said, await difference(copy, capsys))


async def test_a_connection_lost_while_a_batch_is_decided_is_not_a_difference(
    copy: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at_reversed_spends(monkeypatch, ConnectionResetError("gone"))
    assert await replay(Settings(database_url=copy)) == 2
    assert "could not run: ConnectionResetError: gone" in capsys.readouterr().err


# The bounds were removed and restored around unreadable values, as if they had never been away.
UNREADABLE = {
    "shards": (
        "ledger_time",
        "AND released_at IS NOT DISTINCT FROM released_at",
        "",
        "shard 0: ledger time is {}, not in the years 1970 to 2999",
    ),
    "checkpoints": (
        "recorded_at",
        "",
        "AND follower = 'balance'",
        "shard 0: the time of balance's checkpoint is {}, not in the years 1970 to 2999",
    ),
}


@pytest.mark.parametrize("moment", ["infinity", "-infinity", "0044-03-15 00:00:00+00 BC", "294276-12-31 00:00:00+00"])
@pytest.mark.parametrize("table", UNREADABLE)
async def test_an_unreadable_time_is_named_by_replay_and_verify(
    copy: str, capsys: pytest.CaptureFixture[str], table: str, moment: str
) -> None:
    column, others, which, told = UNREADABLE[table]
    await tamper(
        copy,
        f"ALTER TABLE ledger.{table} DROP CONSTRAINT {table}_times",
        f"UPDATE ledger.{table} SET {column} = '{moment}' WHERE shard = 0 {which}",
        f"ALTER TABLE ledger.{table} ADD CONSTRAINT {table}_times CHECK ({column} = {column} {others})",
        "SELECT 1",
    )
    assert await difference(copy, capsys) == told.format(moment)
    assert await chain_is_broken(copy, capsys)


async def test_an_epoch_without_matching_claims_is_named_by_replay_and_verify(
    copy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await tamper(copy, "UPDATE ledger.shards SET epoch = 9223372036854775807 WHERE shard = 0")
    told = "shard 0: the lease is at epoch 9223372036854775807, which no number of claims can reach"
    assert await difference(copy, capsys) == told
    assert await chain_is_broken(copy, capsys)

    runbook = (Path(__file__).parents[2] / "docs" / "runbook.md").read_text()
    (mend,) = re.findall(r'^sql "(BEGIN; ALTER TABLE ledger.shards DISABLE[^"]+)"', runbook, re.MULTILINE)
    connection = await asyncpg.connect(copy)
    await connection.execute(mend)
    await connection.close()
    assert await replay(Settings(database_url=copy)) == 0
    assert not await chain_is_broken(copy, capsys)


@pytest.mark.parametrize(
    "details",
    [r'{"shard": "\u0000", "topic": "a", "offset": "1"}', "[" * 3_000 + "]" * 3_000, '"text"', '{"shard": 1e400}'],
)
async def test_an_unreadable_note_belongs_to_no_record_and_ends_no_audit(
    copy: str, capsys: pytest.CaptureFixture[str], details: str
) -> None:
    note = "INSERT INTO ledger.operators_log (operator, action, because, details) VALUES ('x', 'offsets_skipped', 'x', "
    await tamper(copy, f"{note} '{details}')")
    assert not await chain_is_broken(copy, capsys)
    await tamper(copy, "UPDATE ledger.quarantine SET reason = 'skipped' WHERE shard = 0 AND sequence = 1")
    assert await verify(Settings(database_url=copy)) == 1
    assert "was skipped 1 times, but the operators' log says so 0 times" in capsys.readouterr().out


BELOW = {
    "entries": ("position", "position = -position, source_event_id = gen_random_uuid()"),
    "outcomes": ("sequence", "sequence = -sequence, command_id = gen_random_uuid()"),
    "quarantine": ("sequence", "sequence = -sequence"),
}


@pytest.mark.parametrize("table", BELOW)
async def test_a_row_below_all_others_is_found_by_replay_and_verify_if_the_constraint_is_missing(
    copy: str, capsys: pytest.CaptureFixture[str], table: str
) -> None:
    column, change = BELOW[table]
    await tamper(
        copy,
        f"ALTER TABLE ledger.{table} DROP CONSTRAINT {table}_bounds",
        f"CREATE TEMPORARY TABLE another AS SELECT * FROM ledger.{table} WHERE shard = 0"
        f" ORDER BY {column} DESC LIMIT 1",
        f"UPDATE another SET {change}",
        f"INSERT INTO ledger.{table} SELECT * FROM another",
    )
    assert re.match(rf"shard 0: ledger.{table} begins at -\d+, where no row may be", await difference(copy, capsys))
    assert await chain_is_broken(copy, capsys)


# ---- Outcomes ---------------------------------------------------------------------------------------------------

_DECISION = "shard = 0 AND sequence = (SELECT {} FROM ledger.outcomes WHERE shard = 0 AND {})"
REFUSED = _DECISION.format("min(sequence)", "first AND status = 'rejected'")
ACCEPTED = _DECISION.format("max(sequence)", "first AND status = 'accepted'")
REPEATED = _DECISION.format("min(sequence)", "NOT first")
ACCEPTED_BY_THE_API = _DECISION.format("max(sequence)", "first AND status = 'accepted' AND via = 'api'")
REFUSED_OF_THE_TOPIC = _DECISION.format("min(sequence)", "first AND message LIKE '%come by the topic'")
FORGED = {
    f"via = 'topic' WHERE {ACCEPTED_BY_THE_API}": "the command came by api, .* says topic",
    f"via = NULL WHERE {ACCEPTED_BY_THE_API}": "the command came by api, .* says None",
    f"via = 'api' WHERE {REFUSED_OF_THE_TOPIC}": "was refused as permission_denied, but decided again it is accepted",
    f"policy_version = 'standard-1' WHERE {REFUSED_OF_THE_TOPIC}": (
        "was refused as permission_denied, but decided again it is accepted|at a time when nothing was decided"
    ),
    f"status = 'accepted', code = NULL, first_position = position WHERE {REFUSED}": (
        "is accepted at position|no outcome accepts it there|names it|with the first position"
    ),
    f"code = 'invalid ' || code WHERE {REFUSED}": "was refused as invalid .*, but decided again as",
    f"position = position + 1 WHERE {ACCEPTED}": "ends at|before that of the previous outcome",
    f"status = 'rejected', code = 'invalid', first_position = NULL WHERE {ACCEPTED}": (
        "was refused|no outcome accepts it there"
    ),
    f"content = jsonb_set(content::jsonb, '{{actor,id}}', '\"nobody\"')::json WHERE {ACCEPTED}": (
        "the ledger holds .*, shard 0, outcome"
    ),
    f"position = position + 1 WHERE {REPEATED}": "repeated with the answer|must be refused as a conflict",
    f"type = 'x' WHERE {REPEATED}": "the row names",
}


@pytest.mark.parametrize("change", FORGED)
async def test_a_forged_answer_is_found(copy: str, capsys: pytest.CaptureFixture[str], change: str) -> None:
    assert await tamper(copy, f"UPDATE ledger.outcomes SET {change}") == 1
    found = await difference(copy, capsys)
    assert found.startswith("shard 0, ")
    assert re.search(FORGED[change], found), found


async def test_a_lost_answer_is_found(copy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await tamper(copy, f"DELETE FROM ledger.outcomes WHERE {REFUSED}") == 1
    assert re.fullmatch(r"shard 0: the outcome \d+ is missing", await difference(copy, capsys))


async def test_a_refused_command_forged_into_the_ledger_as_accepted_is_found(
    copy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Entry, batch, outcome and roots agree with each other. Only the rules know that the command must be refused."""
    columns = ", ".join(FIELDS)
    await tamper(
        copy,
        f"""
        INSERT INTO ledger.entries ({columns})
        SELECT 0, s.position + 1, 5000000, s.ledger_time, s.ledger_time, o.command_id, 0, NULL, NULL, 'deposit',
            'business_center', 'cash', NULL, 'bc-0', NULL, NULL, NULL, NULL,
            json_build_object('command', o.content)
        FROM ledger.shards s JOIN ledger.outcomes o USING (shard) WHERE {REFUSED}
        """,
        NEXT_BATCH,
        "UPDATE ledger.shards SET position = position + 1 WHERE shard = 0",
    )
    await reseal(copy)
    assert not await chain_is_broken(copy, capsys)
    ((position,),) = await fetch(copy, "SELECT position FROM ledger.shards WHERE shard = 0")
    found = await difference(copy, capsys)
    assert re.match(
        rf"shard 0, position {position}: command \S+ was accepted, but decided again it is refused: ", found
    )


# ---- Read models ------------------------------------------------------------------------------------------------

READ_MODELS = {
    "balance.business_centers": "time_zone = 'Asia/Tokyo' || time_zone",
    "balance.ad_accounts": "owned = NOT owned",
    "balance.automatic_allocation": "enabled_at = enabled_at + interval '1 microsecond'",
    "balance.left_out": "reason = 'another'",
    "balance.largest_spends": "amount = coalesce(amount, 0) + 1",
    "balance.budgets": "changes_today = changes_today + 1",
    "balance.custom_budgets": "spent = spent + 0.5",
    "balance.campaigns": "position = position + 1",
    "balance.pauses": "causes = (CASE causes WHEN '{}' THEN '{campaign_budget}' ELSE '{}' END)::text[]",
    "balance.pockets": "amount = amount + 1",
    "balance.credit_limits": "amount = amount - 1",
    "balance.grants": "remaining = remaining + 1",
    "balance.business_center_days": "billed = billed + 1",
    "balance.ad_account_days": "overdelivered = overdelivered + 1",
    "balance.campaign_days": "day = day + 1000",
    "balance.entry_blocks": "block = block + 1",
    "balance.pocket_movements": "limit_change = limit_change + 1",
    "balance.business_center_spend": "billed = billed + 1",
    "balance.ad_account_spend": "overdelivered = overdelivered + 1",
    "balance.campaign_spend": "day = day + 1000",
    "balance.budget_closings": "changes_today = changes_today + 1",
    "balance.campaign_budget_closings": "mode = 'another'",
    "balance.pause_closings": "causes = (CASE causes WHEN '{}' THEN '{campaign_budget}' ELSE '{}' END)::text[]",
    "incentives.cash_spend": "amount = amount + 1",
}


@pytest.fixture(scope="module")
async def shared_copy(original: str, postgres: Postgres) -> AsyncIterator[str]:
    """Yield a copy whose read models are restored after each test."""
    async with copied(original, postgres, "tampered_read_models") as url:
        yield url


@contextlib.asynccontextmanager
async def restored(url: str, table: str) -> AsyncIterator[asyncpg.Connection]:
    """Yield a connection. Afterwards the table is as it was."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"CREATE TEMPORARY TABLE kept AS SELECT * FROM {table}")
        yield connection
        await connection.execute(f"DELETE FROM {table}; INSERT INTO {table} SELECT * FROM kept")
    finally:
        await connection.close()


@pytest.mark.parametrize("table", READ_MODELS)
async def test_an_edited_row_of_a_read_model_is_found(
    shared_copy: str, capsys: pytest.CaptureFixture[str], table: str
) -> None:
    async with restored(shared_copy, table) as connection:
        any_row = f"WHERE ctid = (SELECT ctid FROM {table} LIMIT 1)"
        assert await connection.execute(f"UPDATE {table} SET {READ_MODELS[table]} {any_row}") == "UPDATE 1"
        found = await difference(shared_copy, capsys)
    assert re.match(rf"{re.escape(table)} .*, as of shard \d, position \d+: the read model ", found)


@pytest.mark.parametrize("table", READ_MODELS)
async def test_a_missing_row_of_a_read_model_is_found(
    shared_copy: str, capsys: pytest.CaptureFixture[str], table: str
) -> None:
    async with restored(shared_copy, table) as connection:
        any_row = f"WHERE ctid = (SELECT ctid FROM {table} LIMIT 1)"
        assert await connection.execute(f"DELETE FROM {table} {any_row}") == "DELETE 1"
        found = await difference(shared_copy, capsys)
    assert re.match(rf"{re.escape(table)} .*: the read model has no such row, but the ledger gives", found)


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("balance.pockets", "('nobody', '', 'cash', 0)"),
        ("balance.entry_blocks", "('bc-0', '', 0, 77)"),
        ("signals.latest", "(0, 'account-1', '', 1)"),
        ("incentives.cash_spend", "('account-1', '2020-01-01Z', 1)"),
    ],
)
async def test_an_extra_row_in_a_read_model_is_found(
    shared_copy: str, capsys: pytest.CaptureFixture[str], table: str, row: str
) -> None:
    async with restored(shared_copy, table) as connection:
        await connection.execute(f"INSERT INTO {table} VALUES {row}")
        found = await difference(shared_copy, capsys)
    assert re.match(rf"{re.escape(table)} .*, but the ledger gives no such row$", found)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM balance.closings WHERE position = (SELECT min(position) FROM balance.closings)",
        "UPDATE balance.closings SET position = position + 1 WHERE shard = 0",
        "INSERT INTO balance.closings VALUES (0, 5)",
    ],
)
async def test_moved_closings_are_found_by_their_content(
    shared_copy: str, capsys: pytest.CaptureFixture[str], statement: str
) -> None:
    async with restored(shared_copy, "balance.closings") as connection:
        await connection.execute(statement)
        await difference(shared_copy, capsys)


async def test_every_table_of_the_balance_follower_is_compared(original: str) -> None:
    tables = await fetch(original, "SELECT 'balance.' || tablename FROM pg_tables WHERE schemaname = 'balance'")
    assert {row[0] for row in tables} <= {table.name for table in TABLES}
    assert {table.name for table in TABLES} - {"signals.latest", "balance.closings"} == set(READ_MODELS)


async def test_repaired_read_models_pass(shared_copy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await replay(Settings(database_url=shared_copy)) == 0


async def test_a_moved_checkpoint_is_found(copy: str, capsys: pytest.CaptureFixture[str]) -> None:
    await tamper(copy, "UPDATE ledger.checkpoints SET position = position - 1 WHERE follower = 'balance' AND shard = 0")
    await difference(copy, capsys)


# ---- Roots noted earlier ----------------------------------------------------------------------------------------


async def test_a_rewritten_ledger_does_not_contain_the_roots_noted_earlier(
    copy: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """An attacker who can make everything agree still cannot change what somebody else has noted."""
    settings, noted = Settings(database_url=copy), tmp_path / "noted.json"
    assert await verify(settings, as_json=True) == 0
    noted.write_text(capsys.readouterr().out)
    assert await verify(settings, as_json=True, since=noted) == 0
    assert json.loads(capsys.readouterr().out)["checked"]["noted_roots"] == len(
        [each for each in json.loads(noted.read_text())["roots"] if each["position"]]
    )
    await tamper(copy, f"UPDATE ledger.entries SET amount = amount - 1 WHERE shard = 0 AND position = {A_SPEND}")
    await reseal(copy)
    assert await verify(settings, as_json=True, chain_only=True) == 0
    capsys.readouterr()
    assert await verify(settings, as_json=True, chain_only=True, since=noted) == 1
    assert "the root noted earlier is" in capsys.readouterr().out


# ---- What cannot run --------------------------------------------------------------------------------------------


async def test_an_unavailable_database_is_reported_in_one_line(
    postgres: Postgres, capsys: pytest.CaptureFixture[str], empty_database_url: str, tmp_path: Path
) -> None:
    nowhere = f"{postgres.url.rpartition('/')[0]}/nowhere"
    not_noted = tmp_path / "noted.json"
    not_noted.write_text("[]")
    for url, since in ((nowhere, None), (empty_database_url, None), (empty_database_url, not_noted)):
        assert await replay(Settings(database_url=url), since=since) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert len(said.err.splitlines()) == 1
