"""Reads what the ledger's writer has recorded of waterfall policies.

The login of the writer can store any JSON of up to 64 KiB for a version, and any number of versions.
"""

from collections.abc import Iterable
from typing import Final

import asyncpg

# The longest policy of this release has about 650 characters (`policy_of`). A newer release may know more words.
MOST_CHARACTERS: Final = 4_096


async def read_contents(connection: asyncpg.Connection, versions: Iterable[str]) -> dict[str, str | None]:
    """Return the JSON of each of these versions that is recorded; None if it is longer than a policy can be."""
    rows = await connection.fetch(
        "SELECT version, left(content::text, $2) FROM ledger.policies WHERE version = ANY($1) ORDER BY version",
        list(versions),
        MOST_CHARACTERS + 1,
    )
    return {version: content if len(content) <= MOST_CHARACTERS else None for version, content in rows}
