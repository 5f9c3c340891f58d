"""The vocabulary is complete: it has all words that the code writes, in the order of the documents."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from shared.contracts.commands import SetBudget, SetCampaignBudget, TransferBalance
from shared.rules import vocabulary
from shared.rules.pauses import cause_names

ROOT = Path(__file__).parents[2]
WRITERS = [*(ROOT / "shared" / "rules").glob("*.py"), *(ROOT / "services" / "allocation").glob("*.py")]
NOT_QUARANTINED = {"charged", "duplicate", "forwarded", "quarantined", "accepted", "rejected"}


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Yield every call in the code that decides and writes, with the name of the called function."""
    for path in WRITERS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                yield name, node


def texts(*nodes: ast.expr | None) -> set[str]:
    """Return the words among some expressions, also those of `a if … else b`."""
    parts = [part for node in nodes if node is not None for part in ast.walk(node)]
    return {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}


def arguments(names: set[str], place: int) -> set[str]:
    """Return the words that are passed at this place to any of these functions."""
    return {word for name, call in calls() if name in names for word in texts(*call.args[place : place + 1])}


def keywords(name: str) -> set[str]:
    """Return the words that are passed by this name."""
    given = [each.value for _, call in calls() for each in call.keywords if each.arg == name]
    return {word for value in given if isinstance(value, ast.Constant | ast.IfExp) for word in texts(value)}


def reasons_returned() -> set[str]:
    """Return the first of two texts that a rule returns: a reason and its sentence."""
    found: set[str] = set()
    for path in WRITERS:
        for node in ast.walk(ast.parse(path.read_text())):
            value = node.value if isinstance(node, ast.Return) else None
            if isinstance(value, ast.Tuple) and len(value.elts) == 2 and texts(value.elts[1]):
                first = value.elts[0]
                found |= texts(first) if isinstance(first, ast.Constant) else set()
    return found


@pytest.mark.parametrize(
    ("found", "known", "one_of_them"),
    [
        (arguments({"Fault"}, 0) | reasons_returned(), vocabulary.QUARANTINE_REASONS, "unknown_reversal"),
        (arguments({"require"}, 1) | arguments({"Refused"}, 0), vocabulary.OUTCOME_CODES, "not_eligible"),
        (arguments({"write", "Line"}, 0), vocabulary.ENTRY_KINDS, "credit_repayment"),
        (keywords("pocket"), vocabulary.POCKETS, "credit_line"),
        (keywords("holder"), vocabulary.HOLDERS, "business_center"),
        (set(cause_names(15)), vocabulary.CAUSES, "campaign_budget"),
    ],
    ids=["reasons", "codes", "kinds", "pockets", "holders", "causes"],
)
def test_the_code_writes_only_words_of_the_vocabulary(
    found: set[str], known: tuple[str, ...], one_of_them: str
) -> None:
    assert one_of_them in found  # The search does find words.
    assert found - NOT_QUARANTINED <= set(known)


def test_commands_may_name_only_words_of_the_vocabulary() -> None:
    modes = {mode for command in (SetBudget, SetCampaignBudget) for mode in get_args(command.__annotations__["mode"])}
    assert modes == set(vocabulary.BUDGET_MODES)
    assert set(get_args(TransferBalance.__annotations__["pocket"])) < set(vocabulary.AD_ACCOUNT_POCKETS)


def test_every_cause_has_a_place_in_the_order_of_answers() -> None:
    assert cause_names(15) == list(vocabulary.CAUSES) == sorted(vocabulary.CAUSES)


def test_the_page_of_the_ledger_explains_exactly_the_kinds_of_the_vocabulary() -> None:
    page = (ROOT / "docs" / "ledger.md").read_text()
    section = page.partition("\n## Kinds\n")[2].partition("\n## ")[0]
    # The first column of each table, and the paragraph about money that moves without a spend.
    places = re.findall(
        r"^\| (`[^|]*)\||^Money that moves without a spend:(.*?) They name", section, re.MULTILINE | re.DOTALL
    )
    explained = re.findall(r"`([a-z_]+)`", " ".join(cell or moves for cell, moves in places))
    assert tuple(dict.fromkeys(explained)) == vocabulary.ENTRY_KINDS


def test_the_runbook_names_the_person_who_acts_on_every_reason() -> None:
    page = (ROOT / "docs" / "runbook.md").read_text()
    table = page.partition("| reason | who acts |")[2].partition("\n\n")[0]
    explained = re.findall(r"`([a-z_]+)`", " ".join(row.split("|")[1] for row in table.splitlines() if "`" in row))
    assert sorted(explained) == sorted(vocabulary.QUARANTINE_REASONS)
    assert len(explained) == len(set(explained))
