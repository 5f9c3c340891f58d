"""Lists the migrations, and checks whether exactly these were applied to a database.

Each owner keeps its own SQL: the ledger's is in `shared/ledger/schema`, a read model's in the folder of its
follower, `services/<name>/schema`. All files share one sequence of numbers and are applied in that order:
docs/decisions/schema.md.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

import asyncpg

from shared.runtime.settings import BadSettingError

# The numbers began again for the first release. Until then, this was the first file.
BEFORE_THE_FIRST_RELEASE = "0001_ledger.sql"


@dataclass(frozen=True)
class Migration:
    """A numbered SQL file. Once it has been applied anywhere, it never changes: a change is a new file."""

    name: str
    statements: str

    @property
    def sha256(self) -> str:
        """Return the SHA-256 of its text, as `public.migrations` stores it."""
        return hashlib.sha256(self.statements.encode()).hexdigest()


@cache
def known_migrations() -> tuple[Migration, ...]:
    """Return the migrations of this version, in the order of their numbers."""
    found = [Migration(file.name, file.read_text("utf-8")) for folder in _folders() for file in folder.iterdir()]
    return tuple(sorted(found, key=lambda migration: migration.name))


def _folders() -> Iterator[Traversable]:
    """Find the folders of all owners by their place, because `shared` imports no service."""
    yield files("shared.ledger") / "schema"
    for service in files("services").iterdir():
        if (service / "schema").is_dir():
            yield service / "schema"


async def applied_migrations(connection: asyncpg.Connection) -> dict[str, str | None]:
    """Return the SHA-256 of each migration that was applied to a database, by name.

    Raises:
        asyncpg.UndefinedTableError: none was applied.

    """
    # The oldest databases from before the first release have no such column.
    rows = await connection.fetch("SELECT name, to_json(m) ->> 'sha256' AS sha256 FROM public.migrations AS m")
    return {row["name"]: row["sha256"] for row in rows}


async def require_known_schema(connection: asyncpg.Connection) -> None:
    """Refuse a database whose applied migrations are not exactly those of this version.

    Raises:
        BadSettingError: fewer, more or other migrations were applied.

    """
    try:
        applied = await applied_migrations(connection)
    except (asyncpg.UndefinedTableError, asyncpg.InsufficientPrivilegeError):
        applied = {}  # The database is empty, or older than this role.
    refuse_others(applied)
    if any(migration.name not in applied for migration in known_migrations()):
        raise BadSettingError(
            "DRAWDOWN_DATABASE_URL: the database is older than this version: stop the services, run `drawdown migrate`"
        )


def refuse_others(applied: Mapping[str, str | None]) -> None:
    """Refuse applied migrations (SHA-256 by name) that this version does not know, or knows with another text.

    Raises:
        BadSettingError: there is such a migration.

    """
    if BEFORE_THE_FIRST_RELEASE in applied:
        raise BadSettingError(
            "DRAWDOWN_DATABASE_URL: the database was created by a version before the first release, and no migration"
            " upgrades it: begin with an empty database (`make clean`, or"
            " `docker compose --file deploy/compose.yaml down --volumes`), or run the version that created it"
        )
    known = {migration.name: migration.sha256 for migration in known_migrations()}
    for name, sha256 in sorted(applied.items()):
        if name not in known:
            raise BadSettingError(
                f"DRAWDOWN_DATABASE_URL: this version is older than the database (which contains {name}):"
                " run the version that the database was migrated with, or a later one"
            )
        if sha256 != known[name]:
            raise BadSettingError(
                f"DRAWDOWN_DATABASE_URL: the database has another migration {name} than this version:"
                " run the version that it was migrated with; an applied migration never changes"
            )
