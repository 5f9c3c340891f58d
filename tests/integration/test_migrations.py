"""Migrations: each once, whole or not at all, by one process; and no service on a schema that it does not know."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
import structlog

from drawdown.deployment import migrate as migrating
from drawdown.deployment.migrate import migrate
from drawdown.serving import SERVICES
from services.auditor.cli import PASSED, replay
from services.balance.service import FOLLOWER as BALANCE
from services.incentives.service import FOLLOWER as INCENTIVES
from shared.contracts.zones import installed_zones
from shared.ledger.zones import UNRECORDED
from shared.rules.calendar import Zones
from shared.rules.versions import CURRENT
from shared.runtime.errors import CannotGoOnError
from shared.runtime.postgres import connect
from shared.runtime.schema import Migration, known_migrations
from shared.runtime.settings import BadSettingError, Settings
from tests.acceptance.front_door import FrontDoor
from tests.integration.audit_ledger import fold, write_random_ledger
from tests.integration.working import open_and_work
from tests.model.workload import Workload
from tests.servers import free_ports, run_to_its_end, running_system

RUNBOOK = (Path(__file__).parents[2] / "docs" / "runbook.md").read_text()
NAMES = [migration.name for migration in known_migrations()]
OLDER = "the database is older than this version: stop the services, run `drawdown migrate`"
QUICKLY_SECONDS = 30  # What is away is waited for twice as long.
COMMANDS = (*SERVICES, "audit replay", "audit verify", "audit export --out none")


def knows(monkeypatch: pytest.MonkeyPatch, *migrations: Migration) -> None:
    """Let this process be a version that knows just these."""
    for module in ("migrate", "schema"):
        monkeypatch.setattr(f"shared.runtime.{module}.known_migrations", lambda: migrations)


@pytest.fixture
def empty(empty_database_url: str) -> Settings:
    return Settings(database_url=empty_database_url)


@pytest.fixture
def migrated(database_url: str) -> Settings:
    return Settings(database_url=database_url)


@pytest.fixture
async def admin(empty_database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(empty_database_url)
    yield connection
    await connection.close()


async def applied(admin: asyncpg.Connection) -> list[str]:
    return [row[0] for row in await admin.fetch("SELECT name FROM public.migrations ORDER BY name")]


async def test_an_empty_database_gets_them_all_in_their_order_and_only_once(empty: Settings) -> None:
    assert await migrate(empty) == NAMES
    assert await migrate(empty) == []


async def test_of_two_processes_one_migrates_and_the_other_waits(empty: Settings) -> None:
    assert sorted(await asyncio.gather(migrate(empty), migrate(empty))) == [[], NAMES]


async def test_a_migration_that_fails_leaves_nothing_of_any(
    empty: Settings, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Migration("9999_failing.sql", "CREATE TABLE ledger.half_done (); SELECT 1 / 0;")
    knows(monkeypatch, *known_migrations(), failing)
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(empty)
    assert await admin.fetchval("SELECT to_regclass('public.migrations') IS NULL AND to_regnamespace('ledger') IS NULL")

    knows(monkeypatch, *known_migrations())
    assert await migrate(empty) == NAMES
    assert await admin.fetchval("SELECT to_regclass('ledger.half_done')") is None


async def test_a_migration_behind_a_long_transaction_says_so_gives_up_and_changes_nothing(
    migrated: Settings, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrating, "LOCK_TIMEOUT_SECONDS", 2)
    monkeypatch.setattr(migrating, "LOOK_SECONDS", 0.1)
    knows(
        monkeypatch, *known_migrations(), Migration("9999_waits.sql", "ALTER TABLE ledger.shards ADD COLUMN late text")
    )
    holder = await asyncpg.connect(migrated.database_url, server_settings={"application_name": "a long report"})
    async with holder.transaction():
        await holder.fetchval("SELECT count(*) FROM ledger.shards")
        with structlog.testing.capture_logs() as logs, pytest.raises(CannotGoOnError) as refusal:
            await migrate(migrated)
    assert f"session {holder.get_server_pid()} of" in str(refusal.value)
    assert "a long report" in str(refusal.value)
    assert [(log["event"], log["pid"]) for log in logs] == [
        ("the migration waits for another session", holder.get_server_pid())
    ]
    await holder.close()
    assert await applied(admin) == NAMES
    assert await migrate(migrated) == ["9999_waits.sql"]


async def test_an_applied_migration_that_was_edited_is_refused(
    migrated: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = known_migrations()
    knows(monkeypatch, replace(first, statements=first.statements + "-- a thought that came later\n"), *others)
    with pytest.raises(BadSettingError, match=f"the database has had another {NAMES[0]} than this version's"):
        await migrate(migrated)
    with pytest.raises(BadSettingError, match=f"the database has had another {NAMES[0]} than this version's"):
        await connect(migrated, "drawdown_api", "a test")


async def test_another_number_of_shards_is_refused(migrated: Settings) -> None:
    with pytest.raises(CannotGoOnError, match="this ledger has 4 shards, DRAWDOWN_SHARDS says 5"):
        await migrate(migrated.model_copy(update={"shards": 5}))


async def as_left_by_the_version_before(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The schema up to 0003, as that version made it: without hashes."""
    with monkeypatch.context() as patch:
        knows(patch, *known_migrations()[:3])
        await migrate(settings)
    connection = await asyncpg.connect(settings.database_url)
    await connection.execute("ALTER TABLE public.migrations DROP COLUMN sha256")
    await connection.close()


async def test_rows_where_none_may_stand_stop_the_migration_until_they_are_gone(
    empty: Settings, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/runbook.md says: the superuser looks at them, and takes them out."""
    await as_left_by_the_version_before(empty, monkeypatch)
    await admin.execute(
        "INSERT INTO ledger.entries (shard, position, occurred_at, recorded_at, part, kind, business_center_id)"
        " VALUES (0, -1, now(), now(), 0, 'cash_debit', 'bc')"
    )
    with pytest.raises(
        CannotGoOnError, match=r"rows lie where none may stand: check constraint .*; nothing was changed"
    ):
        await migrate(empty)
    statements = re.findall(
        r'^sql "(SELECT \* FROM ledger.entries[^"]+|BEGIN; ALTER TABLE ledger.entries[^"]+)"', RUNBOOK, re.MULTILINE
    )
    assert len(statements) == 2
    for statement in statements:
        await admin.execute(statement)
    assert await migrate(empty) == NAMES[3:]


async def test_times_that_nobody_can_read_stop_the_migration_until_they_are_gone(
    empty: Settings, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/runbook.md says: found by the constraint's table, and made again, or set to what the entries say."""
    before = [each for each in known_migrations() if each.name < "0024"]
    with monkeypatch.context() as patch:
        knows(patch, *before)
        await migrate(empty)
    await admin.execute("INSERT INTO ledger.checkpoints VALUES ('balance', 0, 0, 'infinity')")
    with pytest.raises(CannotGoOnError, match=r'check constraint "checkpoints_times" .* nothing was changed'):
        await migrate(empty)
    statements = re.findall(r'^sql "((?:SELECT \*|UPDATE) [^"]*ledger.checkpoints[^"]+)"', RUNBOOK, re.MULTILINE)
    assert len(statements) == 2
    for statement in statements:
        await admin.execute(statement)
    assert await migrate(empty) == [each for each in NAMES if each >= "0024"]


@asynccontextmanager
async def room_for_what_batches_name(admin: asyncpg.Connection) -> AsyncIterator[None]:
    """While this writes and folds a ledger as the version before did: what it knew nothing of, and left nothing in."""
    of_inputs = ("rules_version integer", "zones_release text")
    tables = {
        "ledger.batches": of_inputs,
        "ledger.outcomes": (*of_inputs, "via text", "policy_version text"),
        "ledger.shards": ("released_at timestamptz",),
        "ledger.quarantine": (
            *("replay_shard smallint", "replay_sequence bigint", "raw_bytes bigint", "raw_sha256 bytea"),
        ),
    }
    for table, columns in tables.items():
        await admin.execute(f"ALTER TABLE {table} " + ", ".join(f"ADD COLUMN {column}" for column in columns))
    await admin.execute("CREATE TABLE ledger.time_zones (release text, name text, data bytea, UNIQUE (release, name))")
    await admin.execute("CREATE TABLE balance.largest_spends (business_center_id text, position bigint, amount bigint)")
    await admin.execute(
        "CREATE FUNCTION ledger.make_quarantine_part(timestamptz) RETURNS void LANGUAGE sql AS 'SELECT WHERE false'"
    )
    yield
    await admin.execute("DROP FUNCTION ledger.make_quarantine_part")
    for table, columns in tables.items():
        await admin.execute(f"ALTER TABLE {table} " + ", ".join(f"DROP COLUMN {each.split()[0]}" for each in columns))
    await admin.execute("DROP TABLE ledger.time_zones, balance.largest_spends")


@asynccontextmanager
async def checkpoints_by_follower(admin: asyncpg.Connection) -> AsyncIterator[None]:
    """While this version's followers fold a ledger of that version, whose checkpoints lie in one table."""
    names = ("balance", "incentives")
    for name in names:
        await admin.execute(
            f"CREATE VIEW ledger.checkpoints_{name} AS SELECT * FROM ledger.checkpoints WHERE follower = '{name}'"
        )
    yield
    for name in names:
        await admin.execute(f"DROP VIEW ledger.checkpoints_{name}")


async def test_a_ledger_of_the_version_before_is_migrated_with_its_data_and_goes_on(
    empty: Settings, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await as_left_by_the_version_before(empty, monkeypatch)
    async with room_for_what_batches_name(admin):
        zones = Zones(UNRECORDED, installed_zones().table)
        await write_random_ledger(empty.database_url, seed=7, steps=300, rules=1, zones=zones)
        async with checkpoints_by_follower(admin):
            # Not to the end: the rest is for the new version.
            await fold(empty.database_url, BALANCE, INCENTIVES, steps=3)
    checkpoints = "SELECT follower, shard, position, recorded_at FROM ledger.checkpoints ORDER BY 1, 2"
    followed = await admin.fetch(checkpoints)
    assert len(followed) == 8
    before = await admin.fetchrow("SELECT count(*), sum(amount) FROM ledger.entries")
    assert before[0] > 1000

    assert await migrate(empty) == NAMES[3:]
    assert await admin.fetchrow("SELECT count(*), sum(amount) FROM ledger.entries") == before
    assert await admin.fetch(checkpoints) == followed

    # The broker is a new one: what `drawdown offsets adopt` says to the ledger.
    await admin.execute("UPDATE ledger.shards SET incarnation = NULL, spend_offset = 0, command_offset = 0")
    async with running_system(database_url=empty.database_url) as system, FrontDoor(system) as door:
        await open_and_work(door, Workload(8, prefix="after-"), 100)
        await door.fence()
    assert (await admin.fetchval("SELECT count(*) FROM ledger.entries")) > before[0] + 50
    named = await admin.fetch("SELECT DISTINCT rules_version, zones_release FROM ledger.batches ORDER BY 1")
    assert [tuple(row) for row in named] == [(1, UNRECORDED), (CURRENT, installed_zones().release)]
    recorded = await admin.fetch("SELECT release, count(*) FROM ledger.time_zones GROUP BY 1")
    assert {row[0] for row in recorded} == {UNRECORDED, installed_zones().release}
    assert await replay(empty) == PASSED


def closed_to_kafka(database_url: str) -> Settings:
    """Settings under which anything but a look at the database would take its time."""
    kafka = f"127.0.0.1:{free_ports(1)}"
    return Settings(database_url=database_url, kafka_bootstrap_servers=kafka, api_authentication="off")


async def run(command: str, settings: Settings) -> tuple[int, str, float]:
    """Run `drawdown …`: exit code, last line of stderr, seconds."""
    started = time.monotonic()
    done = await run_to_its_end(command, settings)
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stderr.strip().rpartition("\n")[2], time.monotonic() - started


@pytest.mark.parametrize("command", ["allocation", "api", "audit replay"])
async def test_a_database_without_a_schema_is_refused_by_every_service(command: str, empty: Settings) -> None:
    code, line, seconds = await run(command, closed_to_kafka(empty.database_url))
    assert (code, seconds < QUICKLY_SECONDS) == (2, True)
    assert line.endswith(OLDER) or "does not exist: run `drawdown migrate`" in line  # The first on this server.


@pytest.mark.parametrize("command", COMMANDS)
async def test_an_older_database_is_refused_by_every_service(
    command: str, empty: Settings, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await as_left_by_the_version_before(empty, monkeypatch)
    code, line, seconds = await run(command, closed_to_kafka(empty.database_url))
    assert (code, seconds < QUICKLY_SECONDS) == (2, True)
    assert line.endswith(OLDER)
    assert await admin.fetchval("SELECT count(*) FROM ledger.policies") == 0


@pytest.mark.parametrize("command", [*COMMANDS, "migrate"])
async def test_a_newer_database_is_refused_by_every_service(
    command: str, migrated: Settings, admin: asyncpg.Connection
) -> None:
    await admin.execute("INSERT INTO public.migrations (name, sha256) VALUES ('9999_of_tomorrow.sql', 'any')")
    code, line, seconds = await run(command, closed_to_kafka(migrated.database_url))
    assert (code, seconds < QUICKLY_SECONDS) == (1 if command == "migrate" else 2, True)
    assert re.search(r"this version is older than the database \(which has had 9999_of_tomorrow\.sql\): run", line)
    assert await admin.fetchval("SELECT count(*) FROM ledger.policies") == 0


async def test_a_connection_that_is_made_again_looks_again(migrated: Settings, admin: asyncpg.Connection) -> None:
    connection = await connect(migrated, "drawdown_balance", "a test")
    await connection.close()
    await admin.execute("INSERT INTO public.migrations (name, sha256) VALUES ('9999_of_tomorrow.sql', 'any')")
    with pytest.raises(BadSettingError, match="this version is older than the database"):
        await connect(migrated, "drawdown_balance", "a test")
