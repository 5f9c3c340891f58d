"""Checks which rows the constraints of a table accept, without writing a row."""

from collections.abc import Mapping

import asyncpg


async def takes(database: asyncpg.Connection, table: int, of: str, row: Mapping[str, str]) -> bool:
    """Return whether the validated constraints `…_<of>` of a table accept a row, given as the SQL of its values by
    column.
    """
    values = ", ".join(f"{value} AS {name}" for name, value in row.items())
    bounds = await database.fetch(
        "SELECT pg_get_expr(conbin, conrelid) FROM pg_constraint WHERE conrelid = $1 AND contype = 'c'"
        " AND convalidated AND conname ~ ('_' || $2 || '$')",
        table,
        of,
    )
    held = " AND ".join(["true", *(bound[0] for bound in bounds)])
    return bool(await database.fetchval(f"SELECT {held} FROM (SELECT {values}) AS row"))
