"""The whole suite: kills, overtaken writers, faults of servers. Prints progress and a table, and writes chaos.json."""

import asyncio
import json
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import structlog

from drawdown.local.processes import start_guardian
from tests.chaos.checker import Findings
from tests.chaos.faults import DISK_FAULTS, FAULTS, Fault, Rig, hurt, rig
from tests.chaos.kills import Killer, Tally, never_reached, table
from tests.chaos.machine import Machine, audit, check, under_load
from tests.chaos.servers import servers
from tests.chaos.zombies import overtake_writers
from tests.containers import problem_of_docker

KILLS, ZOMBIES = 1_000, 1_000
KILLS_BETWEEN_CHECKS = 100
# With fewer kills than this, a step of the list may not be reached.
KILLS_FOR_EVERY_STEP = 500
DISK_SIZE = "320m"
REPORT = Path("chaos.json")


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


@dataclass
class Report:
    """What was done, and what was found."""

    seed: int
    kills: dict[str, int] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    overtaken: int = 0
    faults: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("lost", "doubled", "reordered", "wrong"), 0))
    minutes: float = 0.0

    def take(self, what: str, findings: Findings) -> None:
        """Count what a check found, and keep examples."""
        for name, found in vars(findings).items():
            self.totals[name] += len(found)
        if findings:
            self.problems.append(f"{what}: {findings}\n{findings.examples()}")
            say(self.problems[-1])


def main() -> None:
    """Run the suite; exit with 0 if nothing was found."""
    if problem := problem_of_docker():
        sys.exit(f"make chaos needs a Docker daemon: {problem}")
    start_guardian()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # So that SIGTERM removes the containers, like Ctrl-C.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # The errors of the load's producer are intended.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    seed = int(os.environ.get("CHAOS_SEED") or random.randrange(10**6))
    kills = int(os.environ.get("CHAOS_KILLS") or KILLS)
    only = os.environ.get("CHAOS_ONLY") or ""
    began = time.monotonic()
    report = Report(seed)
    say(f"chaos: seed {seed}, {kills} kills, {min(kills, ZOMBIES)} overtaken writers, {len(FAULTS) + 1} faults")
    parts: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
        "kills": lambda: kill_services(report, seed, kills),
        "zombies": lambda: overtake(report, min(kills, ZOMBIES)),
        "faults": lambda: hurt_servers(report, seed, ""),
    }
    for name, part in parts.items():
        if only in ("", name):
            asyncio.run(part())
    if only and only not in parts:
        asyncio.run(hurt_servers(report, seed, only))
    report.minutes = round((time.monotonic() - began) / 60, 1)
    REPORT.write_text(json.dumps(asdict(report), indent=2) + "\n")
    _show(report)
    sys.exit(1 if report.problems else 0)


async def kill_services(report: Report, seed: int, count: int) -> None:
    """Kill services `count` times, with a check after every hundred kills and at the end."""
    async with servers(proxied=False) as its_servers:
        machine = Machine(its_servers.settings, its_servers.directory)
        for name in machine.names:
            machine.start(name)
        tally, broker = Tally(), its_servers.settings.kafka_bootstrap_servers
        try:
            await machine.all_ready()
            async with under_load(machine, seed) as (load, api):
                killer = Killer(machine, seed, tally, say)
                while tally.count < count:
                    machine.kill()
                    load.resume()
                    await killer.kill_until(min(count, tally.count + KILLS_BETWEEN_CHECKS))
                    report.take(f"after {tally.count} kills", await check(load, its_servers.database_url, broker, api))
                    say(f"  {tally.count} kills, {len(load.journal.events)} events: {_totals(report)}")
            report.problems += await audit(its_servers.settings)
        finally:
            machine.kill()
    report.sent = load.sent()
    report.kills = {f"{service}: {step}": times for service, step, times in table(tally)}
    report.problems += tally.other_ends
    if count >= KILLS_FOR_EVERY_STEP:
        report.problems += [f"no kill at {step}" for step in never_reached(tally)]


async def overtake(report: Report, count: int) -> None:
    """Overtake `count` writers."""
    async with servers(proxied=False) as its_servers, its_servers.fresh_settings() as settings:
        report.problems += await overtake_writers(settings, count, say)
    report.overtaken = count


async def hurt_servers(report: Report, seed: int, only: str) -> None:
    """Cause every fault, or only the named one, as often as the table says. Those that fill a disk get new servers."""
    for every, disk_size in ((FAULTS, None), (DISK_FAULTS, DISK_SIZE)):
        faults = {fault: times for fault, times in every.items() if only in ("", fault.__name__)}
        if not faults:
            continue
        async with rig(seed, disk_size=disk_size) as its_rig:
            for fault, times in faults.items():
                for _ in range(times):
                    await _hurt(report, its_rig, fault)
            report.problems += await audit(its_rig.servers.settings)


async def _hurt(report: Report, its_rig: Rig, fault: Fault) -> None:
    try:
        result = await hurt(its_rig, fault)
    except (AssertionError, TimeoutError) as error:
        report.problems.append(f"{fault.__name__}: {error or 'not in time'}")
        say(report.problems[-1])
        return
    report.take(result.name, result.findings)
    report.problems += [f"{result.name}: {lie}" for lie in result.lies]
    report.faults.append(asdict(result))
    ended = f"; {result.exits}" if result.exits else ""
    say(f"  {result.name}: ready after {result.ready_seconds:.1f} s; {result.findings}{ended}")
    for line in (*result.notes, *result.lies):
        say(f"    {line}")


def _totals(report: Report) -> str:
    return ", ".join(f"{name} {number}" for name, number in report.totals.items())


def _show(report: Report) -> None:
    say("")
    for step, times in report.kills.items():
        say(f"  {times:5}  {step}")
    say(f"  {sum(report.kills.values()):5}  kills in all")
    say(f"  {report.overtaken:5}  overtaken writers")
    for result in report.faults:
        say(f"         {result['name']}: ready after {result['ready_seconds']:.1f} s")
    say(f"{_totals(report)}; {report.minutes} minutes; seed {report.seed}")
    for problem in report.problems:
        say(f"problem: {problem}")
