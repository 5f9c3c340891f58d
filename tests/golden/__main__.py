"""`python -m tests.golden`: decide the chapters that the golden ledger does not hold yet, and append them to its file.

The recorded chapters are decided again first, and must give the same bytes. They are never written again.
"""

import json
from collections.abc import Iterable
from dataclasses import replace

from shared.contracts.commands import SentCommand
from shared.ledger.encoding import UNBOUNDED_BYTES, encode_entries
from shared.ledger.merkle import leaf_hashes
from shared.rules.calendar import Zones
from shared.rules.policy import Policy
from tests.golden import recorded
from tests.golden.chapters import CHAPTERS, START_US, Scene
from tests.golden.deciding import Again
from tests.golden.recorded import SHARD, GoldenBatch, GoldenLedger
from tests.model.workload import Work
from tests.unit.pure_ledger import PureLedger

UNDECIDED = {"quarantined:malformed", "quarantined:invalid"}


class Recorder(PureLedger):
    """Decides batches after the end of the golden ledger, and keeps their lines."""

    def __init__(self, ledger: GoldenLedger) -> None:
        super().__init__()
        again = Again(ledger)
        for batch in ledger.batches:
            if batch.rows:
                assert again.decide(batch) == (batch.rows, batch.root), "a recorded batch is decided otherwise now"
        self.rules, self.entries, self.tree = again.rules, again.entries, again.tree
        self.rules.set_window(7)
        self.lines: list[str] = []
        self._ledger = ledger
        self._refusals: list[tuple[int, dict[str, object], str]] = []

    def tell(self, works: Iterable[Work], now: int, policy: Policy, zones: Zones) -> None:
        """Decide one batch and keep its lines."""
        self.policy, self.zones, self._refusals = policy, zones, []
        if policy.version not in self._ledger.policies:
            self._ledger.policies[policy.version] = policy
            self.lines.append(recorded.policy_line(policy))
        fates = self.batch([(work.kind, json.dumps(work.message).encode()) for work in works], now)
        assert UNDECIDED.isdisjoint(map(str, fates)), f"a message that does nothing belongs to no chapter: {fates}"

    def append(self) -> None:
        """Keep the lines of the batch, if it has entries or refusals."""
        first = len(self.entries) + 1
        super().append()
        rows = encode_entries(self.rules.entries, SHARD, first, self.rules.now, UNBOUNDED_BYTES)
        self.tree.append(leaf_hashes(rows))
        if not (rows or self._refusals):
            return
        self.lines += recorded.zone_lines(self.zones.release, self.rules.batch.zones)
        names = (self.policy.version, self.policy.rules, self.zones.release)
        batch = GoldenBatch(self.rules.now, *names, rows, self.tree.root(), self._refusals)
        self.lines.append(recorded.batch_line(batch, self._ledger.tail()))
        self._ledger.batches.append(batch)

    def _decide_command(self, command: SentCommand) -> tuple[str, str | None]:
        is_new = command.id not in self._outcomes
        status, code = super()._decide_command(command)
        if is_new and code is not None:
            self._refusals.append((self.rules.position + len(self.rules.entries), command.content, code))
        return status, code


def main() -> None:
    """Append the missing chapters."""
    ledger = recorded.read()
    recorder = Recorder(ledger)
    now = max(START_US, recorder.rules.now)
    for title, chapter in CHAPTERS.items():
        if title in ledger.chapters:
            continue
        recorder.lines.append(recorded.chapter_line(title))
        for scene in chapter(now):
            recorder.tell(scene.works, scene.now, _with_rules(scene), scene.zones)
            now = scene.now
    with recorded.FILE.open("a", encoding="ascii") as file:
        file.writelines(recorder.lines)
    print(f"{recorded.FILE}: {len(recorder.lines)} lines appended, {len(recorder.entries)} entries in all")


def _with_rules(scene: Scene) -> Policy:
    return replace(scene.policy, rules=scene.rules)


if __name__ == "__main__":
    main()
