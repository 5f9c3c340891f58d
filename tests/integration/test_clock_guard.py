"""A clock that jumps decides nothing: batches wait until it agrees with the database's again, and the process reports
that.
"""

import time
from collections.abc import AsyncIterator

import pytest
from prometheus_client import REGISTRY

from services.allocation.clock_guard import LARGEST_DIFFERENCE_US
from services.api.watching.writers import Writers
from shared.runtime.clock import Clock
from shared.runtime.settings import Settings
from tests.acceptance.front_door import until
from tests.integration.writing import Writing, command, spend, writing
from tests.model.forms import rfc3339

HOUR_US = 3_600_000_000


@pytest.fixture
async def writer(settings: Settings) -> AsyncIterator[Writing]:
    async with writing(settings) as writer:
        yield writer


def jump(monkeypatch: pytest.MonkeyPatch, by_us: int) -> None:
    """Move the process's clock by this much. The database's clock stays right."""
    right = Clock.now_us
    monkeypatch.setattr(Clock, "now_us", lambda clock: right(clock) + by_us)


@pytest.mark.parametrize("by_us", [3 * HOUR_US, 9 * 24 * HOUR_US, -3 * HOUR_US, LARGEST_DIFFERENCE_US + 5_000_000])
async def test_batches_wait_for_a_jumped_clock_and_continue_when_it_is_right(
    writer: Writing, monkeypatch: pytest.MonkeyPatch, by_us: int
) -> None:
    center = await writer.opened(0, cash="10")
    soon = rfc3339(time.time_ns() // 1000 + HOUR_US)
    await writer.send(
        command(center, "grant_voucher", voucher_id="v", ad_account_id=center, amount="5", expires_at=soon)
    )
    await writer.decided()
    with monkeypatch.context() as patch:
        jump(patch, by_us)
        event = spend(center, amount="7")
        await writer.send(event)
        standing = await writer.standing(0, "waiting")
        assert "s ahead of the database's" in standing["detail"] or "s behind the database's" in standing["detail"]
        assert len(writer.told("CLOCKS DISAGREE")) == 1
        assert abs((REGISTRY.get_sample_value("drawdown_clock_difference_seconds") or 0) - by_us / 1e6) < 30
        assert await writer.charged(center) == []
        assert await writer.quarantined() == []
        assert await writer.database.fetchval("SELECT count(*) FROM ledger.entries WHERE kind = 'expiry'") == 0
    await writer.decided()
    assert await writer.charged(center) == [event["event_id"]]
    kinds = await writer.database.fetch(
        "SELECT kind FROM ledger.entries WHERE source_event_id = $1::uuid ORDER BY position", event["event_id"]
    )
    assert [row["kind"] for row in kinds] == ["voucher_debit", "cash_debit"]
    await writer.standing(0, "writing")


async def test_a_jump_is_noticed_even_without_input(writer: Writing, monkeypatch: pytest.MonkeyPatch) -> None:
    await writer.opened()
    with monkeypatch.context() as patch:
        jump(patch, HOUR_US)

        async def is_told() -> bool | None:
            return True if writer.told("CLOCKS DISAGREE") else None

        await until("the jump is told", is_told)

    async def is_over() -> bool | None:
        return True if writer.told("the clocks agree again") else None

    await until("the end of it is told", is_over)


async def test_half_a_minute_is_not_a_jump(writer: Writing, monkeypatch: pytest.MonkeyPatch) -> None:
    center = await writer.opened()
    with monkeypatch.context() as patch:
        jump(patch, 30_000_000)
        event = spend(center)
        await writer.send(event)
        await writer.decided()
        assert await writer.charged(center) == [event["event_id"]]


async def test_ledger_time_ahead_of_the_clock_is_reported_and_delays_nothing(settings: Settings) -> None:
    """Both clocks were ahead, as on one machine, and ledger time never goes back."""
    ahead = settings.model_copy(update={"clock_offset_seconds": 7200.0})
    async with writing(ahead) as writer:
        center = await writer.opened(0)
    async with writing(settings) as writer:
        standing = await writer.standing(0, "writing")
        assert standing["detail"].startswith("ahead of the clock: every decision before 2")
        assert [line["shard"] for line in writer.told("LEDGER TIME IS AHEAD OF THE CLOCK")] == [0]
        event = spend(center)
        await writer.send(event)
        await writer.decided()
        assert await writer.charged(center) == [event["event_id"]]
        assert 7000 < (REGISTRY.get_sample_value("drawdown_ledger_time_ahead_seconds", {"shard": "0"}) or 0) <= 7200
        assert (await writer.standing(1, "writing"))["detail"] == ""
        seen = Writers(settings)
        await seen.look(writer.database)
        answer = seen.readiness(True, "")
        assert answer["status"] == "degraded"
        assert answer["detail"].startswith("shard 0 is ahead of the clock: every decision before 2")
