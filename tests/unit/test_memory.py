"""The memory of an allocation process: it is divided between its shards, and watched."""

import gc
import weakref
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from services.allocation.memory import limits
from services.allocation.memory.limits import CampaignMemory, MemoryWatch, memory_limit, resident_bytes
from shared.rules.command_types import DepositCash
from shared.rules.resting import CampaignsInMemory
from tests.unit.test_rules_tables import Book


def holding(count: int) -> CampaignsInMemory:
    campaigns = CampaignsInMemory()
    campaigns.count = count
    return campaigns


def test_a_shard_may_use_the_memory_that_the_others_leave() -> None:
    shared, busy, idle = CampaignMemory(1_000), holding(300), holding(50)
    shared.hold(0, busy)
    let_go = shared.hold(1, idle)
    shared.share_out(0)
    shared.share_out(1)
    assert (busy.most, idle.most) == (950, 700)
    busy.count = 950
    shared.share_out(1)
    assert idle.most == 500, "its equal part, whatever the others have"
    let_go()
    shared.share_out(0)
    assert busy.most == 1_000


def test_releasing_the_first_load_of_a_shard_does_not_release_its_second() -> None:
    shared, first, second = CampaignMemory(1_000), holding(1), holding(2)
    let_go = shared.hold(0, first)
    shared.hold(0, second)
    let_go()
    shared.share_out(0)
    assert second.most == 1_000


@pytest.mark.parametrize(("text", "limit"), [("max", None), ("1073741824", 2**30), (str(2**63 - 4096), None)])
def test_the_limit_is_that_of_the_control_group(
    text: str, limit: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "limit").write_text(f"{text}\n")
    monkeypatch.setattr(limits, "_LIMITS", (tmp_path / "nowhere", tmp_path / "limit"))
    assert memory_limit() == limit


def test_short_memory_is_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "memory_limit", lambda: 100 * 2**20)
    watch = MemoryWatch()
    monkeypatch.setattr(limits, "resident_bytes", lambda: 80 * 2**20)
    assert watch.look() == "80 of 100 MiB of memory"
    monkeypatch.setattr(limits, "resident_bytes", lambda: 95 * 2**20)
    with capture_logs() as logs:
        assert watch.look() == watch.look() == "95 of 100 MiB of memory, which is short"
    assert len(logs) == 1


def test_the_resident_memory_is_known() -> None:
    assert resident_bytes() > 10 * 2**20


def test_a_refused_command_leaves_memory_once_it_is_decided() -> None:
    """It leaves no reference cycle, which would keep its content until the garbage collector runs."""

    nothing = DepositCash(business_center_id="b", role="admin", amount=0)

    def decide(ledger: Book, content: dict[str, Any]) -> None:
        refused = ledger.rules.command(nothing, uuid4().bytes, content)
        assert refused is not None  # held by a frame, as in the writer

    class Content(dict[str, Any]):
        """The content of a command, with a class that allows weak references."""

    book, content = Book(), Content(type="deposit_cash")
    gone = weakref.ref(content)
    gc.collect()
    gc.disable()
    try:
        decide(book, content)
        del content
        assert gone() is None
    finally:
        gc.enable()
