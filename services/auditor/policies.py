"""The recorded policies: the waterfalls that batches name can be read."""

import asyncpg

from services.auditor.difference import expect
from shared.contracts import strict_json
from shared.rules.policy import policy_of


async def notes_on_policies(connection: asyncpg.Connection) -> list[str]:
    """A sentence for each policy that cannot be read and that no batch names: a newer version may have recorded it.

    Raises DifferenceError for one that a batch names.
    """
    notes = []
    for version, content in await connection.fetch("SELECT version, content::text FROM ledger.policies ORDER BY 1"):
        problem = _problem(content)
        if problem:
            named = await connection.fetchval(
                "SELECT EXISTS (SELECT FROM ledger.batches WHERE policy_version = $1)", version
            )
            told = f"ledger.policies: the policy {version!r} cannot be read: {problem}"
            expect(not named, told)
            notes.append(f"{told}; no batch names it")
    return notes


def _problem(content: str) -> str:
    try:
        policy_of(strict_json.read(content.encode()))
    except ValueError as error:
        return str(error)
    return ""
