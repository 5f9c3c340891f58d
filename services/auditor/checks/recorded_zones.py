"""Compares the recorded time zones with those installed here. The recorded ones decide all days of the ledger."""

import asyncpg

from services.auditor.difference import expect
from shared.contracts.zones import installed_zones
from shared.ledger.zones import UNRECORDED

_UNNAMED = """
    SELECT DISTINCT release FROM ledger.time_zones
    WHERE release <> $1
        AND NOT EXISTS (SELECT FROM ledger.batches WHERE zones_release = release)
        AND NOT EXISTS (SELECT FROM ledger.outcomes WHERE zones_release = release)
    ORDER BY 1
"""


async def check_zones(connection: asyncpg.Connection) -> int:
    """Return the number of zones recorded for the installed release. Raise DifferenceError if one differs from it.

    Other releases can only be compared on a machine that has them installed.
    """
    installed = installed_zones()
    rows = await connection.fetch(
        "SELECT name, data FROM ledger.time_zones WHERE release = $1 ORDER BY name", installed.release
    )
    for name, data in rows:
        expect(
            installed.table.get(name) == data,
            f"ledger.time_zones: {name} of the release {installed.release} is not what is installed here",
        )
    return len(rows)


async def notes_on_zones(connection: asyncpg.Connection) -> list[str]:
    """Return a note for each recorded release that has decided nothing yet.

    The recorded zones will decide once that release is installed, so a forged one would matter then.
    """
    return [
        f"time zones of the release {row[0]} are recorded, but no batch names it yet: compare them with that release"
        for row in await connection.fetch(_UNNAMED, UNRECORDED)
    ]
