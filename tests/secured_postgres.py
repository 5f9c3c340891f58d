"""A PostgreSQL like production's: only TLS, SCRAM, a login for each role, and an owner that is not a superuser.

The server is the distribution's (`apt-get install postgresql`), because the embedded one and some images have no TLS.
"""

import asyncio
import os
import pwd
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from drawdown.deployment.credentials import make_credentials
from drawdown.local.processes import Child, Identity, spawn
from shared.runtime.settings import Settings
from tests.servers import embedded_settings, free_ports

OWNER = "drawdown"
SUPERUSER = "postgres"
# Both are this machine, but the certificate names only the first.
HOST, OTHER_HOST = "127.0.0.1", "127.0.0.2"

PUBLIC_SQL = Path(__file__).parents[1] / "deploy" / "postgres" / "public.sql"

_BINARIES = Path("/usr/lib/postgresql")
_START_SECONDS = 30
_POLL_SECONDS = 0.05


class SecuredPostgres:
    """The server, its credentials, and the settings for them."""

    def __init__(self, directory: Path) -> None:
        self.port = free_ports(1)
        self.passwords = directory / "database"
        self.ca_file = directory / "tls" / "ca.pem"
        self._directory = directory
        self._cluster = directory / "server" / "cluster"
        self._identity = _unprivileged_identity()
        self._child: Child | None = None

    def settings(self, login: str, **overrides: Any) -> Settings:
        """Return the settings of a process that logs in as a role, as the owner or as the superuser."""
        values: dict[str, Any] = {
            "database_url": f"postgresql://{login}@{HOST}:{self.port}/drawdown",
            "database_tls": "verify-full",
            "database_ca_file": self.ca_file,
            "database_password_file": self.passwords / login,
            "role_passwords_dir": self.passwords,
            **overrides,
        }
        return embedded_settings(self._directory, **values)

    async def connect(self, login: str, database: str = "drawdown") -> asyncpg.Connection:
        """Open a plain connection with that login, like `psql`."""
        import ssl

        return await asyncpg.connect(
            host=HOST,
            port=self.port,
            user=login,
            password=(self.passwords / login).read_text(),
            database=database,
            ssl=ssl.create_default_context(cafile=self.ca_file),
        )

    async def start(self) -> None:
        """Create the credentials, the server and the owner's database; return when it answers."""
        make_credentials(Settings(), self._directory, centers_of_traffic=[])
        home = self._cluster.parent
        home.mkdir()
        shutil.copy(self._directory / "tls" / "postgres.pem", home / "server.pem")
        (home / "server.pem").chmod(0o600)
        (home / "pg_hba.conf").write_text("hostssl all all all scram-sha-256\n")
        if self._identity is not None:
            for path in (home, *home.iterdir()):
                os.chown(path, self._identity.user, self._identity.group)
        binaries = _binaries()
        self._run(binaries / "initdb", "-D", self._cluster, "-U", SUPERUSER, "-A", "scram-sha-256", "-E", "UTF8",
                  "--locale=C", f"--pwfile={self.passwords / SUPERUSER}")  # fmt: skip
        options = {
            "port": self.port,
            "listen_addresses": f"{HOST},{OTHER_HOST}",
            "unix_socket_directories": "",
            "hba_file": home / "pg_hba.conf",
            "ssl": "on",
            "ssl_cert_file": home / "server.pem",
            "ssl_key_file": home / "server.pem",
            "log_statement": "all",
            "log_connections": "on",
        }
        self._child = spawn(
            [binaries / "postgres", "-D", self._cluster, *(f"--{name}={value}" for name, value in options.items())],
            log=self._directory / "server.log",
            environment={"LC_ALL": "C"},
            directory=Path("/"),
            identity=self._identity,
        )
        await self._make_owner()

    async def stop(self) -> None:
        """Stop the server."""
        if self._child is not None:
            await self._child.stop(10)

    @property
    def log(self) -> str:
        """The server's log, with every statement."""
        return (self._directory / "server.log").read_text(errors="replace")

    async def _make_owner(self) -> None:
        """Do what deploy/postgres/owner.sql does in a container."""
        superuser = await self._first_connection()
        try:
            password = (self.passwords / OWNER).read_text()
            await superuser.execute(f"CREATE ROLE {OWNER} LOGIN CREATEROLE PASSWORD '{password}'")
            await superuser.execute(f"CREATE DATABASE {OWNER} OWNER {OWNER}")
        finally:
            await superuser.close()
        self.psql(SUPERUSER, "postgres", "--file", PUBLIC_SQL)

    def psql(self, login: str, database: str, *arguments: str | Path, program: str = "psql") -> str:
        """Run one of PostgreSQL's programs with that login; return its output. Raises CalledProcessError."""
        named = ("--host", HOST, "--port", str(self.port), "--username", login, "--no-password", "--dbname", database)
        quiet = ("--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1") if program == "psql" else ()
        password = {"PGPASSWORD": (self.passwords / login).read_text()}
        command = [_binaries() / program, *named, *quiet, *arguments]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, env={**os.environ, **password}, timeout=60
        ).stdout

    async def _first_connection(self) -> asyncpg.Connection:
        async with asyncio.timeout(_START_SECONDS):
            while True:
                try:
                    return await self.connect(SUPERUSER, "postgres")
                except (OSError, asyncpg.CannotConnectNowError):
                    assert self._child is not None
                    assert self._child.exit_code() is None, self.log
                    await asyncio.sleep(_POLL_SECONDS)

    def _run(self, *command: str | Path) -> None:
        identity = self._identity
        subprocess.run(
            command,
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
            user=identity.user if identity else None,
            group=identity.group if identity else None,
            extra_groups=[] if identity else None,
        )


def _binaries() -> Path:
    """Return the folder of the distribution's newest server. Skips the test if there is none."""
    found = [path.parent for path in _BINARIES.glob("*/bin/postgres")]
    if not found:
        pytest.skip("no PostgreSQL that speaks TLS here: apt-get install postgresql")
    return max(found, key=lambda path: int(re.sub(r"\D", "", path.parent.name)))


def _unprivileged_identity() -> Identity | None:
    """Return another user if we are root, because PostgreSQL does not run as root."""
    if os.geteuid() != 0:
        return None
    user = pwd.getpwnam("nobody")
    return Identity(user.pw_uid, user.pw_gid)
