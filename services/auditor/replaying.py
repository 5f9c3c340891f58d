"""`audit replay`: decides the ledger again, and compares everything that was derived from it."""

from collections import defaultdict

import asyncpg

from services.auditor.anchors import Anchors
from services.auditor.baseline import Baseline, Head, read_baseline
from services.auditor.checks.constraints import check_times
from services.auditor.checks.guards import check_guards
from services.auditor.checks.logins import notes_on_functions
from services.auditor.checks.quarantine_gaps import check_quarantine
from services.auditor.checks.recorded_policies import notes_on_policies
from services.auditor.checks.sequences import check_batches, check_sources, check_strays
from services.auditor.replayed import sums
from services.auditor.replayed.recorded_outcomes import read_outcomes
from services.auditor.replayed.shard_audit import ShardAudit
from services.auditor.report import ProgressLine, Report
from services.auditor.tables import expect_none_left
from shared.rules.money import format_micros


async def replay_ledger(connection: asyncpg.Connection, report: Report, anchors: Anchors) -> None:
    """Audit every shard up to its position at the start. Raise DifferenceError at the first difference."""
    await check_times(connection)
    baseline = await read_baseline(connection)
    guards = await check_guards(connection, len(baseline.heads))
    guards.tell(report)
    report.notes += await notes_on_functions(connection)
    await check_strays(connection, len(baseline.heads))
    report.notes += await notes_on_policies(connection)
    progress = ProgressLine(sum(head.position for head in baseline.heads))
    money: defaultdict[str, int] = defaultdict(int)
    try:
        for head in baseline.heads:
            progress.shard(head.shard, report.entries)
            audit = await _replay_shard(connection, head, baseline, anchors, report, progress)
            for name, amount in sums.check_identity(audit.rules, audit.fold).items():
                money[name] += amount
    finally:
        progress.end()
    expect_none_left(baseline.rows)
    report.count("noted_roots", anchors.checked, "roots noted earlier, still contained")
    report.money = {name: format_micros(amount) for name, amount in money.items()}


async def _replay_shard(
    connection: asyncpg.Connection,
    head: Head,
    baseline: Baseline,
    anchors: Anchors,
    report: Report,
    progress: ProgressLine,
) -> ShardAudit:
    await check_batches(connection, head)
    quarantined = await check_quarantine(connection, head)
    await check_sources(connection, head)
    outcomes = await read_outcomes(connection, head.shard, head.outcome_sequence)
    audit = ShardAudit(connection, head, baseline, outcomes, anchors)
    try:
        await audit.check(progress)
    finally:
        report.entries += audit.entries
    report.roots.append((head.shard, head.position, audit.tree.root().hex()))
    events = audit.inputs - outcomes.accepted
    for name, number, words in (
        ("entries", audit.entries, "entries decided again and the same, byte for byte"),
        ("batches", audit.batches, "batches: positions, times, roots"),
        ("events", events, "spends and reversals decided again, each in the ledger once"),
        ("commands_accepted", outcomes.accepted, "accepted commands decided again, with the outcomes they got"),
        ("commands_refused", audit.refused, "refused commands decided again and refused for the same reason"),
        ("commands_hashed", audit.hashed, "refused commands of which a hash is kept: not decided again"),
        ("outcomes_repeated", outcomes.repeated, "repeated commands, answered as before"),
        ("resting_campaigns", audit.resting.checked, "campaigns at rest, kept with the state that the entries give"),
        ("quarantined", quarantined, "quarantined records, without a gap except for what operators dropped"),
        ("read_model_rows", audit.rows, "rows of the read models, folded again and the same"),
        ("pockets", len(audit.fold.pockets), "pockets, never drawn below zero, as the rules hold them"),
        ("business_centers", len(audit.rules.business_centers), "Business Centers: in = held + billed + forfeited"),
        ("reversed_spends", len(audit.fold.reversed), "reversed spends, none beyond its amount"),
    ):
        report.count(name, number, words)
    return audit
