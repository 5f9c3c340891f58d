"""The table and `bench.json`: the same figures under the same names, and the machine they were measured on."""

import json
import math
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.plan import Plan, asked

FILE = Path("bench.json")

Figures = dict[str, Any]


@dataclass(frozen=True)
class AtLeast:
    """A goal that a figure must at least reach."""

    value: float

    def verdict(self, figure: float) -> str:
        """Return whether a figure meets the goal."""
        return f"{'reached' if figure >= self.value else 'MISSED'}: at least {_shown(self.value)}"


@dataclass(frozen=True)
class AtMost:
    """A goal that a figure must not exceed."""

    value: float

    def verdict(self, figure: float) -> str:
        """Return whether a figure meets the goal."""
        return f"{'reached' if figure <= self.value else 'MISSED'}: at most {_shown(self.value)}"


MARKS: Mapping[str, AtLeast | AtMost] = {
    "spends_per_second.many": AtLeast(40_000),
    "hot_to_many": AtLeast(0.8),
    "ratio_to_copy": AtLeast(0.15),
    "pause_latency_ms.at_1000.p99": AtMost(50),
    "mass_pause_stall_ms": AtMost(1_000),
}


def machine(plan: Plan) -> Figures:
    """Return the machine that the figures were measured on, and the sizes of the run."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": _git_commit(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "plan": asdict(plan),
    }


def write(figures: Figures, about: Figures) -> None:
    """Write `bench.json` to the working directory."""
    text = json.dumps(_without_infinity({**figures, "machine": about}), indent=2, allow_nan=False)
    FILE.write_text(text + "\n")


def _without_infinity(value: Any) -> Any:
    """Replace infinity, which JSON does not have, with null."""
    if isinstance(value, dict):
        return {name: _without_infinity(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinity(each) for each in value]
    return None if value == math.inf else value


def table(figures: Figures, about: Figures) -> str:
    """Return the aligned figures, each with its goal if it has one."""
    rows = [(name, _shown(value), _verdict(name, value)) for name, value in _flat(figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{name:<{widths[0]}}  {value:>{widths[1]}}  {mark}".rstrip() for name, value, mark in rows]
    rule = "-" * max(len(line) for line in lines)
    where = "{cpu}, {cores} cores, Python {python}, {date}, commit {git_commit}".format(**about)
    quick = ["a quick run: its figures show that it works, and are not comparable"] * asked("QUICK")
    return "\n".join(["", where, *quick, rule, *lines, rule])


def _flat(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            for number, each in enumerate(value):
                yield from _flat(each, f"{prefix}{name}.{number}.")
        else:
            yield prefix + name, value


def _shown(value: float) -> str:
    if value == math.inf:
        return "never"
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.3f}"


def _verdict(name: str, value: float) -> str:
    mark = MARKS.get(name)
    return "" if mark is None else mark.verdict(value)


def _git_commit() -> str:
    """Return the commit, with a plus if the working tree differs from it."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    here = Path(__file__).parent
    return subprocess.run(["git", *arguments], cwd=here, check=True, capture_output=True, text=True).stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
