"""What any login can do by itself: take connections, change its role's settings, write outside of the tables that
rights protect.
"""

import contextlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from structlog.testing import capture_logs

from drawdown.deployment.migrate import migrate
from services.auditor.cli import verify
from shared.runtime import postgres as connections
from shared.runtime.closed_functions import CLOSED_NAMES
from shared.runtime.postgres import connect, is_lost
from shared.runtime.roles import OF_THE_OWNER, SERVICE_ROLES, connection_limits, keep_roles_plain
from shared.runtime.settings import Settings
from tests.secured_postgres import OWNER, PUBLIC_SQL, SUPERUSER, SecuredPostgres
from tests.servers import reachable_directory

# The server is one of its own, the distribution's, whatever servers the other tests use.
pytestmark = pytest.mark.embedded
DATABASE_PAGE = Path(__file__).parents[2] / "docs" / "database.md"
MOST_CONNECTIONS = 100  # PostgreSQL's default
FORBIDDEN_SETTINGS = {
    "statement_timeout": "1ms",
    "lock_timeout": "1ms",
    "synchronous_commit": "off",
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "serializable",
    "search_path": "nowhere",
    "local_preload_libraries": "nothing",
    "standard_conforming_strings": "off",
    "timezone": "Asia/Tokyo",
    "default_tablespace": "pg_global",
    "exit_on_error": "on",
    "restrict_nonsystem_relation_kind": "view",
}
# Functions that any login may run and that do more than read, but do no harm.
HARMLESS = {
    "they change this session, or say something of it": r"set_config|setseed|pg_sleep.*|pg_notify"
    r"|pg_stat_clear_snapshot|pg_stat_force_next_flush|current_query|lastval|timeofday|clock_timestamp|pg_jit_available|pg_advisory_unlock.*"
    r"|random.*|gen_random_uuid|uuidv[47]|array_(sample|shuffle)",
    "they check the rights on what they use": r"nextval|currval|setval|query_to_xml.*|cursor_to_xml.*|brin_.+"
    r"|ts_(stat|rewrite)|gin_clean_pending_list|pg_(clear|restore)_(attribute|relation)_stats|pg_get_sequence_data"
    r"|pg_sequence_last_value",
    "they are for superusers, replication, upgrades or the maker of an extension": r"binary_upgrade_.+|pg_nextoid"
    r"|pg_(create|copy|drop)_(logical_|physical_)?replication_slot|pg_logical_slot_.+|pg_replication_slot_advance"
    r"|pg_sync_replication_slots|pg_import_system_collations|pg_stop_making_pinned_objects|pg_extension_config_dump"
    r"|pg_read_file_old|pg_rotate_logfile_old",
    "they end sessions of the same login": r"pg_(cancel|terminate)_backend",
    "they read": r"pg_.*_(size|lsn|xact|timestamp|timestamp_origin|status|pids|blocked|version|usage|state|recovery)"
    r"|pg_is_wal_replay_paused|pg_(stat_get|control|partition|wal_summary|available_wal|get|isolation|last|prepared|is|safe_snapshot)_.*"
    r"|plpgsql_(call_handler|validator)|txid_status|currtid2?|amvalidate",
}


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[SecuredPostgres]:
    with reachable_directory() as directory:
        server = SecuredPostgres(directory)
        await server.start()
        await migrate(server.settings(OWNER))
        yield server
        await server.stop()


@asynccontextmanager
async def session(server: SecuredPostgres, login: str, database: str = OWNER) -> AsyncIterator[asyncpg.Connection]:
    connection = await server.connect(login, database)
    try:
        yield connection
    finally:
        await connection.close()


async def audit(server: SecuredPostgres, capsys: pytest.CaptureFixture[str]) -> str | None:
    """Return the difference that `audit verify` finds."""
    capsys.readouterr()
    await verify(server.settings("drawdown_auditor"), as_json=True)
    found: str | None = json.loads(capsys.readouterr().out)["difference"]
    return found


# ---- Connections --------------------------------------------------------------------------------------------------


async def test_one_login_cannot_take_all_connections(server: SecuredPostgres) -> None:
    held: list[asyncpg.Connection] = []
    try:
        for _ in range(connection_limits(4)["drawdown_auditor"]):
            held.append(await server.connect("drawdown_auditor"))
        with pytest.raises(asyncpg.TooManyConnectionsError):
            await server.connect("drawdown_auditor")
        async with session(server, "drawdown_allocation") as writer:
            assert await writer.fetchval("SELECT 1") == 1
    finally:
        for connection in held:
            await connection.close()


def test_all_logins_together_leave_connections_to_the_owner() -> None:
    assert sum(connection_limits(4).values()) <= MOST_CONNECTIONS - OF_THE_OWNER
    for role, limit in connection_limits(4).items():
        assert f"`{role}` {limit}" in DATABASE_PAGE.read_text()


async def test_too_few_connections_for_the_shards_are_reported(server: SecuredPostgres) -> None:
    async with session(server, OWNER) as owner:
        with capture_logs() as logs:
            await keep_roles_plain(owner, shards=4)
            assert logs == []
            await keep_roles_plain(owner, shards=64)
    (told,) = logs
    assert (told["log_level"], told["wanted"], told["found"]) == ("warning", 220, MOST_CONNECTIONS)


async def test_the_file_of_the_superuser_does_not_disturb_a_running_writer(server: SecuredPostgres) -> None:
    server.psql(SUPERUSER, "postgres", "--file", PUBLIC_SQL)
    async with session(server, "drawdown_allocation") as writer:
        await writer.execute("SELECT pg_advisory_lock(1, 1), pg_advisory_unlock_all()")


async def test_a_limit_raised_by_the_owner_stays(server: SecuredPostgres) -> None:
    async with session(server, OWNER) as owner:
        limit = "SELECT rolconnlimit FROM pg_roles WHERE rolname = 'drawdown_api'"
        await owner.execute("ALTER ROLE drawdown_api CONNECTION LIMIT 33")
        await migrate(server.settings(OWNER))
        assert await owner.fetchval(limit) == 33
        await owner.execute("ALTER ROLE drawdown_api CONNECTION LIMIT -1")
        await migrate(server.settings(OWNER))
        assert await owner.fetchval(limit) == connection_limits(4)["drawdown_api"]


async def test_the_runbook_shuts_out_a_login_and_lets_it_in_again(server: SecuredPostgres) -> None:
    runbook = DATABASE_PAGE.with_name("runbook.md").read_text()
    statements = re.findall(r'^sql "((?:ALTER ROLE|SELECT count\(pg_terminate)[^"]+)"', runbook, re.MULTILINE)
    assert len(statements) == 2
    held = await server.connect("drawdown_auditor")
    async with session(server, SUPERUSER) as superuser:
        assert [await superuser.fetchval(statement) for statement in statements] == [None, 1]
    ended = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.AdminShutdownError)
    with pytest.raises((*ended, asyncpg.InternalClientError)) as caught:
        await held.fetchval("SELECT 1")
    assert is_lost(caught.value), caught.value
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        await server.connect("drawdown_auditor")
    await migrate(server.settings(OWNER))
    async with session(server, "drawdown_auditor") as auditor:
        assert await auditor.fetchval("SELECT 1") == 1


async def test_the_migration_restores_a_password_that_a_login_changed(server: SecuredPostgres) -> None:
    async with session(server, "drawdown_api") as hostile:
        await hostile.execute("ALTER ROLE CURRENT_USER PASSWORD 'mine'")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await server.connect("drawdown_api")
    await migrate(server.settings(OWNER))
    async with session(server, "drawdown_api") as api:
        assert await api.fetchval("SELECT 1") == 1


# ---- Settings of its own -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["", "IN DATABASE drawdown"])
@pytest.mark.parametrize("role", SERVICE_ROLES)
async def test_settings_of_a_login_have_no_effect_and_are_found_and_removed(
    role: str, where: str, server: SecuredPostgres, capsys: pytest.CaptureFixture[str]
) -> None:
    async with session(server, role) as hostile:
        for name, value in FORBIDDEN_SETTINGS.items():
            await hostile.execute(f"ALTER ROLE CURRENT_USER {where} SET {name} = '{value}'")
    service = await connect(server.settings(role), role, "a test")
    try:
        for name, value in FORBIDDEN_SETTINGS.items():
            assert await service.fetchval("SELECT current_setting($1)", name) != value, name
    finally:
        await service.close()
    assert (await audit(server, capsys) or "").startswith(f"the role {role} has settings of its own: ")
    await migrate(server.settings(OWNER))
    assert await audit(server, capsys) is None


def test_a_session_sets_all_settings_that_it_relies_on() -> None:
    assert FORBIDDEN_SETTINGS.keys() <= connections._RELIED_ON.keys()


LIFTED = {
    "ALTER ROLE drawdown_api CREATEDB": (
        "ALTER ROLE drawdown_api NOCREATEDB",
        "the role drawdown_api was made CREATEDB",
    ),
    "ALTER ROLE drawdown_signals BYPASSRLS": (
        "ALTER ROLE drawdown_signals NOBYPASSRLS",
        "the role drawdown_signals was made BYPASSRLS",
    ),
    "ALTER ROLE drawdown_balance CONNECTION LIMIT -1": (
        "ALTER ROLE drawdown_balance CONNECTION LIMIT 6",
        "the role drawdown_balance may take all connections of the server: run drawdown migrate",
    ),
    "GRANT drawdown_allocation TO drawdown_api": (
        "REVOKE drawdown_allocation FROM drawdown_api",
        "the role drawdown_api was made a member of drawdown_allocation",
    ),
    "SELECT lo_create(4711)": (
        "SELECT lo_unlink(4711)",
        "the database holds 1 large objects, some of postgres: no service creates any",
    ),
}


@pytest.mark.parametrize("lifted", LIFTED)
async def test_a_login_with_too_many_rights_is_found(
    lifted: str, server: SecuredPostgres, capsys: pytest.CaptureFixture[str]
) -> None:
    back, said = LIFTED[lifted]
    async with session(server, SUPERUSER) as superuser:
        await superuser.execute(lifted)
        try:
            assert await audit(server, capsys) == said
        finally:
            await superuser.execute(back)
    assert await audit(server, capsys) is None


# ---- Outside of the tables -----------------------------------------------------------------------------------------

FUNCTIONS = (
    "lo_from_bytea(0, 'x')",
    "lo_create(0)",
    "lo_creat(0)",
    "lo_put(1, 0, 'x')",
    "pg_advisory_lock(1)",
    "pg_try_advisory_xact_lock(1)",
    "pg_logical_emit_message(false, 'x', 'x')",
    "pg_current_xact_id()",
    "txid_current()",
    "pg_export_snapshot()",
)


@pytest.mark.parametrize("role", SERVICE_ROLES)
async def test_functions_that_write_or_lock_outside_the_tables_are_refused(role: str, server: SecuredPostgres) -> None:
    async with session(server, role) as connection:
        for function in FUNCTIONS:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(f"SELECT {function}")


@pytest.mark.parametrize("database", ["postgres", "template1"])
@pytest.mark.parametrize("role", SERVICE_ROLES)
async def test_other_databases_of_the_server_are_closed(role: str, database: str, server: SecuredPostgres) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied for database"):
        await server.connect(role, database)


async def unknown_functions(connection: asyncpg.Connection) -> set[str]:
    """Return the functions that any login may run, that change something, and that are in none of our lists."""
    rows = await connection.fetch(
        "SELECT DISTINCT proname FROM pg_proc p WHERE pronamespace = 'pg_catalog'::regnamespace AND provolatile = 'v'"
        " AND has_function_privilege('public', p.oid, 'EXECUTE')"
        " AND prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype, 'internal'::regtype)"
        " AND NOT 'internal'::regtype = ANY(proargtypes::oid[])"
    )
    known = re.compile("|".join(HARMLESS.values()))
    return {row[0] for row in rows if not known.fullmatch(row[0])}


async def test_every_function_that_the_public_may_run_is_listed_in_this_test(
    server: SecuredPostgres, database_url: str
) -> None:
    async with session(server, OWNER) as connection:
        assert await unknown_functions(connection) == set()
    embedded = await asyncpg.connect(database_url)
    try:
        assert await unknown_functions(embedded) == set()
        assert await embedded.fetchval("SELECT has_function_privilege('public', 'lo_create(oid)', 'EXECUTE')") is False
    finally:
        await embedded.close()


async def functions_that_use_transaction_ids(connection: asyncpg.Connection) -> set[str]:
    """Return the functions without arguments that any login may run, and that use up a transaction id at each call."""
    rows = await connection.fetch(
        "SELECT proname FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND pronargs = 0 AND prokind = 'f'"
        " AND has_function_privilege('public', oid, 'EXECUTE') AND NOT prorettype = ANY($1::regtype[])",
        ["trigger", "event_trigger", "internal"],
    )
    found = set()
    for (name,) in rows:
        async with connection.transaction():
            with contextlib.suppress(asyncpg.PostgresError):
                async with connection.transaction():
                    await connection.execute(f"SELECT pg_catalog.{name}()")
            if await connection.fetchval("SELECT pg_current_xact_id_if_assigned() IS NOT NULL"):
                found.add(name)
    return found


async def test_no_function_that_the_public_may_run_uses_up_transaction_ids(
    server: SecuredPostgres, database_url: str
) -> None:
    async with session(server, "drawdown_auditor") as auditor:
        assert await functions_that_use_transaction_ids(auditor) == set()
    embedded = await connect(Settings(database_url=database_url), "drawdown_auditor", "a test")
    try:
        assert await functions_that_use_transaction_ids(embedded) == set()
    finally:
        await embedded.close()


def test_the_file_of_the_superuser_closes_the_same_functions() -> None:
    assert f"proname ~ '{CLOSED_NAMES}'" in PUBLIC_SQL.read_text()


async def test_an_owner_without_the_right_to_close_functions_still_migrates_and_the_audit_reports_it(
    server: SecuredPostgres, capsys: pytest.CaptureFixture[str]
) -> None:
    async with session(server, SUPERUSER, "postgres") as superuser:
        await superuser.execute("CREATE DATABASE plain OWNER drawdown")
    try:
        settings = server.settings(OWNER)
        plain = settings.model_copy(update={"database_url": f"{settings.database_url.rpartition('/')[0]}/plain"})
        await migrate(plain)
        capsys.readouterr()
        assert await verify(plain, as_json=True) == 0
        (note,) = json.loads(capsys.readouterr().out)["notes"]
        assert note.startswith("every login may run pg_catalog.lo_close(integer) and ")
    finally:
        async with session(server, SUPERUSER, "postgres") as superuser:
            await superuser.execute("DROP DATABASE plain WITH (FORCE)")


async def test_a_backup_restored_by_the_owner_keeps_functions_closed(server: SecuredPostgres, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    server.psql(OWNER, OWNER, "--format=custom", "--file", dump, program="pg_dump")
    async with session(server, SUPERUSER, "postgres") as superuser:
        await superuser.execute("CREATE DATABASE restored OWNER drawdown")
    try:
        server.psql(SUPERUSER, "restored", "--exit-on-error", dump, program="pg_restore")
        async with session(server, OWNER, "restored") as owner:
            assert not await owner.fetchval("SELECT has_function_privilege('public', 'lo_create(oid)', 'EXECUTE')")
        settings = server.settings(OWNER)
        await migrate(
            settings.model_copy(update={"database_url": f"{settings.database_url.rpartition('/')[0]}/restored"})
        )
    finally:
        async with session(server, SUPERUSER, "postgres") as superuser:
            await superuser.execute("DROP DATABASE restored WITH (FORCE)")


# ---- Who can lock whom ---------------------------------------------------------------------------------------------


async def test_the_page_names_the_logins_that_can_lock_a_table_against_readers(server: SecuredPostgres) -> None:
    """A login that may change rows of a table may also lock the table against its readers."""
    said = dict(re.findall(r"^\| `(drawdown_\w+)` locks \| (.+?) \|", DATABASE_PAGE.read_text(), re.MULTILINE))
    async with session(server, OWNER) as owner:
        for role in SERVICE_ROLES:
            rows = await owner.fetch(
                "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'p')"
                " AND relnamespace = ANY('{ledger,balance,incentives,signals,public}'::regnamespace[])"
                " AND has_table_privilege($1::text, oid, 'UPDATE, DELETE, TRUNCATE')",
                role,
            )
            assert set(re.findall(r"`([a-z_.]+)`", said[role])) == {row[0] for row in rows}, role
