"""The database's roles, one a service: the server's, shared by all its databases. What each may do is a migration's.

Where a deployment gives each service a login of its own, the login is the role itself: a service that was broken into
finds nothing else to become.
"""

import base64
import hashlib
import hmac
import secrets
from pathlib import Path

import asyncpg

from shared.runtime.settings import BadSettingError

SERVICE_ROLES = (
    "drawdown_allocation",
    "drawdown_balance",
    "drawdown_incentives",
    "drawdown_signals",
    "drawdown_api",
    "drawdown_auditor",
)
# What all followers may. Nobody logs in as it.
FOLLOWERS = "drawdown_follower"
FOLLOWER_ROLES = ("drawdown_balance", "drawdown_incentives", "drawdown_signals")

_ITERATIONS = 4096


async def make_roles(connection: asyncpg.Connection) -> None:
    """Make the roles that are missing; whoever migrates is a member of each, to act as it and to end its sessions."""
    for role in (FOLLOWERS, *SERVICE_ROLES):
        if not await connection.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", role):
            await connection.execute(f"CREATE ROLE {role} NOLOGIN")
        if not await connection.fetchval("SELECT pg_has_role($1, 'USAGE')", role):
            await connection.execute(f"GRANT {role} TO current_user")
    for role in FOLLOWER_ROLES:
        if not await connection.fetchval("SELECT pg_has_role($1, $2, 'USAGE')", role, FOLLOWERS):
            await connection.execute(f"GRANT {FOLLOWERS} TO {role}")


async def keep_others_out(connection: asyncpg.Connection) -> None:
    """Let our roles connect to this database, and nobody else's logins. A backup of the database does not hold this."""
    database = await connection.fetchval("SELECT quote_ident(current_database())")
    if await connection.fetchval("SELECT has_database_privilege('public', current_database(), 'CONNECT, TEMPORARY')"):
        await connection.execute(f"REVOKE ALL ON DATABASE {database} FROM PUBLIC")
    for role in SERVICE_ROLES:
        if not await connection.fetchval("SELECT has_database_privilege($1, current_database(), 'CONNECT')", role):
            await connection.execute(f"GRANT CONNECT ON DATABASE {database} TO {role}")


async def allow_logins(connection: asyncpg.Connection, passwords: Path) -> None:
    """Let each service log in as its role, with the password that the file of the role's name holds.

    The server is sent the SCRAM verifier, so that no password is in its log.

    Raises:
        BadSettingError: a file is missing or holds no password.

    """
    for role in SERVICE_ROLES:
        verifier = scram_verifier(_password_of(passwords / role))
        await connection.execute(f"ALTER ROLE {role} LOGIN PASSWORD '{verifier}'")


def scram_verifier(password: str) -> str:
    """What PostgreSQL keeps of a password: RFC 5803, SCRAM-SHA-256 with a salt of its own."""
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
