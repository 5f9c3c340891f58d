"""The recorded time zones against those installed here: what was recorded first is what all days are decided by."""

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
    """What is recorded of the release that is installed here is what is installed. How many zones; raises.

    Other releases are compared by whoever has them installed.
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
    """A sentence for each release that nothing was decided under yet: once it is installed, it is decided by these."""
    return [
        f"time zones of the release {row[0]} are recorded, and nothing was decided under it: are they that release's?"
        for row in await connection.fetch(_UNNAMED, UNRECORDED)
    ]
