"""The sizes of a run. Some can be changed with environment variables, for experiments."""

import os
from dataclasses import dataclass, replace

SHARDS = 4


@dataclass(frozen=True)
class Plan:
    """The sizes of a run.

    `hot_spends` go to one Business Center. Each level of the latency measurement takes `probes * probe_interval_ms`.
    """

    centers: int = 10_000
    campaigns_each: int = 10
    spends: int = 400_000
    hot_spends: int = 100_000
    hot_campaigns: int = 100
    probes: int = 1_000
    probe_interval_ms: int = 20
    levels: tuple[int, ...] = (1_000, 10_000)
    replay_entries: int = 200_000
    mass_accounts: int = 10_000
    mass_cycles: int = 3
    memory_spends: int = 10_000_000


QUICK = Plan(
    centers=1_000,
    spends=160_000,
    hot_spends=40_000,
    probes=100,
    probe_interval_ms=20,
    replay_entries=20_000,
    mass_accounts=1_000,
    mass_cycles=1,
    memory_spends=400_000,
)


def plan_from_environment() -> Plan:
    """Return the plan: BENCH_QUICK=1 selects the small one, and BENCH_SPENDS and BENCH_PROBES change the counts.

    Raises:
        ValueError: a count is not a number.

    """
    plan = QUICK if asked("QUICK") else Plan()
    if spends := os.environ.get("BENCH_SPENDS"):
        count = int(spends)
        plan = replace(plan, spends=count, hot_spends=count // 4, memory_spends=count)
    if probes := os.environ.get("BENCH_PROBES"):
        plan = replace(plan, probes=int(probes))
    return plan


def asked(name: str) -> bool:
    """Return whether the environment asks for a mode, such as BENCH_QUICK."""
    return os.environ.get(f"BENCH_{name}", "") not in ("", "0")
