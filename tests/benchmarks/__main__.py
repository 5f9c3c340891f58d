"""`python -m tests.benchmarks`: runs all benchmarks, prints the table, and writes `bench.json`.

BENCH_QUICK=1 makes a small run, to see that everything works. BENCH_MEMORY=1 measures only the memory of the allocation
process over ten million spends, and BENCH_MEMORY=1 BENCH_CAMPAIGNS=1 over ten million campaigns. BENCH_SPENDS=… and
BENCH_PROBES=… change the counts, and BENCH_ONLY=many,latency,… selects the parts.
"""

import asyncio
import os
import signal
import sys

from tests.benchmarks import report
from tests.benchmarks.bench import Bench, prepared_bench
from tests.benchmarks.copying import copy_rows_per_second
from tests.benchmarks.followers import measure_followers
from tests.benchmarks.latency import Latencies, measure_latency
from tests.benchmarks.load import Center
from tests.benchmarks.memory import measure_campaigns, measure_memory
from tests.benchmarks.plan import asked, plan_from_environment
from tests.benchmarks.replaying import replay_entries_per_second
from tests.benchmarks.report import Figures
from tests.benchmarks.stall import measure_stall
from tests.benchmarks.throughput import drain, set_up_hot, set_up_many

PARTS = ("many", "hot", "followers", "replay", "latency", "stall")


async def measure(bench: Bench, parts: tuple[str, ...]) -> Figures:
    """Measure all parts one after the other, in one system."""
    figures: Figures = {"spends_per_second": {}}
    centers = await set_up_many(bench)
    if "many" in parts:
        await _many(bench, centers, figures)
    if "hot" in parts:
        await _hot(bench, figures)
    if "followers" in parts:
        bench.say("each follower alone folds the ledger from its beginning")
        figures["follower_entries_per_second"] = await measure_followers(bench)
    if "replay" in parts:
        bench.say("deciding a shard of the ledger again")
        figures["replay_entries_per_second"] = await replay_entries_per_second(bench)
    if "latency" in parts:
        await bench.tidy()
        await _latency(bench, figures)
    if "stall" in parts:
        await _stall(bench, figures)
    return figures


async def _many(bench: Bench, centers: list[Center], figures: Figures) -> None:
    plan = bench.plan
    bench.say(f"many: {plan.spends:,} spends on {plan.centers:,} Business Centers")
    drained = await drain(bench, centers, plan.spends)
    bench.say(f"many: {drained.rate:,.0f} spends a second; now the same rows with COPY alone")
    await bench.followers_settle()
    copied = await copy_rows_per_second(bench, drained.first, drained.last)
    figures["spends_per_second"] |= {"many": drained.rate, "many_from_start": drained.rate_from_start}
    figures["copy_rows_per_second"] = copied
    figures["ratio_to_copy"] = drained.rate / copied
    figures["entries_per_spend"] = drained.entries_each
    figures["cpu_us_per_spend"] = drained.cpu_us
    figures["allocation_rss_mib"] = {"start": drained.rss_start_mib, "end": drained.rss_end_mib}


async def _hot(bench: Bench, figures: Figures) -> None:
    bench.say(f"hot: {bench.plan.hot_spends:,} spends on one Business Center")
    drained = await drain(bench, [await set_up_hot(bench)], bench.plan.hot_spends)
    bench.say(f"hot: {drained.rate:,.0f} spends a second")
    rates = figures["spends_per_second"]
    rates |= {"hot": drained.rate, "hot_from_start": drained.rate_from_start}
    if "many" in rates:
        figures["hot_to_many"] = drained.rate / rates["many"]


async def _latency(bench: Bench, figures: Figures) -> None:
    levels = figures["pause_latency_ms"] = {}
    for rate in bench.plan.levels:
        bench.say(f"latency: {bench.plan.probes:,} pauses among {rate:,} spends a second")
        levels[f"at_{rate}"] = _percentiles(await measure_latency(bench, rate))


def _percentiles(latencies: Latencies) -> Figures:
    return {
        "p50": latencies.percentile(0.5),
        "p99": latencies.percentile(0.99),
        "p999": latencies.percentile(0.999),
        "max": latencies.milliseconds[-1],
        "p50_to_decision": latencies.to_decision_ms,
        "probes": len(latencies.milliseconds),
        "unanswered": latencies.unanswered,
        "offered_per_second": latencies.offered_per_second,
    }


async def _stall(bench: Bench, figures: Figures) -> None:
    bench.say(f"stall: {bench.plan.mass_accounts:,} accounts of one Business Center pause and resume at once")
    stall = await measure_stall(bench)
    figures["mass_pause_stall_ms"] = stall.longest
    figures["mass_pause"] = {
        "same_shard_ms": stall.same_shard,
        "other_shard_ms": stall.other_shard,
        "all_signalled_ms": max(stall.signals),
    }


async def run() -> None:
    """Run the benchmarks once. Ctrl-C or SIGTERM stops everything that was started."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    plan = plan_from_environment()
    about = report.machine(plan)
    async with prepared_bench(plan) as bench:
        if asked("MEMORY"):
            measure_it = measure_campaigns if asked("CAMPAIGNS") else measure_memory
            figures: Figures = {"memory": await measure_it(bench)}
        else:
            figures = await measure(bench, tuple(filter(None, os.environ.get("BENCH_ONLY", "").split(","))) or PARTS)
        bench.say("done; stopping the system")
    report.write(figures, about)
    print(report.table(figures, about))
    print(f"the same figures: {report.FILE}")


def main() -> None:
    """Run, and exit with 130 after an interruption."""
    try:
        asyncio.run(run())
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
