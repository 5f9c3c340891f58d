"""Checks the services' logins: none has attributes, settings or memberships of its own, or left objects behind."""

from typing import Final

import asyncpg

from services.auditor.difference import DifferenceError, expect
from shared.runtime.closed_functions import open_functions
from shared.runtime.roles import FOLLOWER_ROLES, FOLLOWERS, SERVICE_ROLES

_ATTRIBUTES: Final = ("rolsuper", "rolcreaterole", "rolcreatedb", "rolreplication", "rolbypassrls")
_OWN_SETTINGS: Final = """
    SELECT coalesce(datname, 'every database') AS of_what, array_to_string(setconfig, ', ') AS settings
    FROM pg_db_role_setting LEFT JOIN pg_database d ON d.oid = setdatabase
    WHERE setrole = $1::text::regrole ORDER BY 1 LIMIT 1
"""


async def check_logins(connection: asyncpg.Connection) -> int:
    """Return the number of logins checked. Raise DifferenceError at the first that may do more than it should."""
    for role in SERVICE_ROLES:
        await _check_attributes(connection, role)
        await _check_settings(connection, role)
        await _check_memberships(connection, role)
    await _check_settings(connection, FOLLOWERS)
    await _check_large_objects(connection)
    return len(SERVICE_ROLES)


async def notes_on_functions(connection: asyncpg.Connection) -> list[str]:
    """Return a note if every login may call functions of PostgreSQL that write or lock. No row is wrong by itself."""
    still_open = await open_functions(connection)
    if not still_open:
        return []
    named = f"{still_open[0]} and {len(still_open) - 1} others"
    return [f"every login may run {named}, which write or lock: run deploy/postgres/public.sql as the superuser"]


async def _check_attributes(connection: asyncpg.Connection, role: str) -> None:
    row = await connection.fetchrow("SELECT * FROM pg_roles WHERE rolname = $1", role)
    expect(row is not None, f"the role {role} is missing")
    lifted = [name.removeprefix("rol").upper() for name in _ATTRIBUTES if row[name]]
    expect(not lifted, f"the role {role} was made {', '.join(lifted)}")
    expect(row["rolconnlimit"] >= 0, f"the role {role} may take all connections of the server: run drawdown migrate")


async def _check_settings(connection: asyncpg.Connection, role: str) -> None:
    row = await connection.fetchrow(_OWN_SETTINGS, role)
    if row is not None:
        told = f"{row['settings']} (in {row['of_what']})"
        raise DifferenceError(f"the role {role} has settings of its own: {told}; drawdown migrate removes them")


async def _check_memberships(connection: asyncpg.Connection, role: str) -> None:
    rows = await connection.fetch(
        "SELECT roleid::regrole::text FROM pg_auth_members WHERE member = $1::text::regrole", role
    )
    others = {row[0] for row in rows} - ({FOLLOWERS} if role in FOLLOWER_ROLES else set())
    expect(not others, f"the role {role} was made a member of {', '.join(sorted(others))}")


async def _check_large_objects(connection: asyncpg.Connection) -> None:
    row = await connection.fetchrow(
        "SELECT count(*), min(pg_get_userbyid(lomowner)::text) FROM pg_largeobject_metadata"
    )
    expect(not row[0], f"the database holds {row[0]} large objects, some of {row[1]}: no service creates any")
