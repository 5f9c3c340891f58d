"""`audit verify`: the chain of every shard and the guards, no rules. As fast as rows can be read and hashed."""

import asyncpg

from services.auditor.anchors import Anchors
from services.auditor.chain import grow, links
from services.auditor.guards import check_guards
from services.auditor.report import Progress, Report
from services.auditor.sequences import check_batches
from services.auditor.shard import check_frontier
from services.auditor.standing import Head, check_ends, heads_of
from shared.ledger.merkle import CompactRange


async def verify_ledger(connection: asyncpg.Connection, report: Report, anchors: Anchors) -> None:
    """Verify every shard up to where it stood at the start. Raises DifferenceError at the first difference."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        heads = await heads_of(connection)
        for head in heads:
            await check_ends(connection, head)
    guards = await check_guards(connection, len(heads))
    report.count("append_only_tables", guards.triggers, "tables that refuse every change, enabled always")
    report.count("unique_indexes", guards.indexes, "unique indexes of positions and sources")
    progress = Progress(sum(head.position for head in heads))
    try:
        for head in heads:
            progress.shard(head.shard, report.entries)
            await _verify_shard(connection, head, anchors, report, progress)
    finally:
        progress.end()
    report.count("noted_roots", anchors.checked, "roots noted earlier, still contained")


async def _verify_shard(
    connection: asyncpg.Connection, head: Head, anchors: Anchors, report: Report, progress: Progress
) -> None:
    batches = await check_batches(connection, head)
    tree = CompactRange()
    async for link in links(connection, head.shard, head.position, progress):
        grow(tree, link, head.shard)
        anchors.check(head.shard, tree)
        report.entries += len(link.rows)
    check_frontier(head, tree)
    anchors.finish(head.shard)
    report.count("entries", tree.size, "entries at their positions, hashed")
    report.count("batches", batches, "batches: positions, times, roots")
    report.roots.append((head.shard, head.position, tree.root().hex()))
