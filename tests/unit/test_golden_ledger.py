"""The recorded ledger, decided again without a database, gives the same bytes as when it was written."""

import re
from pathlib import Path

from shared.rules import versions
from shared.rules.policy import STANDARD
from tests.golden import recorded
from tests.golden.deciding import Again
from tests.golden.recorded import GoldenLedger

GOLDEN = recorded.read()
ROOT = Path(__file__).parents[2]


def decide(ledger: GoldenLedger) -> Again:
    again = Again(ledger)
    for number, batch in enumerate(ledger.batches):
        if batch.rows:
            rows, root = again.decide(batch)
            assert rows == batch.rows, f"batch {number} at position {len(again.entries)}"
            assert root == batch.root
        else:
            assert again.refused(batch) == [code for _, _, code in batch.refusals]
    return again


def test_every_batch_is_decided_again_to_the_same_bytes_and_roots() -> None:
    decide(GOLDEN)


def test_the_golden_ledger_holds_every_kind_of_entry_that_the_page_names() -> None:
    page = (ROOT / "docs/ledger.md").read_text()
    kinds = page[page.index("## Kinds") : page.index("## Batches")]
    named = {kind for row in re.findall(r"^\| (.*?) \|", kinds, re.MULTILINE) for kind in re.findall(r"`(\w+)`", row)}
    moves = re.findall(r"`(\w+)`", kinds[kinds.index("Money that moves") : kinds.index("They name")])
    held = {entry[0].kind for entry in decide(GOLDEN).entries}
    assert held == (named | set(moves)) - {"kind"}


def test_the_golden_ledger_holds_every_version_of_the_rules_and_several_releases_and_policies() -> None:
    with_entries = [batch for batch in GOLDEN.batches if batch.rows]
    assert {batch.rules for batch in with_entries} == set(versions.CHANGES)
    assert len({batch.zones for batch in with_entries}) >= 2
    assert len({batch.policy for batch in with_entries}) >= 2
    assert any(batch.refusals and not batch.rows for batch in GOLDEN.batches)


def test_the_golden_ledger_holds_the_current_standard_policy() -> None:
    """Batches name a policy, and the file holds its content: another order needs another name, and a chapter."""
    assert GOLDEN.policies.get(STANDARD.version) == STANDARD


def test_the_golden_ledger_is_small_enough_for_the_repository() -> None:
    assert recorded.FILE.stat().st_size < 150_000
