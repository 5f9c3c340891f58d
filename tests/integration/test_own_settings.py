"""A login may set every setting of context `user` for its later sessions. That slows its service down, and does no
more.

Each round sets all of them at once, each to one of its worst values, and restarts the services.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import asyncpg
import pytest

from drawdown.serving import SERVICES
from services.auditor.cli import PASSED, replay, verify
from shared.runtime import postgres as connections
from shared.runtime.postgres import connect
from shared.runtime.roles import ALLOCATION_ROLE as WRITER
from tests.acceptance.front_door import FrontDoor
from tests.integration.working import open_and_work
from tests.model.workload import Workload
from tests.servers import RunningSystem, running_system

# The settings are those of PostgreSQL, which is the same version in a container.
pytestmark = pytest.mark.embedded
ROUNDS = range(3)
# Settings whose worst values are not the ends of a range: texts, and settings that do harm in combination.
CHOSEN = {
    "client_encoding": ("SQL_ASCII", "LATIN1", "EUC_JP"),
    "DateStyle": ("SQL, DMY", "German", "Postgres, YMD"),
    "default_table_access_method": ("nothing", "heap", "nothing"),
    "default_tablespace": ("pg_global", "nothing", "pg_global"),
    "geqo": ("on", "off", "on"),
    "geqo_pool_size": ("2147483647", "0", "1000"),
    "geqo_threshold": ("2", "2", "2"),
    "local_preload_libraries": ("nothing", "nothing", "nothing"),
    "restrict_nonsystem_relation_kind": ("view", "foreign-table", "view, foreign-table"),
    "search_path": ("nowhere", "pg_temp", "ledger"),
    "TimeZone": ("Asia/Tokyo", "America/New_York", "-18"),
    "timezone_abbreviations": ("India", "Australia", "India"),
    "vacuum_buffer_usage_limit": ("0", "16777216", "128"),
}
ALL = "SELECT name, vartype, setting, min_val, max_val, enumvals FROM pg_settings WHERE context = 'user' ORDER BY name"


class Spoilt(NamedTuple):
    """A running system, and a session of its database that is older than all bad settings."""

    system: RunningSystem
    admin: asyncpg.Connection

    async def set_all(self, number: int) -> None:
        """Set everything for later sessions, on the database, which has the same effect as a login's own settings."""
        database = await self.admin.fetchval("SELECT quote_ident(current_database())")
        await self.admin.execute(f"ALTER DATABASE {database} RESET ALL")
        for setting in await self.admin.fetch(ALL):
            with contextlib.suppress(asyncpg.ActiveSQLTransactionError):  # Transaction-only settings cannot be kept.
                value = worst(setting)[number]
                await self.admin.execute(f"ALTER DATABASE {database} SET {setting['name']} = '{value}'")

    async def restart(self) -> None:
        """Restart every service."""
        await asyncio.gather(*(self.system.kill_service(name) for name in SERVICES))
        await asyncio.gather(*(self.system.restart_service(name) for name in SERVICES))


def worst(setting: asyncpg.Record) -> tuple[str, ...]:
    """Return the values of a setting, one for each round."""
    least, most, now = setting["min_val"], setting["max_val"], setting["setting"]
    if setting["name"] in CHOSEN:
        return CHOSEN[setting["name"]]
    if setting["vartype"] == "bool":
        other = "off" if now == "on" else "on"
        return other, now, other
    if setting["vartype"] == "enum":
        values = setting["enumvals"]
        return values[0], values[-1], values[len(values) // 2]
    if setting["vartype"] == "string":
        return now, now, now
    return least, most, "1" if float(least) < 1 <= float(most) else least


@pytest.fixture(scope="module")
async def spoilt() -> AsyncIterator[Spoilt]:
    async with running_system() as system:
        admin = await asyncpg.connect(system.database_url)
        await admin.execute("LOAD 'plpgsql'")  # The session of the test has these settings, too.
        yield Spoilt(system, admin)
        await admin.close()


@pytest.mark.parametrize("number", ROUNDS)
async def test_a_service_starts_and_works_under_any_settings_of_its_login(number: int, spoilt: Spoilt) -> None:
    system = spoilt.system
    await spoilt.set_all(number)
    await spoilt.restart()
    async with FrontDoor(system) as door:
        await open_and_work(door, Workload(33, prefix=f"round-{number}-"), 40)
        await door.publish_raw(b"no event", partition=0)
        await door.fence()
    assert [await audit(system.settings) for audit in (verify, replay)] == [PASSED, PASSED]
    assert [name for name in SERVICES if "the service failed" in system.log_of(name)] == []


@pytest.mark.parametrize("number", ROUNDS)
async def test_the_writer_creates_a_month_of_quarantine_under_any_settings_of_its_login(
    number: int, spoilt: Spoilt
) -> None:
    await spoilt.set_all(number)
    month = datetime.now(UTC) + timedelta(days=31 * (number + 1))
    writer = await connect(spoilt.system.settings, WRITER, "a test")
    try:
        await writer.execute("SELECT ledger.make_quarantine_part($1)", month)
        assert await writer.fetchval("SELECT to_regclass($1) IS NOT NULL", f"ledger.quarantine_{month:%Y_%m}")
    finally:
        await writer.close()


@pytest.mark.parametrize("number", ROUNDS)
async def test_a_refused_statement_does_not_end_the_session_under_any_settings_of_its_login(
    number: int, spoilt: Spoilt
) -> None:
    await spoilt.set_all(number)
    session = await connect(spoilt.system.settings, WRITER, "a test")
    try:
        with pytest.raises(asyncpg.DivisionByZeroError):
            await session.execute("SELECT 1 / 0")
        assert await session.fetchval("SELECT 1") == 1
    finally:
        await session.close()


@pytest.mark.parametrize("number", ROUNDS)
async def test_a_resting_reader_is_not_disconnected_under_any_settings_of_its_login(
    number: int, spoilt: Spoilt
) -> None:
    await spoilt.set_all(number)
    reader, read = await connect(spoilt.system.settings, WRITER, "a test"), 0

    async def take(data: bytes) -> None:
        nonlocal read
        if not read:
            time.sleep(1.5)  # noqa: ASYNC251 - a process that computes, and reads nothing meanwhile
        read += len(data)

    try:
        await reader.copy_from_query("SELECT repeat('x', 100000) FROM generate_series(1, 300)", output=take)
    finally:
        await reader.close()
    assert read > 30_000_000


@pytest.mark.parametrize("unknown", [set(), {"transaction_timeout"}, set(connections._UNKNOWN_TO_OLDER_SERVERS)])
async def test_settings_that_a_server_does_not_know_are_not_set(unknown: set[str]) -> None:
    async def opening(relied_on: dict[str, str]) -> dict[str, str]:
        for name in sorted(unknown & relied_on.keys()):
            raise asyncpg.UndefinedObjectError(f'unrecognized configuration parameter "{name}"')
        return relied_on

    assert (await connections._as_relied_on(opening)).keys() == connections._RELIED_ON.keys() - unknown
