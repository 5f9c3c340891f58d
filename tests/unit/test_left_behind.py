"""At its end `drawdown run` reports the records that were not decided."""

import pytest

from drawdown.api_client import Figures
from drawdown.local.left_behind import left_behind


def figures(lag: dict[str, int], stopped: tuple[str, ...] = ()) -> Figures:
    found = Figures()
    for shard in ("0", "1", "2"):
        records = lag.get(shard, 0)
        found.values["drawdown_lag_records"].append(({"shard": shard, "topic": "spend.events"}, records))
        found.values["drawdown_lag_records"].append(({"shard": shard, "topic": "finance.commands"}, min(records, 1)))
        found.values["drawdown_shard_stopped"].append(({"shard": shard}, float(shard in stopped)))
    return found


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (figures({}), None),
        (figures({"0": 1299}), "not decided: 1,300 records of shard 0; they are lost with the embedded broker"),
        (
            figures({"0": 4, "2": 7}),
            "not decided: 5 records of shard 0, 8 records of shard 2; they are lost with the embedded broker",
        ),
        (
            figures({"1": 4}, stopped=("1",)),
            "not decided: 5 records of shard 1, and all since shard 1 stopped; they are lost with the embedded broker",
        ),
        (
            figures({}, stopped=("1",)),
            "not decided: all since shard 1 stopped; they are lost with the embedded broker",
        ),
        (None, "not decided: an unknown number of records; they are lost with the embedded broker"),
    ],
    ids=["nothing", "one shard", "two shards", "a stopped shard", "a stopped shard that seemed idle", "no answer"],
)
def test_undecided_records_are_counted_by_shard(seen: Figures | None, said: str | None) -> None:
    assert left_behind(seen, broker_keeps=False) == said


def test_a_broker_that_keeps_undecided_records_has_them_for_the_next_run() -> None:
    assert left_behind(figures({"0": 1}), broker_keeps=True) == (
        "not decided: 2 records of shard 0; the broker keeps them for the next run"
    )
