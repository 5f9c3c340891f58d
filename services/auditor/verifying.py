"""The first part of `audit verify`: checks the chain of every shard, all rows and the guards, without the rules."""

import asyncpg

from services.auditor.anchors import Anchors
from services.auditor.baseline import Head, check_ends, heads_of, notes_on_times
from services.auditor.chain import grow, links
from services.auditor.checks.constraints import check_times
from services.auditor.checks.counts import check_accounts, check_count, check_outcomes
from services.auditor.checks.forwarded import check_forwarded
from services.auditor.checks.guards import check_guards
from services.auditor.checks.logins import notes_on_functions
from services.auditor.checks.operators import check_operators_log
from services.auditor.checks.quarantine_gaps import check_quarantine
from services.auditor.checks.recorded_policies import notes_on_policies
from services.auditor.checks.recorded_zones import check_zones, notes_on_zones
from services.auditor.checks.references import check_references
from services.auditor.checks.sequences import check_batches, check_strays
from services.auditor.replayed.recorded_outcomes import check_contents
from services.auditor.replayed.resting import check_resting
from services.auditor.replayed.shard_audit import check_frontier
from services.auditor.report import ProgressLine, Report
from shared.ledger.merkle import CompactRange


async def verify_ledger(connection: asyncpg.Connection, report: Report, anchors: Anchors) -> None:
    """Verify every shard up to its position at the start. Raise DifferenceError at the first difference."""
    await check_times(connection)
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        heads = await heads_of(connection)
        for head in heads:
            await check_ends(connection, head)
            accounts = await check_accounts(connection, head)
            report.count("ad_accounts", accounts, "ad accounts, each registered where it was opened")
    await check_strays(connection, len(heads))
    await check_references(connection)
    guards = await check_guards(connection, len(heads))
    guards.tell(report)
    report.count("forwarded", await check_forwarded(connection), "records that wait for a shard, all of them readable")
    report.notes += await notes_on_functions(connection) + await notes_on_policies(connection)
    report.count("time_zones", await check_zones(connection), "recorded time zones, the same as installed here")
    report.notes += await notes_on_zones(connection) + await notes_on_times(connection, heads)
    progress = ProgressLine(sum(head.position for head in heads))
    try:
        for head in heads:
            progress.shard(head.shard, report.entries)
            await _verify_shard(connection, head, anchors, report, progress)
    finally:
        progress.end()
    report.count("operators_log", await check_operators_log(connection), "actions of operators, with their reasons")
    report.count("noted_roots", anchors.checked, "roots noted earlier, still contained")


async def _verify_shard(
    connection: asyncpg.Connection, head: Head, anchors: Anchors, report: Report, progress: ProgressLine
) -> None:
    batches = await check_batches(connection, head)
    outcomes = await check_outcomes(connection, head)
    await check_contents(connection, head)
    quarantined = await check_quarantine(connection, head)
    resting = await check_resting(connection, head)
    tree = CompactRange()
    async for link in links(connection, head.shard, head.position, progress):
        grow(tree, link, head.shard)
        anchors.check(head.shard, tree)
        report.entries += len(link.rows)
    check_frontier(head, tree)
    check_count(head, tree.size)
    anchors.finish(head.shard)
    report.count("entries", tree.size, "entries at their positions, hashed")
    report.count("batches", batches, "batches: positions, times, roots")
    report.count("quarantined", quarantined, "quarantined records, without a gap except for what operators dropped")
    report.count("outcomes", outcomes, "outcomes without a gap, each with a readable command")
    report.count("resting_campaigns", resting, "campaigns at rest, kept where batches end, all of them readable")
    report.roots.append((head.shard, head.position, tree.root().hex()))
