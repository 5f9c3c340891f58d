"""The report of a sent file counts each row once, by the outcome that the API shows."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawdown.local.spend_outcomes import Sent, Tally, event_id_of

CHARGED = {"state": "charged"}
CONFLICT = {"state": "quarantined", "reason": "content_conflict", "record_id": "0-1", "detail": "another event"}
WAITING, UNKNOWN = {"state": "waiting"}, {"state": "unknown"}


def counted(*rows: tuple[str | None, dict[str, Any]], before: tuple[str, ...] = ()) -> Tally:
    tally = Tally()
    sent = [Sent(number, event_id, 0, number) for number, (event_id, _) in enumerate(rows, 1)]
    tally.take(sent, {number: answer for number, (_, answer) in enumerate(rows, 1)}, frozenset(before))
    return tally


def figures(tally: Tally) -> tuple[int, int, int, int]:
    return tally.charged, tally.duplicate, tally.quarantined.total(), tally.undecided


@pytest.mark.parametrize(
    ("rows", "before", "expected"),
    [
        ([("a", CHARGED), ("b", CHARGED)], (), (2, 0, 0, 0)),
        ([("a", CHARGED), ("a", CHARGED)], (), (1, 1, 0, 0)),
        ([("a", CHARGED), ("b", CHARGED)], ("a",), (1, 1, 0, 0)),
        ([("a", CHARGED), ("a", CONFLICT)], (), (1, 0, 1, 0)),
        ([("a", CONFLICT), ("a", CHARGED)], (), (1, 0, 1, 0)),
        ([("a", CONFLICT)], ("a",), (0, 0, 1, 0)),
        ([(None, CONFLICT), (None, UNKNOWN)], (), (0, 0, 1, 1)),
        ([("a", WAITING), ("b", UNKNOWN), ("c", {})], (), (0, 0, 0, 3)),
    ],
    ids=[
        "new",
        "repeated",
        "already known",
        "conflict",
        "conflict first",
        "conflict with an earlier event",
        "no id",
        "undecided",
    ],
)
def test_a_row_is_counted_once(
    rows: list[tuple[str | None, dict[str, Any]]], before: tuple[str, ...], expected: tuple[int, int, int, int]
) -> None:
    tally = counted(*rows, before=before)
    assert figures(tally) == expected
    assert tally.is_complete == (expected[3] == 0)


answers = st.sampled_from([CHARGED, CONFLICT, WAITING, UNKNOWN, {}])
ids = st.sampled_from(["a", "b", "c"])


@given(st.lists(st.tuples(ids | st.none(), answers), max_size=12), st.sets(ids))
def test_the_counts_add_up_and_an_id_is_charged_at_most_once(
    rows: list[tuple[str | None, dict[str, Any]]], before: set[str]
) -> None:
    tally = counted(*rows, before=tuple(before))
    assert sum(figures(tally)) == len(rows)
    assert tally.charged <= len({"a", "b", "c"} - before)


def test_the_report_gives_a_few_examples_and_the_command_that_shows_the_rest() -> None:
    tally = counted(("a", CHARGED), *[("a", CONFLICT)] * 1_200, (None, {**CONFLICT, "reason": "cosmic_rays"}))
    tally.sent = 1_202
    assert list(tally.lines("spend.jsonl")) == [
        "spend.jsonl: 1,202 sent, 1 charged, 0 duplicate, 1,201 quarantined",
        "  quarantined, content_conflict: 1,200; see: drawdown quarantine list --reason content_conflict",
        *[f"    row {number}, record 0-1: another event" for number in (2, 3, 4)],
        "  quarantined, cosmic_rays: 1; see: drawdown quarantine list --reason cosmic_rays",
        "    row 1,202, record 0-1: another event",
    ]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"event_id": "0193F5A0-0000-7000-8000-000000000001"}, "0193f5a0-0000-7000-8000-000000000001"),
        ({"specversion": "1.0", "id": "0193f5a0-0000-7000-8000-000000000001"}, "0193f5a0-0000-7000-8000-000000000001"),
        ({"event_id": "1"}, None),
        ({"event_id": 1}, None),
        ({"id": "0193f5a0-0000-7000-8000-000000000001"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_event_ids_are_compared_by_value(event: dict[str, Any] | None, expected: str | None) -> None:
    assert event_id_of(event) == expected
