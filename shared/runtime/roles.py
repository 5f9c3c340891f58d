"""The database's roles, one for each service. All databases of a server share them; migrations grant their rights.

If a deployment gives each service its own login, the login is the role itself. So an attacker who controls a service
cannot become another service. A follower can also become the group of followers, which has fewer rights.
"""

import base64
import hashlib
import hmac
import secrets
from pathlib import Path
from typing import Final

import asyncpg
import structlog

from shared.runtime.read_models import READ_MODELS
from shared.runtime.settings import BadSettingError

# The role with the rights that all followers have. Nobody logs in as it.
FOLLOWERS = "drawdown_follower"
FOLLOWER_ROLES = tuple(model.role for model in READ_MODELS)
ALLOCATION_ROLE: Final = "drawdown_allocation"
API_ROLE: Final = "drawdown_api"
AUDITOR_ROLE: Final = "drawdown_auditor"
SERVICE_ROLES = (ALLOCATION_ROLE, *FOLLOWER_ROLES, API_ROLE, AUDITOR_ROLE)

# Connections that are left to the owner, who migrates, and to the superuser.
OF_THE_OWNER = 6

_ITERATIONS = 4096

_SETTINGS_BY_DATABASE = """
    SELECT quote_ident(datname) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
    WHERE setrole = $1::text::regrole
"""


def connection_limits(shards: int) -> dict[str, int]:
    """Return how many connections each role may have: enough for some processes of its service, but never all.

    A process of `allocation` has five, and two for each shard that it writes; a process of `api` has about a dozen;
    followers declare theirs. PostgreSQL allows a hundred by default. Together the roles leave some to the owner.
    """
    return {
        ALLOCATION_ROLE: 32 + 2 * shards,
        **{model.role: model.connections for model in READ_MODELS},
        API_ROLE: 24,
        AUDITOR_ROLE: 4,
    }


async def make_roles(connection: asyncpg.Connection) -> None:
    """Create missing roles. The login that migrates becomes a member of each, to act as it and to end its sessions."""
    for role in (FOLLOWERS, *SERVICE_ROLES):
        if not await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", role):
            await connection.execute(f"CREATE ROLE {role} NOLOGIN")
        if not await connection.fetchval("SELECT pg_has_role($1, 'USAGE')", role):
            await connection.execute(f"GRANT {role} TO current_user")
    for role in FOLLOWER_ROLES:
        if not await connection.fetchval("SELECT pg_has_role($1, $2, 'USAGE')", role, FOLLOWERS):
            await connection.execute(f"GRANT {FOLLOWERS} TO {role}")


async def keep_roles_plain(connection: asyncpg.Connection, shards: int) -> None:
    """Reset the settings that each role has made for itself, and limit its connections if it has no limit yet.

    Every login may alter its own role, and these settings hold for all its later sessions. It may not alter its limit.
    """
    for role in (FOLLOWERS, *SERVICE_ROLES):
        if await connection.fetchval("SELECT rolconfig IS NOT NULL FROM pg_roles WHERE rolname = $1", role):
            await connection.execute(f"ALTER ROLE {role} RESET ALL")
        for row in await connection.fetch(_SETTINGS_BY_DATABASE, role):
            await connection.execute(f"ALTER ROLE {role} IN DATABASE {row[0]} RESET ALL")
    limits = connection_limits(shards)
    for role, limit in limits.items():
        if await connection.fetchval("SELECT rolconnlimit FROM pg_roles WHERE rolname = $1", role) == -1:
            await connection.execute(f"ALTER ROLE {role} CONNECTION LIMIT {limit}")
    most = int(await connection.fetchval("SELECT current_setting('max_connections')")) - OF_THE_OWNER
    if sum(limits.values()) > most:
        structlog.get_logger().warning(
            "all logins together may use more connections than the server has: raise its max_connections",
            wanted=sum(limits.values()) + OF_THE_OWNER,
            found=most + OF_THE_OWNER,
        )


async def keep_others_out(connection: asyncpg.Connection) -> None:
    """Let only our roles connect to this database. A backup of the database does not contain this right."""
    database = await connection.fetchval("SELECT quote_ident(current_database())")
    if await connection.fetchval("SELECT has_database_privilege('public', current_database(), 'CONNECT, TEMPORARY')"):
        await connection.execute(f"REVOKE ALL ON DATABASE {database} FROM PUBLIC")
    for role in SERVICE_ROLES:
        if not await connection.fetchval("SELECT has_database_privilege($1, current_database(), 'CONNECT')", role):
            await connection.execute(f"GRANT CONNECT ON DATABASE {database} TO {role}")


async def allow_logins(connection: asyncpg.Connection, passwords: Path) -> None:
    """Let each service log in as its role, with the password in the file of that name.

    The server gets only the SCRAM verifier, so that its log contains no password.

    Raises:
        BadSettingError: a file is missing or holds no password.

    """
    for role in SERVICE_ROLES:
        verifier = scram_verifier(_password_of(passwords / role))
        await connection.execute(f"ALTER ROLE {role} LOGIN PASSWORD '{verifier}'")


def scram_verifier(password: str) -> str:
    """Return what PostgreSQL stores instead of a password: SCRAM-SHA-256 with a new salt (RFC 5803)."""
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, _ITERATIONS)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    told = [base64.b64encode(each).decode() for each in (salt, stored_key, server_key)]
    return f"SCRAM-SHA-256${_ITERATIONS}:{told[0]}${told[1]}:{told[2]}"


def _password_of(file: Path) -> str:
    try:
        password = file.read_text("utf-8").strip()
    except OSError as error:
        raise BadSettingError(f"DRAWDOWN_ROLE_PASSWORDS_DIR: {file} cannot be read: {error.strerror}") from None
    if not (password.isascii() and password.isprintable() and password):
        raise BadSettingError(f"DRAWDOWN_ROLE_PASSWORDS_DIR: {file} should hold a password, in printable ASCII")
    return password
