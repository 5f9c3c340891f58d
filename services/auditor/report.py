"""What an audit prints: its progress while it runs, and at the end what it checked, how much of it and how fast."""

import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any

LIVE_EVERY_SECONDS = 0.1
LINE_EVERY_SECONDS = 3.0


class ProgressLine:
    """Progress on stderr: one line that is overwritten on a terminal, otherwise a line every few seconds."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._before = 0
        self._started = self._said = time.monotonic()
        self._live = sys.stderr.isatty()
        self.what = ""

    def shard(self, shard: int, entries_before: int) -> None:
        """Note which shard is read now, and how many entries of other shards were read before it."""
        self.what = f"shard {shard}"
        self._before = entries_before

    def __call__(self, position: int) -> None:
        """Note that the present shard was read up to this position, and print the progress if it is time."""
        now = time.monotonic()
        if now - self._said < (LIVE_EVERY_SECONDS if self._live else LINE_EVERY_SECONDS):
            return
        self._said = now
        done = self._before + position
        rate = done / max(now - self._started, 1e-9)
        line = f"{self.what}: {done:,} of {self._total:,} entries, {rate:,.0f}/s"
        print(f"\r\033[K{line}" if self._live else line, end="" if self._live else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Clear the line on the terminal."""
        if self._live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


@dataclass(slots=True)
class Report:
    """The result of an audit.

    `checked` maps a name to a number and to the words that follow it. `difference` is the first one found, or None.
    `notes` are sentences about what an operator should look at, although no row is wrong. `decided` is the report of
    the replay that belongs to a `verify`.
    """

    command: str
    started: float = field(default_factory=time.monotonic)
    entries: int = 0
    checked: dict[str, tuple[int, str]] = field(default_factory=dict)
    roots: list[tuple[int, int, str]] = field(default_factory=list)
    money: dict[str, str] = field(default_factory=dict)
    difference: str | None = None
    notes: list[str] = field(default_factory=list)
    decided: "Report | None" = None
    seconds: float = 0.0

    def count(self, name: str, number: int, words: str) -> None:
        """Add a number to what was checked under this name. `words` describe the number in the printed report."""
        before = self.checked.get(name, (0, words))[0]
        self.checked[name] = (before + number, words)

    def end(self) -> None:
        """Stop the clock."""
        self.seconds = time.monotonic() - self.started

    @property
    def entries_per_second(self) -> int:
        """Return how many entries were checked per second of the whole run."""
        return round(self.entries / max(self.seconds, 1e-9))

    def checked_numbers(self) -> dict[str, int]:
        """Return how many of each were checked, by name."""
        return {name: number for name, (number, _) in self.checked.items()}

    def as_json(self) -> dict[str, Any]:
        """Return the report as one JSON object, which `--since` reads."""
        return {
            "audit": self.command,
            "passed": self.difference is None,
            "difference": self.difference,
            "notes": self.notes,
            "entries": self.entries,
            "seconds": round(self.seconds, 3),
            "entries_per_second": self.entries_per_second,
            "checked": self.checked_numbers(),
            "decided": None if self.decided is None else self.decided.checked_numbers(),
            "money": (self.decided or self).money,
            "roots": [{"shard": shard, "position": at, "root": root} for shard, at, root in self.roots],
        }

    def show(self, as_json: bool) -> None:
        """Print the report, as one JSON object or as lines."""
        if as_json:
            print(json.dumps(self.as_json(), indent=2))
            return
        if self.difference is None:
            self._show_checked("Checked")
            if self.decided is not None:
                self.decided._show_checked("Decided again")
            self._show_roots()
        print(
            f"audit {self.command}: {self.entries:,} entries in {self.seconds:,.1f} s,"
            f" {self.entries_per_second:,} entries/s"
        )
        for note in self.notes:
            print(f"Note: {note}")
        print("No difference." if self.difference is None else f"DIFFERENCE: {self.difference}")

    def _show_checked(self, title: str) -> None:
        print(f"{title}:")
        for number, words in self.checked.values():
            print(f"  {number:>15,}  {words}")
        if self.money:
            print("Money: " + ", ".join(f"{name} {amount}" for name, amount in self.money.items()))

    def _show_roots(self) -> None:
        print("Roots (RFC 6962, over the entries 1 … position):")
        for shard, position, root in self.roots:
            print(f"  shard {shard}, position {position}: {root}")
