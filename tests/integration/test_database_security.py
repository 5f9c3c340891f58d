"""PostgreSQL as in production: no login without proof, and no right beyond docs/database.md."""

import asyncio
import itertools
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from drawdown.command_line.quarantine_dropping import drop_month
from drawdown.deployment.migrate import migrate
from drawdown.local.system import Service
from drawdown.serving import SERVICES
from services.auditor.cli import PASSED, replay
from shared.ledger.checkpoints import checkpoints_of
from shared.runtime.postgres import connect
from shared.runtime.read_models import READ_MODELS
from shared.runtime.roles import FOLLOWER_ROLES, FOLLOWERS, SERVICE_ROLES
from shared.runtime.settings import BadSettingError, Settings
from tests import servers
from tests.acceptance.front_door import FrontDoor
from tests.integration.working import open_and_work
from tests.model.workload import Workload
from tests.secured_postgres import HOST, OTHER_HOST, OWNER, SUPERUSER, SecuredPostgres
from tests.servers import Postgres, RunningSystem, reachable_directory, run_to_its_end

RIGHTS = Path(__file__).parents[2] / "docs" / "database.md"
SCHEMAS = ("ledger", *(model.name for model in READ_MODELS), "public")
# The letters of PostgreSQL's own notation for rights.
TABLE_RIGHTS = {
    "r": "SELECT",
    "a": "INSERT",
    "w": "UPDATE",
    "d": "DELETE",
    "D": "TRUNCATE",
    "x": "REFERENCES",
    "t": "TRIGGER",
}
SCHEMA_RIGHTS = {"U": "USAGE", "C": "CREATE"}
DATABASE_RIGHTS = {"c": "CONNECT", "C": "CREATE", "T": "TEMPORARY"}
QUICKLY_SECONDS = 30  # An unavailable server is waited for twice as long.

Rights = dict[tuple[str, str], str]


class LoginsOfTheirOwn(RunningSystem):
    """A whole system whose services each log in as their role, over TLS."""

    def __init__(self, server: SecuredPostgres) -> None:
        super().__init__(server.settings(OWNER), say=print)
        self._server = server

    async def start(self) -> None:
        await self._start_kafka()
        await self._prepare()
        for name in SERVICES:
            login = self._server.settings(f"drawdown_{name}", role_passwords_dir=None)
            how = {field: getattr(login, field) for field in ("database_url", "database_password_file")}
            settings = self.settings.model_copy(update={**how, "role_passwords_dir": None})
            self.services[name] = Service(name, settings, {})
            self.services[name].start()
        await asyncio.gather(*(self.wait_until_ready(name) for name in SERVICES))


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[SecuredPostgres]:
    with reachable_directory() as directory:
        server = SecuredPostgres(directory)
        await server.start()
        await migrate(server.settings(OWNER))
        yield server
        await server.stop()


@pytest.fixture
async def owner(server: SecuredPostgres) -> AsyncIterator[asyncpg.Connection]:
    connection = await server.connect(OWNER)
    yield connection
    await connection.close()


def documented() -> Rights:
    """Return the page's table: the rights of each role on each object."""
    rights: Rights = {}
    for line in RIGHTS.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 1 + len(SERVICE_ROLES) or cells[0] in ("object", "---"):
            continue
        names = re.findall(r"`([a-z_.]+(?:\(\))?)`", cells[0]) or [cells[0]]
        for name, (role, letters) in itertools.product(names, zip(SERVICE_ROLES, cells[1:], strict=True)):
            rights[role, name] = "".join(sorted(letters))
    return rights


async def granted(connection: asyncpg.Connection, role: str, database: str = OWNER) -> dict[str, str]:
    """Return the rights of a role according to the catalog, however it got them."""

    async def letters(function: str, thing: Any, rights: dict[str, str]) -> str:
        held = [
            letter
            for letter, right in rights.items()
            if await connection.fetchval(f"SELECT {function}($1::text, $2::{thing[0]}, $3)", role, thing[1], right)
        ]
        return "".join(sorted(held))

    found = {"database": await letters("has_database_privilege", ("text", database), DATABASE_RIGHTS)}
    for schema in SCHEMAS:
        found[schema] = await letters("has_schema_privilege", ("text", schema), SCHEMA_RIGHTS)
    for row in await connection.fetch(
        "SELECT c.oid, n.nspname || '.' || relname AS name FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
        " WHERE nspname = ANY($1) AND relkind = ANY('{r,p,v,m,f,S}'::\"char\"[])",
        SCHEMAS,
    ):
        found[row["name"]] = (
            await letters("has_table_privilege", ("oid", row["oid"]), TABLE_RIGHTS)
            if not row["name"].endswith("_seq")
            else await letters(
                "has_sequence_privilege", ("oid", row["oid"]), {"U": "USAGE", "r": "SELECT", "w": "UPDATE"}
            )
        )
    for row in await connection.fetch(
        "SELECT p.oid, n.nspname || '.' || proname || '()' AS name"
        " FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace WHERE nspname = ANY($1)",
        SCHEMAS,
    ):
        found[row["name"]] = await letters("has_function_privilege", ("oid", row["oid"]), {"X": "EXECUTE"})
    return found


async def test_each_role_may_do_exactly_what_the_page_says(owner: asyncpg.Connection) -> None:
    expected = documented()
    for role in SERVICE_ROLES:
        found = await granted(owner, role)
        for name in [name for name in found if re.fullmatch(r"ledger\.entries_\d+", name)]:
            assert found.pop(name) == expected[role, "ledger.entries"], f"{role} on {name}"
        for name in [name for name in found if re.fullmatch(r"ledger\.quarantine_(replays_)?\d{4}_\d\d|.*_seq", name)]:
            assert found.pop(name) == "", f"{role} on {name}"
        assert found == {name: letters for (of, name), letters in expected.items() if of == role}, role


async def test_the_group_of_followers_and_the_public_have_no_needless_rights(owner: asyncpg.Connection) -> None:
    expected = documented()
    of_the_group = await granted(owner, FOLLOWERS)
    of_the_public = await granted(owner, "public")
    for name, letters in of_the_group.items():
        known = re.sub(r"entries_\d+$", "entries", name)
        for follower in FOLLOWER_ROLES:
            assert set(letters) <= set(expected.get((follower, known), "")), (follower, name)
    assert {name: letters for name, letters in of_the_public.items() if letters} == {"public": "U"}


async def test_no_right_is_granted_on_a_single_column(owner: asyncpg.Connection) -> None:
    rows = await owner.fetch(
        "SELECT attrelid::regclass, attname FROM pg_attribute JOIN pg_class c ON c.oid = attrelid"
        " WHERE attacl IS NOT NULL AND relnamespace::regnamespace::text = ANY($1)",
        SCHEMAS,
    )
    assert rows == []


async def test_no_role_has_an_attribute_or_a_membership_that_gives_more_rights(owner: asyncpg.Connection) -> None:
    for role in (*SERVICE_ROLES, FOLLOWERS):
        row = await owner.fetchrow("SELECT * FROM pg_roles WHERE rolname = $1", role)
        lifted = [name for name, value in row.items() if value is True and name not in ("rolcanlogin", "rolinherit")]
        assert lifted == [], role
        assert row["rolcanlogin"] == (role != FOLLOWERS)
        memberships = await owner.fetch(
            "SELECT roleid::regrole::text, admin_option FROM pg_auth_members WHERE member = $1::text::regrole", role
        )
        assert [tuple(each) for each in memberships] == ([(FOLLOWERS, False)] if role in FOLLOWER_ROLES else []), role
    assert not await owner.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = $1", OWNER)


@pytest.mark.parametrize("role", SERVICE_ROLES)
async def test_a_service_logs_in_as_its_role_over_tls_with_scram(role: str, server: SecuredPostgres) -> None:
    connection = await connect(server.settings(role), role, "a test")
    try:
        row = await connection.fetchrow(
            "SELECT session_user::text, current_user::text, ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        )
    finally:
        await connection.close()
    assert tuple(row) == (role, role, True, "TLSv1.3")
    assert f'identity="{role}" method=scram-sha-256' in server.log


async def test_passwords_are_never_sent_to_the_server_in_plain_text(server: SecuredPostgres) -> None:
    assert "ALTER ROLE drawdown_api LOGIN PASSWORD 'SCRAM-SHA-256$4096:" in server.log
    for role in SERVICE_ROLES:
        assert (server.passwords / role).read_text() not in server.log


@pytest.mark.parametrize("role", SERVICE_ROLES)
async def test_a_compromised_service_cannot_take_another_role(role: str, server: SecuredPostgres) -> None:
    connection = await connect(server.settings(role), role, "a test")
    try:
        for other in {*SERVICE_ROLES, OWNER, SUPERUSER} - {role}:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(f"SET ROLE {other}")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(f"SET SESSION AUTHORIZATION {other}")
        for statement in ("RESET ROLE", "SET ROLE NONE", "RESET SESSION AUTHORIZATION", "RESET ALL"):
            await connection.execute(statement)
            assert await connection.fetchval("SELECT current_user::text") == role
    finally:
        await connection.close()


@pytest.mark.parametrize("role", SERVICE_ROLES)
async def test_only_a_follower_can_become_the_group_of_followers(role: str, server: SecuredPostgres) -> None:
    connection = await connect(server.settings(role), role, "a test")
    try:
        if role in FOLLOWER_ROLES:
            await connection.execute(f"SET ROLE {FOLLOWERS}")
            assert await connection.fetchval("SELECT current_user::text") == FOLLOWERS
        else:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(f"SET ROLE {FOLLOWERS}")
    finally:
        await connection.close()


async def test_the_writer_creates_a_month_of_quarantine_and_only_the_owner_drops_one(
    server: SecuredPostgres, owner: asyncpg.Connection
) -> None:
    writer = await connect(server.settings("drawdown_allocation"), "drawdown_allocation", "a test")
    await writer.execute("SELECT ledger.make_quarantine_part('2020-01-31T23:59:59Z')")
    await writer.close()
    assert await owner.fetchval("SELECT to_regclass('ledger.quarantine_2020_01') IS NOT NULL")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await drop_month(server.settings("drawdown_allocation"), "2020-01", "mine", lambda _: True)
    assert await drop_month(server.settings(OWNER), "2020-01", "it is empty", lambda _: True) == 0
    assert await owner.fetchval("SELECT to_regclass('ledger.quarantine_2020_01') IS NULL")
    noted = await owner.fetchrow("SELECT operator, details ->> 'month' AS month FROM ledger.operators_log")
    assert (noted["operator"].split(",")[0], noted["month"]) == (OWNER, "2020-01")


FORBIDDEN_TO_ALL = (
    "UPDATE ledger.entries SET amount = 0",
    "UPDATE ledger.batches SET root = ''",
    "DELETE FROM ledger.entries",
    "DELETE FROM ledger.entries_0",
    "DELETE FROM ledger.outcomes",
    "TRUNCATE ledger.entries",
    "TRUNCATE ledger.entries_1",
    "ALTER TABLE ledger.entries DISABLE TRIGGER append_only",
    "ALTER TABLE ledger.entries_0 DISABLE TRIGGER ALL",
    "ALTER TABLE ledger.entries DETACH PARTITION ledger.entries_0",
    "ALTER TABLE ledger.checkpoints DETACH PARTITION ledger.checkpoints_balance",
    "DROP TABLE ledger.entries_0",
    "DROP TRIGGER append_only ON ledger.entries",
    "DROP SCHEMA ledger CASCADE",
    "CREATE TRIGGER mine BEFORE INSERT ON ledger.entries EXECUTE FUNCTION ledger.refuse_change()",
    "DO $$ BEGIN LOCK TABLE ledger.entries IN ACCESS EXCLUSIVE MODE; END $$",
    "SET session_replication_role = replica",
    "ALTER SYSTEM SET fsync = off",
    "DELETE FROM ledger.checkpoints",
    "INSERT INTO ledger.quarantine_replays VALUES (0, 1, now(), now())",
    "INSERT INTO public.migrations (name) VALUES ('9999_mine.sql')",
    "UPDATE public.migrations SET sha256 = ''",
    "SELECT ledger.make_append_only('ledger.shards')",
    "SELECT ledger.create_shards(64)",
    "SELECT rolpassword FROM pg_authid",
    "SELECT passwd FROM pg_shadow",
    "ALTER ROLE drawdown PASSWORD 'mine'",
    "GRANT drawdown TO CURRENT_USER",
    "CREATE ROLE mine",
    "CREATE SCHEMA mine",
    "CREATE TABLE public.mine ()",
    "CREATE TABLE ledger.mine ()",
    "CREATE TEMPORARY TABLE mine ()",
    "CREATE FUNCTION public.mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    "CREATE DATABASE mine",
    "COPY (SELECT 1) TO PROGRAM 'id'",
    "COPY (SELECT 1) TO '/tmp/mine'",
    "SELECT pg_read_file('/etc/passwd')",
)
WRITES_OF_THE_WRITER = (
    "INSERT INTO ledger.entries SELECT * FROM ledger.entries",
    "INSERT INTO ledger.entries_0 SELECT * FROM ledger.entries_0",
    "INSERT INTO ledger.batches SELECT * FROM ledger.batches",
    "INSERT INTO ledger.outcomes SELECT * FROM ledger.outcomes",
    "INSERT INTO ledger.quarantine SELECT * FROM ledger.quarantine",
    "INSERT INTO ledger.policies VALUES ('mine', '{}')",
    "INSERT INTO ledger.ad_accounts VALUES ('mine', 0, 'mine')",
    "INSERT INTO ledger.forwarded (shard, topic, partition, \"offset\") VALUES (0, 'spend.events', 0, 0)",
    "UPDATE ledger.shards SET epoch = epoch + 1",
    "DELETE FROM ledger.allocators",
    "INSERT INTO ledger.snapshots VALUES (0, 0, 0, '')",
    "SELECT ledger.end_sessions('everybody')",
)
WRITES_OF_FOLLOWERS = {
    "drawdown_balance": "UPDATE balance.pockets SET amount = 0",
    "drawdown_incentives": "UPDATE incentives.cash_spend SET amount = 0",
    "drawdown_signals": "UPDATE signals.latest SET position = 0",
    "drawdown_api": "UPDATE incentives.deals SET client = 'mine'",
}


@pytest.mark.parametrize("role", SERVICE_ROLES)
async def test_actions_outside_its_task_are_refused_to_a_service(role: str, server: SecuredPostgres) -> None:
    of_others = [statement for other, statement in WRITES_OF_FOLLOWERS.items() if other != role]
    of_the_writer = () if role == "drawdown_allocation" else WRITES_OF_THE_WRITER
    connection = await connect(server.settings(role), role, "a test")
    try:
        for statement in (*FORBIDDEN_TO_ALL, *of_the_writer, *of_others):
            try:
                await connection.execute(statement)
            except asyncpg.InsufficientPrivilegeError:
                continue
            pytest.fail(f"{role} may {statement}")
    finally:
        await connection.close()


CHECKPOINTS = {"drawdown_allocation": "outcomes", **{model.role: model.name for model in READ_MODELS}}


@pytest.mark.parametrize("role", CHECKPOINTS)
async def test_a_follower_moves_and_locks_only_its_own_checkpoints(
    role: str, server: SecuredPostgres, owner: asyncpg.Connection
) -> None:
    await owner.executemany(
        "INSERT INTO ledger.checkpoints VALUES ($1, 0) ON CONFLICT DO NOTHING",
        [(name,) for name in CHECKPOINTS.values()],
    )
    own = checkpoints_of(CHECKPOINTS[role])
    others = [checkpoints_of(name) for name in CHECKPOINTS.values() if name != CHECKPOINTS[role]]
    connection = await connect(server.settings(role), role, "a test")
    try:
        assert await connection.execute(f"UPDATE {own} SET recorded_at = now()") == "UPDATE 1"
        for table in ("ledger.checkpoints", *others):
            for statement in (f"UPDATE {table} SET position = 1", f"LOCK TABLE {table} IN ROW SHARE MODE"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await connection.execute(f"DO $$ BEGIN {statement}; END $$")
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute(f"INSERT INTO {own} VALUES ('another', 1)")
    finally:
        await connection.close()
        await owner.execute("DELETE FROM ledger.checkpoints")  # The followers begin again at the first position.


async def test_a_writer_ends_only_the_sessions_of_writers(server: SecuredPostgres) -> None:
    writer = "drawdown_allocation"
    stale = await connect(server.settings(writer), writer, "drawdown allocation lease 12345678")
    borrowed = await connect(server.settings("drawdown_api"), "drawdown_api", "drawdown allocation lease 12345678")
    alive = await connect(server.settings(writer), writer, "drawdown allocation lease abcdefgh")
    try:
        ended = asyncio.Event()
        stale.add_termination_listener(lambda _connection: ended.set())
        assert await alive.fetchval("SELECT ledger.end_sessions('host:1:12345678')") == 1
        await asyncio.wait_for(ended.wait(), QUICKLY_SECONDS)
        assert await borrowed.fetchval("SELECT 1") == 1
    finally:
        for connection in (stale, borrowed, alive):
            connection.terminate()


async def test_an_owner_without_superuser_rights_suffices_on_the_postgresql_of_production(
    server: SecuredPostgres, reachable_path: Path
) -> None:
    """As above, on version 18: since 16, a role that creates roles is not automatically a member of them."""
    postgres = servers.chosen.postgres(reachable_path)
    await postgres.start()
    try:
        superuser = await asyncpg.connect(postgres.url)
        await superuser.execute("CREATE ROLE plain_owner LOGIN CREATEROLE PASSWORD 'plain'")
        await superuser.execute("CREATE DATABASE plain OWNER plain_owner")
        await superuser.close()

        def settings(login: str, password: str) -> Settings:
            url = f"postgresql://{login}:{password}@{postgres.url.rpartition('@')[2].partition('/')[0]}/plain"
            return Settings(database_url=url, role_passwords_dir=server.passwords)

        await migrate(settings("plain_owner", "plain"))
        writer = settings("drawdown_allocation", (server.passwords / "drawdown_allocation").read_text())
        stale = await connect(writer, "drawdown_allocation", "drawdown allocation lease 12345678")
        alive = await connect(writer, "drawdown_allocation", "drawdown allocation lease abcdefgh")
        owner = await asyncpg.connect(settings("plain_owner", "plain").database_url)
        try:
            assert await alive.fetchval("SELECT session_user::text") == "drawdown_allocation"
            assert await alive.fetchval("SELECT ledger.end_sessions('host:1:12345678')") == 1
            for role in SERVICE_ROLES:
                found = await granted(owner, role, "plain")
                assert (
                    found.items()
                    >= {name: letters for (of, name), letters in documented().items() if of == role}.items()
                )
        finally:
            for connection in (stale, alive, owner):
                connection.terminate()
    finally:
        await postgres.stop()


async def test_a_whole_system_works_with_separate_logins_over_tls(server: SecuredPostgres) -> None:
    """Under roles all tests pass already. Here no owner's login is present that could lend a right."""
    system = LoginsOfTheirOwn(server)
    try:
        await system.start()
        async with FrontDoor(system) as door, system.client() as client:
            await open_and_work(door, Workload(33, prefix="tls-"), 150)
            await door.publish_raw(b"no event", partition=0)
            await door.fence()
            (unreadable,) = [each for each in (await door.quarantine()).values() if each["raw"] == b"no event"]
            replayed = await client.post(f"/v1/quarantine/{unreadable['id']}/replay?force=true")
            assert (replayed.status_code, replayed.json()) == (202, {"replayed": 1})
            await door.fence()
        for name in SERVICES:
            assert f'identity="drawdown_{name}" method=scram-sha-256' in server.log
    finally:
        await system.stop()
    assert await replay(server.settings("drawdown_auditor")) == PASSED


async def test_another_login_of_the_server_is_refused(server: SecuredPostgres) -> None:
    superuser = await server.connect(SUPERUSER)
    (server.passwords / "stranger").write_text("of another application")
    await superuser.execute("CREATE ROLE stranger LOGIN PASSWORD 'of another application'")
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied for database"):
            await server.connect("stranger")
    finally:
        await superuser.execute("DROP ROLE stranger")
        await superuser.close()


async def test_the_next_migration_restores_whatever_a_backup_lacks(
    server: SecuredPostgres, owner: asyncpg.Connection
) -> None:
    """The right to connect belongs to the server, so every login may connect to a restored database."""
    await owner.execute("GRANT CONNECT, TEMPORARY ON DATABASE drawdown TO PUBLIC")
    await owner.execute("REVOKE CONNECT ON DATABASE drawdown FROM drawdown_api")
    await migrate(server.settings(OWNER))
    assert (await granted(owner, "public"))["database"] == ""
    assert (await granted(owner, "drawdown_api"))["database"] == "c"


REFUSALS: dict[str, tuple[Callable[[SecuredPostgres], dict[str, Any]], str]] = {
    "wrong password": (
        lambda server: {"database_password_file": server.passwords / "drawdown_balance"},
        r'DRAWDOWN_DATABASE_URL: .* refuses this login: password authentication failed for user "drawdown_api"',
    ),
    "no password": (
        lambda _server: {"database_password_file": None},
        r'DRAWDOWN_DATABASE_URL: .* refuses this login: password authentication failed for user "drawdown_api"',
    ),
    "an unknown authority": (
        lambda _server: {"database_ca_file": None},
        r"DRAWDOWN_DATABASE_CA_FILE: the certificate of .* is not trusted: (self-signed|unable to get local issuer)",
    ),
    "a host that the certificate does not name": (
        lambda server: {"database_url": f"postgresql://drawdown_api@{OTHER_HOST}:{server.port}/drawdown"},
        r"DRAWDOWN_DATABASE_CA_FILE: the certificate of .* is not trusted: IP address mismatch",
    ),
    "no TLS although the server requires it": (
        lambda _server: {"database_tls": "off"},
        r"DRAWDOWN_DATABASE_URL: .* refuses this login: no pg_hba.conf entry .* no encryption",
    ),
    "a file that is not a certificate": (
        lambda server: {"database_ca_file": server.passwords / "drawdown_api"},
        r"DRAWDOWN_DATABASE_CA_FILE: the file holds no PEM certificates",
    ),
    "another service's role": (
        lambda server: {
            "database_url": f"postgresql://drawdown_balance@{HOST}:{server.port}/drawdown",
            "database_password_file": server.passwords / "drawdown_balance",
        },
        r'DRAWDOWN_DATABASE_URL: .* refuses this login: permission denied to set role "drawdown_api"',
    ),
    "a database that does not exist": (
        lambda server: {"database_url": f"postgresql://drawdown_api@{HOST}:{server.port}/none"},
        r'DRAWDOWN_DATABASE_URL: .* refuses this login: database "none" does not exist',
    ),
}


@pytest.mark.parametrize("what", REFUSALS)
async def test_an_error_that_waiting_cannot_fix_is_reported_at_once(what: str, server: SecuredPostgres) -> None:
    overrides, message = REFUSALS[what]
    started = time.monotonic()
    with pytest.raises(BadSettingError, match=message) as refusal:
        await connect(server.settings("drawdown_api", **overrides(server)), "drawdown_api", "a test")
    assert "\n" not in str(refusal.value)
    assert time.monotonic() - started < QUICKLY_SECONDS


async def test_a_server_without_tls_is_refused(postgres: Postgres) -> None:
    settings = Settings(database_url=postgres.url, database_tls="verify-full")
    with pytest.raises(BadSettingError, match=r"DRAWDOWN_DATABASE_TLS: PostgreSQL at .* does not offer TLS"):
        await connect(settings, "drawdown_api", "a test")


@pytest.mark.parametrize("command", [*SERVICES, "migrate", "audit verify"])
async def test_every_command_ends_with_one_line_if_the_server_is_not_trusted(
    command: str, server: SecuredPostgres
) -> None:
    settings = server.settings("drawdown_auditor" if command == "audit verify" else OWNER, database_ca_file=None)
    started = time.monotonic()
    done = await run_to_its_end(command, settings)
    assert done.returncode != 0
    assert "DRAWDOWN_DATABASE_CA_FILE: the certificate of PostgreSQL at" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stdout + done.stderr
    assert time.monotonic() - started < QUICKLY_SECONDS
