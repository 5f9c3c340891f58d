"""The auditor's own arithmetic, on ledgers that the rules would never write."""

import asyncio
import json
import struct
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.auditor import exporting, report
from services.auditor.anchors import read_anchors
from services.auditor.difference import DifferenceError
from services.auditor.replayed import sums
from services.auditor.replayed.closings import closings_of
from services.auditor.replayed.fold import Fold
from services.auditor.replayed.recorded_outcomes import Answer, RecordedOutcome, RecordedOutcomes
from services.auditor.replayed.shard_audit import campaigns_of
from services.auditor.tables import TABLES, Rows, compare, expect_none_left
from shared.ledger.decoding import EntryReader, StoredEntry, split_rows
from shared.ledger.encoding import COPY_HEADER, COPY_TRAILER, encode_entries
from shared.ledger.merkle import CompactRange, leaf_hashes
from shared.rules.command_types import DepositCash, OpenBusinessCenter
from shared.rules.entries import Entry, Line
from shared.rules.shard import Shard
from tests.zones import INSTALLED

DAY = 739_000
SPEND = uuid.UUID(int=7).bytes
TABLE = {table.name: table for table in TABLES}


def line(kind: str, pocket: str | None = None, account: str | None = "a", **others: Any) -> Line:
    holder = None if pocket is None else "ad_account" if account else "business_center"
    return Line(kind, "bc", account, "c" if account else None, holder=holder, pocket=pocket, **others)


def stored(*entries: tuple[Line, int | None]) -> list[StoredEntry]:
    """Return entries at the positions 1, 2, 3 …. Those of spends have a day."""
    made = []
    for position, (its_line, amount) in enumerate(entries, 1):
        day = DAY if its_line.campaign_id and amount is not None else None
        made.append(StoredEntry(0, position, 0, (its_line, amount, 0, SPEND, 0, day, day), b""))
    return made


def folded(*entries: tuple[Line, int | None]) -> Fold:
    fold = Fold(0)
    fold.center_of["a"] = "bc"
    fold.add(stored(*entries))
    return fold


# ---- Pockets ----------------------------------------------------------------------------------------------------


def test_a_pocket_drawn_below_zero_is_a_difference() -> None:
    said = r"shard 0, position 2: cash_debit takes the pocket cash of a to -0\.000001, below zero"
    with pytest.raises(DifferenceError, match=said):
        folded((line("deposit", "cash"), 4), (line("cash_debit", "cash"), -5))


def test_a_grant_drawn_below_zero_is_a_difference_even_if_its_pocket_is_not() -> None:
    with pytest.raises(DifferenceError, match="below zero"):
        folded(
            (line("grant", "voucher", grant_id="v1"), 10),
            (line("grant", "voucher", grant_id="v2"), 10),
            (line("voucher_debit", "voucher", grant_id="v1"), -11),
        )


def test_a_credit_line_may_be_cut_below_zero_but_not_drawn_below_zero() -> None:
    limit, draw = line("credit_limit_change", "credit_line", None), line("transfer_out", "credit_line", None)
    fold = folded((limit, 100), (draw, -80), (limit, -50))
    assert fold.pockets["bc", "", "credit_line"] == [-30]
    with pytest.raises(DifferenceError, match=r"credit_line of bc to -0\.000030, below zero"):
        folded((limit, 100), (draw, -130))


def test_an_unknown_kind_is_a_difference() -> None:
    with pytest.raises(DifferenceError, match="the unknown kind 'gift'"):
        folded((line("gift", "cash"), 1))


# ---- Sums -------------------------------------------------------------------------------------------------------


def opened() -> Shard:
    """Return rules in whose state the BC holds 70 in cash, and nothing else."""
    rules = Shard(zones=INSTALLED)
    rules.begin(0)
    opening = OpenBusinessCenter(
        business_center_id="bc", role="admin", currency="USD", time_zone="UTC", finance_roles=True
    )
    assert rules.command(opening, SPEND, {}) is None
    assert rules.command(DepositCash(business_center_id="bc", role="admin", amount=70), SPEND, {}) is None
    return rules


def test_money_in_equals_money_held_plus_billed_plus_forfeited() -> None:
    draw = Line("business_center_draw", "bc", "a", "c", holder="business_center", pocket="cash")
    grant = line("grant", "voucher", None, grant_id="v")
    fold = folded(
        (line("deposit", "cash", None), 100),
        (draw, -30),
        (grant, 8),
        (line("expiry", "voucher", None, grant_id="v"), -8),
    )
    sums.check_pockets(opened(), fold)
    assert sums.check_identity(opened(), fold) == {"in": 108, "held": 70, "billed": 30, "forfeited": 8}


def test_movements_between_pockets_must_add_up_to_zero() -> None:
    fold = folded((line("deposit", "cash", None), 50), (line("transfer_in", "cash", None), 20))
    with pytest.raises(DifferenceError, match=r"the money of bc does not add up: in 0\.000050, held 0\.000070"):
        sums.check_identity(opened(), fold)


def test_a_pocket_that_differs_from_the_rules_is_a_difference() -> None:
    with pytest.raises(DifferenceError, match=r"pocket cash of bc add up to 0\.000069, but the rules hold 0\.000070"):
        sums.check_pockets(opened(), folded((line("deposit", "cash", None), 69)))


def test_a_reversal_of_a_missing_spend_is_a_difference() -> None:
    class Nothing:
        async def fetch(self, *_: object) -> list[Any]:
            return []

    reversal = line("reversal", "cash", reverses=SPEND, details='{"spend_occurred_at":0,"spend_position":1}')
    with pytest.raises(DifferenceError, match=r"of 0\.000000 was reversed by 0\.000003"):
        asyncio.run(sums.check_reversals(Nothing(), 0, folded((reversal, 3))))


# ---- Answers ----------------------------------------------------------------------------------------------------


UNDER = {"rules_version": 3, "zones_release": "", "policy_version": "standard-1"}


def outcome(sequence: int, position: int, **others: Any) -> RecordedOutcome:
    command_id = uuid.UUID(int=sequence)
    content = {"command_id": str(command_id), "business_center_id": "bc", "type": "t", "actor": {"role": "r"}}
    values: dict[str, Any] = {"command_id": command_id.bytes, "first": True, "content": content, **others}
    answer = Answer("accepted", None, "done", position, position, 0)
    return RecordedOutcome(
        sequence=sequence,
        business_center_id="bc",
        type="t",
        **{"answer": answer, "via": "topic", **UNDER, **values},
    )


def test_an_acceptance_without_entries_is_a_difference() -> None:
    outcomes = RecordedOutcomes(0)
    outcomes.add(outcome(1, 5))
    with pytest.raises(DifferenceError, match="is accepted at position 5, where the ledger holds nothing of the kind"):
        outcomes.finish()


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (outcome(3, 6), "the outcome 2 is missing"),
        (outcome(2, 4), "its position or time lies before"),
        (outcome(2, 5), "accepted with the first position 5"),
        (outcome(2, 6, first=False), "it repeats a decision that was never made"),
        (replace(outcome(1, 5), sequence=2, first=False, via="api"), "repeated with the answer .*'api'"),
    ],
)
def test_answers_that_contradict_each_other_are_a_difference(second: RecordedOutcome, said: str) -> None:
    outcomes = RecordedOutcomes(0)
    outcomes.add(outcome(1, 5))
    with pytest.raises(DifferenceError, match=said):
        outcomes.add(second)


NO_DETAILS = ("[]", "7", "{", "[" * 4_000 + "]" * 4_000, '{"amount": 1' + "0" * 5_000 + "}")
FAR = '{"started_at": 1' + "0" * 30 + "}"


@pytest.mark.parametrize("details", [*NO_DETAILS, FAR], ids=lambda details: details[:20])
def test_an_entry_that_cannot_be_exported_is_a_difference(details: str) -> None:
    (entry,) = stored((line("pause", details=details), None))
    with pytest.raises(DifferenceError, match="shard 0, position 1: the details of the entry cannot be read: "):
        exporting._entry(entry)


# ---- The past ---------------------------------------------------------------------------------------------------


def test_a_refusal_names_the_campaigns_to_load_and_a_hash_or_a_forgery_names_none() -> None:
    def refused(type_: str = "set_campaign_budget", code: str = "limit_reached", **content: Any) -> RecordedOutcome:
        return replace(outcome(1, 1), type=type_, content=content, answer=Answer("rejected", code, "", None, 1, 1))

    named = {"ad_account_id": "a", "campaign_id": "c"}
    others = [refused(code="not_found", **named), refused("set_budget", **named)]
    none = [refused(sha256="00", bytes=2_000), refused(), refused(ad_account_id="a", campaign_id=7)]
    assert campaigns_of([*others, *none, refused(**named)]) == {("a", "c")}


def test_the_books_are_closed_often_enough_and_never_ahead_of_the_position() -> None:
    held: Rows = {(0, 500_000): (), (0, 900_000): (), (1, 7): ()}
    assert closings_of(0, held, 1_200_000) == [500_000, 900_000]
    assert closings_of(1, held, 7) == [7]
    assert closings_of(2, held, 400_000) == []
    with pytest.raises(DifferenceError, match="was closed at 900000, but the checkpoint is at 899999"):
        closings_of(0, held, 899_999)
    with pytest.raises(DifferenceError, match="was not closed between the positions 900000 and 1500000"):
        closings_of(0, held, 1_500_000)
    with pytest.raises(DifferenceError, match="was not closed between the positions 0 and 600000"):
        closings_of(2, held, 600_000)


# ---- Rows -------------------------------------------------------------------------------------------------------


def test_rows_are_compared_in_both_directions() -> None:
    table = TABLE["balance.pockets"]
    held: dict[str, Rows] = {name: {} for name in TABLE}
    held[table.name] = {("bc", "", "cash"): (5,), ("bc", "", "voucher"): (1,)}
    assert compare(table, {("bc", "", "cash"): (5,)}, held[table.name], "now") == 1
    with pytest.raises(DifferenceError, match=r"ad_account_id , pocket voucher: the read model holds amount 0\.000001"):
        expect_none_left(held)
    with pytest.raises(DifferenceError, match=r"holds amount 0\.000001, but the ledger gives amount 0\.000002"):
        compare(table, {("bc", "", "voucher"): (2,)}, held[table.name], "now")


def test_entries_of_every_shape_are_split_and_read_back_unchanged() -> None:
    spend = line("cash_debit", "cash")
    fact = Line("pause", "bc", "a", cause="ad_account_budget", details='{"causes":[]}')
    entries: list[Entry] = [
        (spend, -5, 10, SPEND, 0, DAY, DAY),
        (fact, None, 11, SPEND, 1, None, None),
        (fact, None, 12, None, 0, None, None),
        (line("expiry", "voucher", None, grant_id="ä"), -1, 13, None, 1, None, None),
        (spend, -(2**62), -(2**52), SPEND, 2**31 - 1, 1, 1),
    ]
    rows = encode_entries(entries, 3, 41, 99)
    data = b"".join((COPY_HEADER, *rows, COPY_TRAILER))
    assert split_rows(data) == rows
    read = EntryReader().decode(data)
    assert [each.encoded for each in read] == rows
    assert [(each.shard, each.position, each.recorded_at) for each in read] == [(3, 41 + n, 99) for n in range(5)]
    assert [each.entry[1:] for each in read] == [entry[1:] for entry in entries]
    assert encode_entries([each.entry for each in read], 3, 41, 99) == rows


def test_the_position_is_where_the_program_in_the_documentation_looks_for_it() -> None:
    (row,) = encode_entries([(line("deposit", "cash"), 1, 0, None, 0, None, None)], 3, 4711, 0)
    assert struct.unpack(">q", row[12:20]) == (4711,)


# ---- Roots noted earlier ----------------------------------------------------------------------------------------


def test_a_replay_must_reach_the_noted_root(tmp_path: Path) -> None:
    tree = CompactRange()
    tree.append(leaf_hashes([b"one"]))
    noted = tmp_path / "noted.json"

    def note(position: int, root: str) -> None:
        noted.write_text(json.dumps({"roots": [{"shard": 0, "position": position, "root": root}]}))

    note(1, tree.root().hex())
    anchors = read_anchors(noted)
    anchors.check(0, tree)
    anchors.finish(0)
    assert anchors.checked == 1
    note(1, "00")
    with pytest.raises(DifferenceError, match="the root noted earlier is 00"):
        read_anchors(noted).check(0, tree)
    note(2, tree.root().hex())
    anchors = read_anchors(noted)
    anchors.check(0, tree)
    with pytest.raises(DifferenceError, match="position 2: a root was noted earlier, but no batch"):
        anchors.finish(0)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"roots": [{}]}', '{"roots": 1}'])
def test_a_file_without_roots_is_refused_as_a_note(tmp_path: Path, text: str) -> None:
    (tmp_path / "noted.json").write_text(text)
    with pytest.raises(ValueError, match='holds no "roots"'):
        read_anchors(tmp_path / "noted.json")


# ---- Progress and report ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("live", [True, False])
def test_progress_rewrites_one_line_on_a_terminal_and_adds_lines_elsewhere(
    live: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: live)
    monkeypatch.setattr(report, "LIVE_EVERY_SECONDS", 0)
    monkeypatch.setattr(report, "LINE_EVERY_SECONDS", 0)
    progress = report.ProgressLine(3_000)
    progress.shard(1, 1_000)
    progress(500)
    progress(1_000)
    progress.end()
    said = capsys.readouterr().err
    assert "shard 1: 1,500 of 3,000 entries" in said
    assert "shard 1: 2,000 of 3,000 entries" in said
    assert (said.count("\n"), said.endswith("\r\033[K")) == ((0, True) if live else (2, False))


def test_a_report_with_a_difference_ends_with_it_and_claims_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    told = report.Report("replay", difference="shard 0, position 5: the entry is missing")
    told.count("entries", 4, "entries decided again")
    told.show(as_json=False)
    said = capsys.readouterr().out
    assert said.endswith("DIFFERENCE: shard 0, position 5: the entry is missing\n")
    assert "Checked" not in said
    told.show(as_json=True)
    assert json.loads(capsys.readouterr().out)["passed"] is False
