"""Migrations: each is applied once, completely or not at all, by one process. No service runs on an unknown schema."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
import structlog

from drawdown.deployment import migrate as migrating
from drawdown.deployment.migrate import migrate
from drawdown.serving import SERVICES
from shared.runtime.errors import CannotGoOnError
from shared.runtime.postgres import connect
from shared.runtime.schema import Migration, known_migrations
from shared.runtime.settings import BadSettingError, Settings
from tests.integration.audit_ledger import write_random_ledger
from tests.servers import free_ports, run_to_its_end

# They use PostgreSQL alone, which is the same version in a container.
pytestmark = pytest.mark.embedded
RUNBOOK = (Path(__file__).parents[2] / "docs" / "runbook.md").read_text()
NAMES = [migration.name for migration in known_migrations()]
OLDER = "the database is older than this version: stop the services, run `drawdown migrate`"
OF_BEFORE = (
    r"DRAWDOWN_DATABASE_URL: the database was created by a version before the first release, and no migration"
    r" upgrades it: begin with an empty database \(`make clean`, or `docker compose .*down --volumes`\), or run"
)
QUICKLY_SECONDS = 30  # An unavailable server is waited for twice as long.
COMMANDS = (*SERVICES, "audit replay", "audit verify", "audit export --out none")


def knows(monkeypatch: pytest.MonkeyPatch, *migrations: Migration) -> None:
    """Let this process be a version that knows exactly these migrations."""
    for module in ("drawdown.deployment.migrate", "shared.runtime.schema"):
        monkeypatch.setattr(f"{module}.known_migrations", lambda: migrations)


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


async def test_an_empty_database_gets_all_migrations_in_order_and_only_once(empty: Settings) -> None:
    assert await migrate(empty) == NAMES
    assert await migrate(empty) == []


async def test_one_of_two_processes_migrates_and_the_other_waits(empty: Settings) -> None:
    assert sorted(await asyncio.gather(migrate(empty), migrate(empty))) == [[], NAMES]


async def test_a_failed_migration_undoes_all_migrations(
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


async def test_a_migration_behind_a_long_transaction_reports_it_and_gives_up_without_changes(
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
    with pytest.raises(BadSettingError, match=f"the database has another migration {NAMES[0]} than this version"):
        await migrate(migrated)
    with pytest.raises(BadSettingError, match=f"the database has another migration {NAMES[0]} than this version"):
        await connect(migrated, "drawdown_api", "a test")


async def test_a_wrong_number_of_shards_is_refused(migrated: Settings) -> None:
    with pytest.raises(CannotGoOnError, match="this ledger has 4 shards, DRAWDOWN_SHARDS says 5"):
        await migrate(migrated.model_copy(update={"shards": 5}))


async def test_rows_in_tables_that_must_be_empty_stop_the_migration_until_they_are_removed(
    migrated: Settings, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/runbook.md says: the superuser looks at the rows and removes them."""
    await admin.execute("ALTER TABLE ledger.entries DROP CONSTRAINT entries_bounds")
    await admin.execute(
        "INSERT INTO ledger.entries (shard, position, occurred_at, recorded_at, part, kind, business_center_id)"
        " VALUES (0, -1, now(), now(), 0, 'cash_debit', 'bc')"
    )
    bounds = "ALTER TABLE ledger.entries ADD CONSTRAINT entries_bounds CHECK (position > 0 AND part >= 0)"
    knows(monkeypatch, *known_migrations(), Migration("9999_bounds.sql", bounds))
    with pytest.raises(CannotGoOnError, match=r"rows violate a bound: check constraint .*; nothing was changed"):
        await migrate(migrated)
    statements = re.findall(
        r'^sql "(SELECT \* FROM ledger.entries[^"]+|BEGIN; ALTER TABLE ledger.entries[^"]+)"', RUNBOOK, re.MULTILINE
    )
    assert len(statements) == 2
    for statement in statements:
        await admin.execute(statement)
    assert await migrate(migrated) == ["9999_bounds.sql"]


async def test_unreadable_times_stop_the_migration_until_they_are_corrected(
    migrated: Settings, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/runbook.md says: the constraint's table shows them. They are written again, or set to what the entries
    say.
    """
    await admin.execute("ALTER TABLE ledger.checkpoints DROP CONSTRAINT checkpoints_times")
    await admin.execute("INSERT INTO ledger.checkpoints VALUES ('balance', 0, 0, 'infinity')")
    times = "ALTER TABLE ledger.checkpoints ADD CONSTRAINT checkpoints_times CHECK (recorded_at < '3000-01-01Z')"
    knows(monkeypatch, *known_migrations(), Migration("9999_times.sql", times))
    with pytest.raises(CannotGoOnError, match=r'check constraint "checkpoints_times" .* nothing was changed'):
        await migrate(migrated)
    statements = re.findall(r'^sql "((?:SELECT \*|UPDATE) [^"]*ledger.checkpoints[^"]+)"', RUNBOOK, re.MULTILINE)
    assert len(statements) == 2
    for statement in statements:
        await admin.execute(statement)
    assert await migrate(migrated) == ["9999_times.sql"]


async def test_a_ledger_with_data_gets_a_later_migration_and_continues(
    migrated: Settings, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write_random_ledger(migrated.database_url, seed=7, steps=100)
    before = await admin.fetchrow("SELECT count(*), sum(amount) FROM ledger.entries")
    assert before[0] > 100
    knows(
        monkeypatch, *known_migrations(), Migration("9999_later.sql", "ALTER TABLE ledger.shards ADD COLUMN late text")
    )
    assert await migrate(migrated) == ["9999_later.sql"]
    assert await admin.fetchrow("SELECT count(*), sum(amount) FROM ledger.entries") == before
    await (await connect(migrated, "drawdown_api", "a test")).close()


def test_migrations_of_all_folders_share_one_sequence_of_numbers() -> None:
    assert [int(name[:4]) for name in NAMES] == [*range(1, len(NAMES) + 1)]
    assert NAMES[0] == "0001_guards.sql"


async def made_before_the_first_release(admin: asyncpg.Connection, columns: str = "") -> None:
    await admin.execute(
        f"CREATE TABLE public.migrations (name text PRIMARY KEY, applied_at timestamptz DEFAULT now(){columns});"
        "INSERT INTO public.migrations VALUES ('0001_ledger.sql'), ('0002_read_models.sql');"
        "GRANT SELECT ON public.migrations TO PUBLIC"
    )


@pytest.mark.parametrize("columns", ["", ", sha256 text"])
async def test_a_database_from_before_the_first_release_is_refused_with_instructions(
    columns: str, empty: Settings, admin: asyncpg.Connection
) -> None:
    await made_before_the_first_release(admin, columns)
    with pytest.raises(BadSettingError, match=OF_BEFORE):
        await migrate(empty)
    assert await applied(admin) == ["0001_ledger.sql", "0002_read_models.sql"]
    assert await admin.fetchval("SELECT to_regnamespace('ledger') IS NULL")


def closed_to_kafka(database_url: str) -> Settings:
    """Return settings with an absent broker, so that a service is quick only if it asks the database first."""
    kafka = f"127.0.0.1:{free_ports(1)}"
    return Settings(database_url=database_url, kafka_bootstrap_servers=kafka, api_authentication="off")


async def run(command: str, settings: Settings) -> tuple[int, str, float]:
    """Run `drawdown …`; return its exit code, its last line on stderr, and the seconds that it took."""
    started = time.monotonic()
    done = await run_to_its_end(command, settings)
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stderr.strip().rpartition("\n")[2], time.monotonic() - started


@pytest.mark.parametrize("command", ["allocation", "api", "audit replay"])
async def test_a_database_without_a_schema_is_refused_by_every_service(command: str, empty: Settings) -> None:
    code, line, seconds = await run(command, closed_to_kafka(empty.database_url))
    assert (code, seconds < QUICKLY_SECONDS) == (2, True)
    # The role is missing as well if this server has never been migrated.
    assert line.endswith(OLDER) or "does not exist: run `drawdown migrate`" in line


@pytest.mark.parametrize("command", COMMANDS)
async def test_an_older_database_is_refused_by_every_service(
    command: str, migrated: Settings, admin: asyncpg.Connection
) -> None:
    await admin.execute("DELETE FROM public.migrations WHERE name = $1", NAMES[-1])
    code, line, seconds = await run(command, closed_to_kafka(migrated.database_url))
    assert (code, seconds < QUICKLY_SECONDS) == (2, True)
    assert line.endswith(OLDER)
    assert await admin.fetchval("SELECT count(*) FROM ledger.policies") == 0


@pytest.mark.parametrize("command", ["allocation", "audit verify", "migrate"])
async def test_a_database_from_before_the_first_release_is_refused_by_every_service(
    command: str, migrated: Settings, admin: asyncpg.Connection
) -> None:
    await admin.execute("DROP TABLE public.migrations")
    await made_before_the_first_release(admin)
    code, line, seconds = await run(command, closed_to_kafka(migrated.database_url))
    assert (code, seconds < QUICKLY_SECONDS) == (1 if command == "migrate" else 2, True)
    assert re.search(OF_BEFORE, line)


@pytest.mark.parametrize("command", [*COMMANDS, "migrate"])
async def test_a_newer_database_is_refused_by_every_service(
    command: str, migrated: Settings, admin: asyncpg.Connection
) -> None:
    await admin.execute("INSERT INTO public.migrations (name, sha256) VALUES ('9999_of_tomorrow.sql', 'any')")
    code, line, seconds = await run(command, closed_to_kafka(migrated.database_url))
    assert (code, seconds < QUICKLY_SECONDS) == (1 if command == "migrate" else 2, True)
    assert re.search(r"this version is older than the database \(which contains 9999_of_tomorrow\.sql\): run", line)
    assert await admin.fetchval("SELECT count(*) FROM ledger.policies") == 0


async def test_a_new_connection_checks_the_schema_again(migrated: Settings, admin: asyncpg.Connection) -> None:
    connection = await connect(migrated, "drawdown_balance", "a test")
    await connection.close()
    await admin.execute("INSERT INTO public.migrations (name, sha256) VALUES ('9999_of_tomorrow.sql', 'any')")
    with pytest.raises(BadSettingError, match="this version is older than the database"):
        await connect(migrated, "drawdown_balance", "a test")
