"""Work is bounded: batches, the records that wait for them, and how long a large state blocks the event loop."""

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Iterator
from itertools import cycle
from typing import Any

import pytest

from services.allocation.memory import snapshot_pieces, snapshots
from services.allocation.records import batch_bounds
from services.allocation.records.batch_bounds import Bounds
from services.allocation.writing import account_locks
from shared.ledger.merkle import CompactRange
from shared.rules.policy import STANDARD
from shared.rules.shard import Shard
from shared.rules.state import AdAccount, BusinessCenter, Campaign
from shared.runtime.settings import Settings
from tests.acceptance.front_door import until
from tests.integration.writing import Message, Writing, command, kept_state, reversal, spend, writing
from tests.model.test_model import START_US
from tests.zones import INSTALLED

SHARED = {"billing": "monthly_invoicing", "buying_type": "auction", "time_zone": "UTC"}
ACCOUNTS = 200


@contextlib.asynccontextmanager
async def bounded_writing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, **changed: Any
) -> AsyncIterator[Writing]:
    usual = {"records": 5_000, "bytes": 8 * batch_bounds.MIB, "entries": 20_000, "seconds": 60.0}
    monkeypatch.setattr(batch_bounds, "BOUNDS", Bounds(**{**usual, **changed}))
    async with writing(settings) as writer:
        yield writer


async def batches(writer: Writing) -> list[int]:
    """Return how many entries each batch of shard 0 has."""
    rows = await writer.database.fetch(
        "SELECT last_position - first_position + 1 FROM ledger.batches WHERE shard = 0 ORDER BY last_position"
    )
    return [row[0] for row in rows]


async def test_pauses_and_resumes_of_many_accounts_are_split_into_batches(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bounded_writing(settings, monkeypatch, entries=1_000) as writer:
        center = writer.center()
        await writer.send(
            command(center, "open_business_center", currency="USD", time_zone="UTC"),
            command(center, "enable_automatic_allocation"),
            *[command(center, "open_ad_account", ad_account_id=f"{center}-{n}", **SHARED) for n in range(ACCOUNTS)],
            command(center, "deposit_cash", amount="1"),
        )
        await writer.decided()
        events: list[Message] = []
        for _ in range(25):  # Each spend uses up the balance, and the next deposit restores it.
            events.append(spend(center, ad_account_id=f"{center}-0"))
            events.append(reversal(events[-1]))
        before = len(await batches(writer))
        await writer.send(*events)
        await writer.decided()
        assert await writer.charged(center) == [event["event_id"] for event in events]
        sizes = (await batches(writer))[before:]
        assert sum(sizes) >= len(events) * ACCOUNTS
        assert max(sizes) <= 1_000 + ACCOUNTS + 5
        assert len(sizes) >= sum(sizes) // (1_000 + ACCOUNTS + 5)


async def test_a_batch_ends_when_its_time_is_up_and_the_rest_is_decided_in_order(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bounded_writing(settings, monkeypatch, seconds=1e-9) as writer:
        center = await writer.opened()
        before = len(await batches(writer))
        deposits = [command(center, "deposit_cash", amount="1") for _ in range(100)]
        events = [spend(center) for _ in range(1_000)]
        await writer.send(*deposits, *events)
        await writer.decided()
        assert await writer.charged(center) == [event["event_id"] for event in events]
        sizes = (await batches(writer))[before:]
        assert max(sizes) <= 250
        assert len(sizes) >= 5 + 4
        outcomes = await writer.database.fetch("SELECT command_id::text FROM ledger.outcomes ORDER BY sequence")
        assert [row[0] for row in outcomes[-100:]] == [each["command_id"] for each in deposits]


async def test_offsets_do_not_move_past_undecided_records(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer is killed between two batches of records that were fetched together. Nothing is left out or charged
    twice.
    """
    async with bounded_writing(settings, monkeypatch, records=7) as writer:
        center = await writer.opened()
        events = [spend(center) for _ in range(200)]
        await writer.send(*events)
        for _ in range(3):
            assert writer.allocation is not None
            writer.allocation.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writer.allocation
            writer.start()
        await writer.decided()
        assert await writer.charged(center) == [event["event_id"] for event in events]
        rows = await writer.database.fetch(
            "SELECT spend_offset, last_position FROM ledger.batches WHERE shard = 0 AND spend_offset > 0 ORDER BY 2"
        )
        first = rows[0]["last_position"] - rows[0]["spend_offset"]
        assert {row["last_position"] - row["spend_offset"] for row in rows} == {first}, (
            "an entry is a spend is an offset"
        )


async def test_forwarded_records_are_read_a_few_megabytes_at_a_time(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bounded_writing(settings, monkeypatch, bytes=4_000) as writer:
        center = await writer.opened(1)
        events = [spend(center, note="x" * 1_000) for _ in range(40)]
        await writer.send(*events, to=2)
        await writer.decided()
        assert await writer.charged(center) == [event["event_id"] for event in events]
        rows = await writer.database.fetch("SELECT 1 FROM ledger.batches WHERE shard = 1")
        assert len(rows) >= 40 // 4


def large_state(count: int, campaigns: int) -> Shard:
    rules = Shard(STANDARD, zones=INSTALLED)
    rules.begin(START_US)
    center = rules.business_centers["bc"] = BusinessCenter("bc", "USD", rules.zone("UTC"), True)
    for number in range(count):
        account = AdAccount(center, f"account-{number}", "prepay", "auction", rules.zone("UTC"), True)
        rules.accounts[account.id] = center.accounts[account.id] = account
        for each in range(campaigns):
            campaign = rules.new_campaign(account, f"c-{each}")
            campaign.causes = number % 3
    return rules


async def test_a_large_state_is_dumped_and_loaded_without_blocking_the_loop() -> None:
    rules = large_state(1_000, 100)
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - began)

    ticking = asyncio.create_task(tick())
    began = time.perf_counter()
    kept = await kept_state(rules, CompactRange())
    restored = Shard(STANDARD, zones=INSTALLED)
    await asyncio.to_thread(snapshots._restore, restored, kept.state)
    await snapshots.forget(restored)
    seconds = time.perf_counter() - began
    ticking.cancel()
    assert kept.objects > 1_000
    print(f"{seconds:.2f} s in all, the loop waited {longest * 1000:.0f} ms at most, {len(kept.state):,} bytes")
    assert longest < max(0.1, seconds / 8)


async def test_a_kept_state_is_unchanged() -> None:
    rules = large_state(30, 20)
    kept = await kept_state(rules, CompactRange())
    restored = Shard(STANDARD, zones=INSTALLED)
    tree = snapshots._restore(restored, kept.state)
    assert (tree.size, kept.position) == (0, 0)
    assert snapshots.objects_in(restored) == snapshots.objects_in(rules) == 30 + 600
    assert await kept_state(restored, CompactRange()) == kept


async def test_a_forgotten_state_is_freed_without_the_garbage_collector() -> None:
    rules = large_state(20, 10)
    gc.collect()
    before = sum(isinstance(thing, Campaign | AdAccount | BusinessCenter) for thing in gc.get_objects())
    assert before >= 20 + 200 + 1
    gc.disable()
    try:
        await snapshots.forget(rules)
        after = sum(isinstance(thing, Campaign | AdAccount | BusinessCenter) for thing in gc.get_objects())
    finally:
        gc.enable()
    assert before - after == 20 + 200 + 1


async def test_entries_that_a_load_decides_again_are_counted_from_the_last_snapshot(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard may be loaded any number of times before a snapshot is due, for example after kills."""
    monkeypatch.setattr(snapshots, "FEWEST_ENTRIES_BETWEEN", 10)
    monkeypatch.setattr(snapshots, "ENTRIES_PER_OBJECT", 0)

    async with writing(settings) as writer:

        async def kept() -> int | None:
            return await writer.database.fetchval(  # type: ignore[no-any-return]
                "SELECT position FROM ledger.snapshots WHERE shard = 0"
            )

        center = await writer.opened()
        await writer.stop()
        position = await kept()
        assert position is not None, "a stop keeps one"
        assert position < 10, "and none was due before"
        await writer.database.execute("DELETE FROM ledger.snapshots")
        writer.start()
        await until("it has loaded every shard", writer.has_loaded)
        await writer.send(*[spend(center) for _ in range(10 - position)])
        assert await until("a snapshot is kept", kept) == 10
        await writer.stop()

        await writer.database.execute("DELETE FROM ledger.snapshots")
        writer.start()
        await until("it has loaded every shard", writer.has_loaded)
        await writer.stop()
        assert await kept() == 10, "a stop keeps what was decided again, although nothing was written"


@pytest.mark.parametrize(
    ("objects", "is_idle", "entries"),
    [(100, False, 20_000), (100, True, 2_500), (40_000, False, 400_000), (40_000, True, 5_000)],
)
def test_an_idle_shard_keeps_a_snapshot_after_fewer_entries(objects: int, is_idle: bool, entries: int) -> None:
    assert snapshots.entries_between(objects, is_idle=is_idle) == entries


async def test_an_idle_shard_keeps_a_snapshot_so_that_its_heir_has_little_to_decide_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "_FEWEST_ENTRIES_IF_IDLE", 50)
    async with bounded_writing(settings, monkeypatch) as writer:

        async def is_kept() -> bool | None:
            kept: bool | None = await writer.database.fetchval(
                "SELECT p.position = s.position OR NULL FROM ledger.shards s JOIN ledger.snapshots p USING (shard)"
                " WHERE shard = 0"
            )
            return kept

        center = await writer.opened()
        await writer.send(*[spend(center) for _ in range(50)])
        await writer.decided(0)
        assert await until("a snapshot is kept", is_kept)


async def test_a_snapshot_of_an_idle_shard_is_given_up_when_records_come(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = asyncio.Event()

    def endless(rules: Shard) -> Iterator[Any]:
        begun.set()
        return cycle(list(pieces(rules)))

    async with bounded_writing(settings, monkeypatch) as writer:
        pieces = snapshot_pieces.dump
        center = await writer.opened()
        with monkeypatch.context() as patch:
            patch.setattr(snapshots, "_FEWEST_ENTRIES_IF_IDLE", 1)
            patch.setattr(snapshot_pieces, "dump", endless)
            async with asyncio.timeout(60):
                await begun.wait()
            event = spend(center)
            await writer.send(event)
            await writer.decided(0)
        assert await writer.charged(center) == [event["event_id"]]


async def test_a_batch_opens_no_more_accounts_than_there_are_locks(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bounded_writing(settings, monkeypatch) as writer:
        center = await writer.opened()
        before = len(await batches(writer))
        names = [f"{center}-{number}" for number in range(200)]
        events = [spend(center) for _ in range(100)]
        await writer.send(
            *[command(center, "open_ad_account", ad_account_id=name, **SHARED) for name in names], *events
        )
        await writer.decided()
        assert await writer.charged(center) == [event["event_id"] for event in events]
        opened = await writer.database.fetch(
            "SELECT count(*) FROM ledger.outcomes WHERE type = 'open_ad_account' AND status = 'accepted'"
            " GROUP BY recorded_at"
        )
        assert sum(row[0] for row in opened) == len(names) + 1
        assert max(row[0] for row in opened) <= account_locks.MOST_LOCKS
        assert len(await batches(writer)) > before + len(names) // account_locks.MOST_LOCKS


@pytest.mark.parametrize("records", [20, 500], ids=["a few at a time", "more at once than there are locks"])
async def test_account_ids_opened_in_all_shards_at_once_are_opened_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, records: int
) -> None:
    async with bounded_writing(settings, monkeypatch, records=records) as writer:
        centers = [writer.center(shard) for shard in range(writer.settings.shards)]
        opened = {"currency": "USD", "time_zone": "UTC"}
        await writer.send(*[command(center, "open_business_center", **opened) for center in centers])
        await writer.decided()
        epochs = await writer.database.fetch("SELECT shard, epoch FROM ledger.shards ORDER BY 1")
        names = [f"main-{number}" for number in range(200)]
        await asyncio.gather(
            *(
                writer.send(*[command(center, "open_ad_account", ad_account_id=name, **SHARED) for name in order])
                for center, order in zip(centers, cycle((names, names[::-1])), strict=False)
            )
        )
        await writer.decided()
        rows = await writer.database.fetch(
            "SELECT content->>'ad_account_id', array_agg(coalesce(code, status) ORDER BY coalesce(code, status))"
            " FROM ledger.outcomes WHERE type = 'open_ad_account' GROUP BY 1"
        )
        answers = ["accepted", *["already_exists"] * (len(centers) - 1)]
        assert {row[0]: row[1] for row in rows} == dict.fromkeys(names, answers)
        assert await writer.database.fetchval("SELECT count(*) FROM ledger.ad_accounts") == len(names)
        assert writer.told("the shard cannot be written") == []
        assert await writer.database.fetch("SELECT shard, epoch FROM ledger.shards ORDER BY 1") == epochs


async def test_a_unique_key_violation_is_not_blamed_on_any_record(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the locks both shards accept. The later one is undone and decides again."""

    both, waiting = asyncio.Barrier(2), 2

    async def both_at_once(*_: Any) -> None:
        nonlocal waiting
        if waiting:
            waiting -= 1
            await both.wait()

    async with bounded_writing(settings, monkeypatch) as writer:
        centers = [writer.center(0), writer.center(1)]
        opened = {"currency": "USD", "time_zone": "UTC"}
        await writer.send(*[command(center, "open_business_center", **opened) for center in centers])
        await writer.decided()
        monkeypatch.setattr(account_locks, "lock", both_at_once)
        for number in range(10):
            pair = [command(each, "open_ad_account", ad_account_id=f"main-{number}", **SHARED) for each in centers]
            await writer.send(*pair)
        await writer.decided()
        assert any("AccountTakenError" in line["error"] for line in writer.told("the shard cannot be written"))
        rows = await writer.database.fetch(
            "SELECT content->>'ad_account_id', array_agg(coalesce(code, status) ORDER BY coalesce(code, status))"
            " FROM ledger.outcomes WHERE type = 'open_ad_account' GROUP BY 1"
        )
        assert {row[1][0]: row[1][1] for row in rows} == {"accepted": "already_exists"}
        assert len(rows) == 10
        assert await writer.quarantined() == []
