"""The read models that there are. Each is one folder, whose follower declares it: `services/<name>/read_model.toml`.

The declarations are found by their place and read as data, because what is shared imports no service. Roles, limits of
connections, migrations, commands, readiness and audits go by them: docs/decisions/read-models.md.
"""

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Final


@dataclass(frozen=True)
class ReadModel:
    """What a follower makes of the ledger. Its folder, command, schema and checkpoints all have its name.

    Args:
        name: the name of its folder, `services/<name>`.
        summary: what its command does, in a sentence.
        connections: how many its role may have, which is for some processes of the service.
        tables: those of its schema that the follower fills from the ledger, and that an audit compares with it.

    """

    name: str
    summary: str
    connections: int
    tables: tuple[str, ...]

    @property
    def role(self) -> str:
        """The database's role that its follower acts as."""
        return f"drawdown_{self.name}"

    @property
    def qualified_tables(self) -> tuple[str, ...]:
        """Its tables, each behind the name of the schema."""
        return tuple(f"{self.name}.{table}" for table in self.tables)

    @property
    def forgetting(self) -> str:
        """SQL that empties it and sends its follower back to the beginning: it is then made again from the ledger.

        For the owner of the database, while the follower is stopped.
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
