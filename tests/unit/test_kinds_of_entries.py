"""The vocabulary of entry kinds is right: in what the rules write, in the read models and in the audit."""

import re
from pathlib import Path

import pytest

from services.api.past import moments
from services.auditor.replayed import closings, fold
from services.auditor.replayed.fold import Fold
from services.balance.service import CLOSING_POSITIONS
from shared.ledger.decoding import EntryReader
from shared.ledger.encoding import COPY_HEADER, COPY_TRAILER
from shared.rules import budgets
from shared.rules.entries import Entry
from shared.rules.vocabulary import (
    AD_ACCOUNT_POCKETS,
    BUDGET_KINDS,
    BUDGET_MODES,
    BUSINESS_CENTER_WATERFALL,
    DEBITS,
    DELIVERY_KINDS,
    KIND,
    KINDS,
    EntryKind,
)
from tests.golden import recorded

SERVICES = Path(__file__).parents[2] / "services"
FACTS = [kind for kind in KINDS if kind.sign is None]
FACT_KINDS = {kind.name for kind in FACTS}


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    """Return the entries of the golden ledger, in which every kind occurs."""
    rows = b"".join(row for batch in recorded.read().batches for row in batch.rows)
    return [stored.entry for stored in EntryReader().decode(COPY_HEADER + rows + COPY_TRAILER)]


def text_of(service: str) -> str:
    return "\n".join(
        path.read_text("utf-8")
        for path in sorted((SERVICES / service).rglob("*"))
        if path.suffix in (".sql", ".py") and "migrations" not in path.parts
    )


def test_every_kind_is_written_as_the_vocabulary_says(entries: list[Entry]) -> None:
    assert {line.kind for line, *_ in entries} == KIND.keys()
    for line, amount, *_ in entries:
        kind = KIND[line.kind]
        assert (amount is None) == (kind.sign is None), line.kind
        assert amount is None or kind.sign is None or amount * kind.sign >= 0, line.kind
        assert line.holder is None or line.holder in kind.holders, line.kind
        assert (line.holder is None) == (line.pocket is None), line.kind
        assert line.holder is not None or not kind.holders or kind.group == "reversal", line.kind


def test_a_holder_has_only_its_own_pockets(entries: list[Entry]) -> None:
    pockets = {"ad_account": AD_ACCOUNT_POCKETS, "business_center": (*BUSINESS_CENTER_WATERFALL, "ad_credit")}
    assert {(line.holder, line.pocket) for line, *_ in entries if line.holder} == {
        (holder, pocket) for holder, its in pockets.items() for pocket in its
    }


def test_the_payments_of_an_ad_account_have_a_kind_for_each_pocket() -> None:
    assert set(DEBITS.values()) == {
        kind.name for kind in KINDS if kind.group == "spend" and kind.holders == ("ad_account",)
    }


@pytest.mark.parametrize("kind", FACTS, ids=lambda kind: kind.name)
def test_every_read_model_that_reads_a_fact_names_it(kind: EntryKind) -> None:
    for read_model in kind.read_by:
        assert f"'{kind.name}'" in text_of(read_model)


def test_an_audit_folds_every_fact() -> None:
    assert Fold(0)._handlers.keys() == FACT_KINDS


def test_an_audit_knows_which_entries_are_not_billed(entries: list[Entry]) -> None:
    for line, amount, *_ in entries:
        unbilled = KIND[line.kind].counts_as is None or (line.kind == "reversal" and line.pocket is None)
        assert amount is None or fold.is_overdelivery(line) == unbilled


def test_groups_of_kinds_and_modes_are_complete() -> None:
    assert {*BUDGET_KINDS, *DELIVERY_KINDS} < FACT_KINDS
    modes = (budgets.DAILY, budgets.MONTHLY, budgets.CUSTOM, budgets.LIFETIME, budgets.UNLIMITED)
    assert modes == BUDGET_MODES


def test_constants_in_several_places_are_the_same() -> None:
    blocks = {int(number) for number in re.findall(r"position / (\d+)", text_of("balance"))}
    assert blocks == {moments.BLOCK_POSITIONS} == {fold.BLOCK_POSITIONS}
    assert closings.MOST_BETWEEN == CLOSING_POSITIONS
