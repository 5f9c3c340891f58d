"""Checks that the recorded policies can be read: at least each one that a batch names."""

import asyncpg

from services.auditor.difference import expect
from shared.contracts import strict_json
from shared.rules.policy import policy_of

MOST_NOTES = 20

_PAGE = "SELECT version, content::text FROM ledger.policies WHERE version > $1 ORDER BY version LIMIT 100"


async def notes_on_policies(connection: asyncpg.Connection) -> list[str]:
    """Return a note for each unreadable policy that no batch names: a newer release may have recorded it.

    Raise DifferenceError if a batch names it.
    """
    named = {row[0] for row in await connection.fetch("SELECT DISTINCT policy_version FROM ledger.batches")}
    notes: list[str] = []
    unreadable, after = 0, ""
    while page := await connection.fetch(_PAGE, after):  # The table may hold any number of rows of 64 KiB.
        for version, content in page:
            problem = _problem(content)
            if problem:
                told = f"ledger.policies: the policy {version!r} cannot be read: {problem}"
                expect(version not in named, told)
                unreadable += 1
                if unreadable <= MOST_NOTES:
                    notes.append(f"{told}; no batch names it")
        after = page[-1]["version"]
    if unreadable > MOST_NOTES:
        notes.append(f"ledger.policies: {unreadable:,} policies cannot be read, the first {MOST_NOTES} are named here")
    return notes


def _problem(content: str) -> str:
    try:
        policy_of(strict_json.read(content.encode()))
    except ValueError as error:
        return str(error)
    return ""
