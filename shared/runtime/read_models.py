"""Lists the read models. Each is one folder, in which `services/<name>/read_model.toml` declares it.

The declarations are found by their place and read as data, because `shared` imports no service. Roles, limits of
connections, migrations, commands, readiness and audits follow from them: docs/decisions/read-models.md.
"""

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Final


@dataclass(frozen=True)
class ReadModel:
    """The tables that a follower fills from the ledger. Folder, command, schema and checkpoints all have its name.

    Args:
        name: the name of its folder, `services/<name>`.
        summary: what its command does, in a sentence.
        connections: how many connections its role may have: enough for some processes of the service.
        tables: the tables of its schema that the follower fills, and that an audit compares with the ledger.

    """

    name: str
    summary: str
    connections: int
    tables: tuple[str, ...]

    @property
    def role(self) -> str:
        """Return the database role that its follower acts as."""
        return f"drawdown_{self.name}"

    @property
    def qualified_tables(self) -> tuple[str, ...]:
        """Return its tables, each with the name of the schema."""
        return tuple(f"{self.name}.{table}" for table in self.tables)

    @property
    def forgetting(self) -> str:
        """Return the SQL that empties its tables and sends its follower back to the beginning, to build them again.

        Run it as the owner of the database, while the follower is stopped.
        """
        empty = f"TRUNCATE {', '.join(self.qualified_tables)}"
        return f"{empty}; UPDATE ledger.checkpoints_{self.name} SET position = 0, recorded_at = NULL"  # noqa: S608 (ours)


def _declared() -> tuple[ReadModel, ...]:
    found = []
    for folder in sorted(files("services").iterdir(), key=lambda folder: folder.name):
        declaration = folder / "read_model.toml"
        if declaration.is_file():
            values = tomllib.loads(declaration.read_text("utf-8"))
            found.append(ReadModel(folder.name, **{**values, "tables": tuple(values["tables"])}))
    return tuple(found)


READ_MODELS: Final = _declared()
