"""Which migrations there are, and whether a database has had exactly those."""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import asyncpg

from shared.runtime.settings import BadSettingError


@dataclass(frozen=True)
class Migration:
    """A numbered SQL file. Once applied anywhere it never changes: what is to be different is a new one."""

    name: str
    statements: str

    @property
    def sha256(self) -> str:
        """The hash of its text, as `public.migrations` keeps it."""
        return hashlib.sha256(self.statements.encode()).hexdigest()


@cache
def known_migrations() -> tuple[Migration, ...]:
    """Those of this version, in their order."""
    folder = files("shared.runtime") / "migrations"
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".sql"))
    return tuple(Migration(name, (folder / name).read_text("utf-8")) for name in names)


async def require_known_schema(connection: asyncpg.Connection) -> None:
    """Refuse a database that has had other migrations than this version knows.

    Raises:
        BadSettingError: it has had fewer, more or others.

    """
    try:
        rows = await connection.fetch("SELECT name, sha256 FROM public.migrations")
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.InsufficientPrivilegeError):
        rows = []  # Empty, or from before hashes were kept, or from before there was this role.
    applied = {row["name"]: row["sha256"] for row in rows}
    refuse_others(applied)
    if any(migration.name not in applied for migration in known_migrations()):
        raise BadSettingError(
            "DRAWDOWN_DATABASE_URL: the database is older than this version: stop the services, run `drawdown migrate`"
        )


def refuse_others(applied: dict[str, str | None]) -> None:
    """Refuse migrations that this version does not know, or knows with another text. By name, the SHA-256 of each.

    Raises:
        BadSettingError: there is one.

    """
    known = {migration.name: migration.sha256 for migration in known_migrations()}
    for name, sha256 in sorted(applied.items()):
        if name not in known:
            raise BadSettingError(
                f"DRAWDOWN_DATABASE_URL: this version is older than the database (which has had {name}):"
                " run the version that the database was migrated with, or a later one"
            )
        if sha256 not in (known[name], None):
            raise BadSettingError(
                f"DRAWDOWN_DATABASE_URL: the database has had another {name} than this version's:"
                " run the version that it was migrated with; an applied migration never changes"
            )
