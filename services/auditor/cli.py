"""The audits as the command line calls them. Each returns an exit code: 0 passed, 1 a difference, 2 not run."""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from services.auditor import verifying
from services.auditor.anchors import Anchors, read_anchors
from services.auditor.difference import DifferenceError
from services.auditor.exporting import Selection, write_export
from services.auditor.replaying import replay_ledger
from services.auditor.report import Report
from shared.ledger.lookup import plain_types
from shared.runtime.postgres import connect
from shared.runtime.roles import AUDITOR_ROLE
from shared.runtime.settings import Settings

PASSED, DIFFERS, NOT_RUN = 0, 1, 2
_CANNOT_RUN = (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError)


async def replay(settings: Settings, *, as_json: bool = False, since: Path | None = None) -> int:
    """Decide the ledger again, fold it from nothing, and compare everything that was derived from it. Return 0, 1 or 2.

    Args:
        settings: which database to read, and as which login.
        as_json: print one JSON object instead of lines.
        since: an earlier `--json` report or an export's manifest, whose roots the ledger must still contain.

    """

    async def run(connection: asyncpg.Connection, report: Report) -> None:
        await replay_ledger(connection, report, read_anchors(since))

    return await _audit(settings, Report("replay"), run, as_json)


async def verify(
    settings: Settings, *, as_json: bool = False, since: Path | None = None, chain_only: bool = False
) -> int:
    """Check positions, hashes, roots, leases, guards and all rows, and then everything that `replay` checks.

    Take and return the same as `replay`. With `chain_only`, nothing is decided again, which is much faster and does
    not need the rules, but does not find an entry that the rules would not have decided.
    """

    async def run(connection: asyncpg.Connection, report: Report) -> None:
        await verifying.verify_ledger(connection, report, read_anchors(since))
        if not chain_only:
            report.decided = Report("replay")
            await replay_ledger(connection, report.decided, Anchors())

    return await _audit(settings, Report("verify"), run, as_json)


async def export(settings: Settings, selection: Selection, *, as_json: bool = False) -> int:
    """Write entries, batches and a manifest from which anybody can recompute the roots. Return 0, 1 or 2."""

    async def run(connection: asyncpg.Connection, report: Report) -> None:
        await write_export(connection, report, selection)

    return await _audit(settings, Report("export"), run, as_json)


async def _audit(
    settings: Settings,
    report: Report,
    run: Callable[[asyncpg.Connection, Report], Awaitable[None]],
    as_json: bool,
) -> int:
    """Run an audit on a connection that cannot write, print its report, and return the exit code."""
    try:
        async with _reading(settings) as connection:
            await run(connection, report)
    except DifferenceError as difference:
        report.difference = str(difference)
    except _CANNOT_RUN as error:
        print(f"drawdown: the audit could not run: {_line(error)}", file=sys.stderr)
        return NOT_RUN
    report.end()
    report.show(as_json)
    return PASSED if report.difference is None else DIFFERS


@asynccontextmanager
async def _reading(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect(settings, AUDITOR_ROLE, "drawdown audit")
    try:
        await plain_types(connection)
        await connection.execute("SET default_transaction_read_only = on; SET jit = off")
        yield connection
    finally:
        await connection.close(timeout=5)


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
