"""No record stops a shard, and no shard stops another, whatever fails in the code. Tested with the real writer."""

import asyncio
import contextlib
import gc
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import asyncpg
import pytest
from prometheus_client import REGISTRY

from services.allocation import worker
from services.allocation.memory import snapshots
from services.allocation.records.consuming import OffsetsDoNotFitError
from services.allocation.worker import Worker
from services.allocation.writing import append, outcome_publishing
from shared.ledger.replay import ReplayDiffersError
from shared.rules import commands, waterfall
from shared.rules.state import AdAccount
from shared.runtime.postgres import connect
from shared.runtime.roles import ALLOCATION_ROLE
from shared.runtime.settings import Settings
from tests.acceptance.front_door import until
from tests.integration.writing import Message, Writing, breaks, breaks_later, command, reversal, spend, writing

POISON = "poison"
FAULT = ZeroDivisionError("nobody\0 expected \udcff this")


@pytest.fixture
async def writer(settings: Settings) -> AsyncIterator[Writing]:
    async with writing(settings) as writer:
        yield writer


def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the rules fail at every spend of one campaign."""
    broken = breaks(waterfall.charge, lambda _entries, _policy, campaign, *_: campaign.id == POISON, FAULT)
    monkeypatch.setattr(waterfall, "charge", broken)


def ids(events: list[Message]) -> list[str]:
    return [event["event_id"] for event in events]


def figure(name: str, **labels: Any) -> float:
    return REGISTRY.get_sample_value(name, {key: str(value) for key, value in labels.items()}) or 0.0


@contextlib.asynccontextmanager
async def late_follower(writer: Writing) -> AsyncIterator[asyncpg.Connection]:
    """Yield a connection with the rights of a writer."""
    connection = await connect(writer.settings, ALLOCATION_ROLE, "late")
    yield connection
    await connection.close()


async def test_a_record_that_fails_is_quarantined_and_all_others_are_charged_in_order(
    writer: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    center, neighbour = await writer.opened(0), await writer.opened(1)
    poisoned(monkeypatch)
    before = {name: figure(name, shard=0) for name in ("drawdown_internal_errors_total", "drawdown_entries_total")}
    events = [spend(center, POISON if n in (0, 7, 8, 199) else f"c-{n % 5}") for n in range(200)]
    broken = [events[n] for n in (0, 7, 8, 199)]
    unknown = spend(center, ad_account_id="nobody")
    offsets = await writer.send(*events, unknown)
    others = [spend(neighbour) for _ in range(20)]
    await writer.send(*others)
    await writer.decided()
    assert await writer.charged(center) == [id_ for id_ in ids(events) if id_ not in ids(broken)]
    assert await writer.charged(neighbour) == ids(others)
    found = await writer.quarantined()
    assert [(row["reason"], row["offset"]) for row in found] == [
        *(("internal_error", offsets[n]) for n in (0, 7, 8, 199)),
        ("unknown_ad_account", offsets[-1]),
    ]
    assert {row["detail"] for row in found[:4]} == {r"ZeroDivisionError: nobody\x00 expected \udcff this"}
    assert {row["business_center_id"] for row in found} == {center}
    assert [json.loads(row["raw"])["event_id"] for row in found[:4]] == ids(broken)
    assert figure("drawdown_internal_errors_total", shard=0) - before["drawdown_internal_errors_total"] == 4
    assert figure("drawdown_entries_total", shard=0) - before["drawdown_entries_total"] == 196
    told = writer.told("a record failed unexpectedly")
    assert [(line["topic"], line["partition"], line["offset"]) for line in told] == [
        ("spend.events", 0, offsets[n]) for n in (0, 7, 8, 199)
    ]
    assert {repr(line["exc_info"]) for line in told} == {repr(FAULT)}


async def test_a_command_that_fails_is_quarantined_and_gets_no_outcome(
    writer: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    center = await writer.opened()
    decide = breaks(commands.decide, lambda _shard, _step, command: getattr(command, "amount", 0) == 13_000_000, FAULT)
    monkeypatch.setattr(commands, "decide", decide)
    given = [command(center, "deposit_cash", amount=amount) for amount in ("12", "13", "14")]
    await writer.send(*given)
    await writer.decided()
    outcomes = await writer.database.fetch(
        "SELECT command_id::text, status FROM ledger.outcomes WHERE command_id = ANY($1::uuid[]) ORDER BY sequence",
        [each["command_id"] for each in given],
    )
    assert [(row[0], row[1]) for row in outcomes] == [(given[n]["command_id"], "accepted") for n in (0, 2)]
    assert [row["topic"] for row in await writer.quarantined()] == ["finance.commands"]


async def test_a_replay_after_the_fix_charges_failed_records_and_also_forwarded_ones(
    writer: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    center = await writer.opened(2)
    with monkeypatch.context() as patch:
        poisoned(patch)
        own, strays = spend(center, POISON), [spend(center), spend(center, POISON), spend(center)]
        await writer.send(own)
        await writer.send(*strays, to=3)
        await writer.decided()
        found = await writer.quarantined()
        assert {row["reason"] for row in found} == {"internal_error"}
        assert sorted(await writer.charged(center)) == sorted(ids([strays[0], strays[2]]))
    await writer.database.execute(
        "SELECT ledger.replay_quarantined($1, $2, $1, now(), 10)",
        [row["shard"] for row in found],
        [row["sequence"] for row in found],
    )
    await writer.database.execute("SELECT pg_notify('forwarded', '2')")
    await writer.decided()
    assert sorted(await writer.charged(center)) == sorted(ids([own, *strays]))
    assert len(await writer.quarantined()) == 2


@pytest.mark.parametrize("one_at_a_time", [False, True])
async def test_five_failures_in_a_row_stop_only_their_shard_until_the_process_restarts(
    writer: Writing, monkeypatch: pytest.MonkeyPatch, one_at_a_time: bool
) -> None:
    center, neighbour = await writer.opened(0), await writer.opened(1)
    began = datetime.now(UTC)
    events = [spend(center, POISON) for _ in range(4)]
    events += [spend(center)]
    events += [spend(center, POISON) for _ in range(6)]
    with monkeypatch.context() as patch:
        poisoned(patch)
        for part in [[event] for event in events[:9]] if one_at_a_time else []:
            await writer.send(*part)
            await writer.decided()
        await writer.send(*(events[9:] if one_at_a_time else events))
        row = await writer.standing(0, "stopped")
        assert "5 records in a row failed" in row["detail"]
        assert "fix the fault and start the allocation process again with the same broker" in row["detail"]
        assert figure("drawdown_shard_stopped", shard=0) == 1
        others = [spend(neighbour) for _ in range(20)]
        await writer.send(*others)
        await writer.decided(1, 2, 3)
        assert await writer.charged(neighbour) == ids(others)
        # From the fifth record of the second series on, none is in quarantine.
        assert len(await writer.quarantined()) == 8
        # A record counts as waiting since the last look before it came.
        assert await counted(writer, 0, 2) >= began - timedelta(seconds=2)
        await writer.stop()
    writer.start()
    await writer.decided()
    assert await writer.charged(center) == ids([events[4], *events[9:]])
    assert figure("drawdown_shard_stopped", shard=0) == 0


async def test_a_shard_that_cannot_be_loaded_is_retried_and_delays_no_other(
    writer: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    center, neighbour = await writer.opened(0), await writer.opened(1)
    await writer.stop()
    with monkeypatch.context() as patch:
        error = ReplayDiffersError("shard 0, position 3: the ledger holds something else")
        patch.setattr(
            snapshots, "load", breaks_later(snapshots.load, lambda _connection, lease, *_: lease.shard == 0, error)
        )
        writer.start()
        row = await writer.standing(0, "waiting")
        assert "position 3: the ledger holds something else" in row["detail"]
        events = [spend(center), spend(neighbour)]
        await writer.send(*events)
        await writer.decided(1, 2, 3)
        assert (await writer.standing(1, "writing"))["waiting_records"] == 0
        since = row["since"]

        async def tried_again() -> bool | None:
            return True if len(writer.told("the shard cannot be written")) >= 3 else None

        await until("it was tried some times", tried_again)
        assert (await writer.standing(0, "waiting"))["since"] - since < timedelta(seconds=0.1)
        assert await counted(writer, 0, 1) > since
        assert figure("drawdown_lag_records", shard=0, topic="spend.events") == 1
        pauses = [line["again_in_seconds"] for line in writer.told("the shard cannot be written")]
        assert pauses[:3] == [0.1, 0.2, 0.4]
    await writer.decided()
    assert await writer.charged(center) == [events[0]["event_id"]]
    await writer.standing(0, "writing")


async def test_retries_keep_the_reported_start_of_a_failure_and_the_waiting_records(writer: Writing) -> None:
    """Its records are fetched and decided again and again, and cannot be written."""
    center = await writer.opened(0)
    await writer.database.execute("REVOKE INSERT ON ledger.entries_0 FROM drawdown_allocation")
    events = [spend(center) for _ in range(7)]
    await writer.send(*events)
    since = (await writer.standing(0, "waiting"))["since"]
    first_waits = await counted(writer, 0, 7)
    for tries in (3, 5):

        async def tried(tries: int = tries) -> bool | None:
            assert await reported_wait(writer, 0, 7) is not None, "also while it is tried"
            return True if len(writer.told("the shard cannot be written")) >= tries else None

        await until(f"it was tried {tries} times", tried)
        row = await writer.standing(0, "waiting")
        assert abs(row["since"] - since) < timedelta(seconds=0.2)
        assert "permission denied" in row["detail"]
        assert abs(await counted(writer, 0, 7) - first_waits) < timedelta(seconds=0.2)
    await writer.database.execute("GRANT INSERT ON ledger.entries_0 TO drawdown_allocation")
    await writer.decided()
    assert await writer.charged(center) == ids(events)
    assert (await writer.standing(0, "writing"))["since"] > since + timedelta(seconds=1)
    assert await counted(writer, 0, 0) is None


async def reported_wait(writer: Writing, shard: int, records: int) -> asyncpg.Record | None:
    """Return what is said of a shard for which this many records wait; None if another number is said."""
    return await writer.database.fetchrow(
        "SELECT waiting_since FROM ledger.shard_states WHERE shard = $1 AND waiting_records = $2", shard, records
    )


async def counted(writer: Writing, shard: int, records: int) -> Any:
    """Wait until this many records are said to wait for a shard; return since when the first has."""
    row = await until(f"{records} records wait for shard {shard}", partial(reported_wait, writer, shard, records))
    return row["waiting_since"]


async def test_a_worker_that_loses_its_connection_restarts_without_the_others(writer: Writing) -> None:
    center, neighbour = await writer.opened(0), await writer.opened(1)
    epochs = await writer.database.fetch("SELECT shard, epoch FROM ledger.shards ORDER BY 1")
    for _ in range(3):
        await writer.database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name LIKE 'drawdown allocation %s 0 %'"
        )
        await writer.send(*[spend(each) for each in (center, neighbour) for _ in range(20)])
        await writer.decided()
    assert len(await writer.charged(center)) == len(await writer.charged(neighbour)) == 60
    assert await writer.database.fetch("SELECT shard, epoch FROM ledger.shards ORDER BY 1") == epochs


async def test_a_shard_whose_offsets_kafka_lacks_reports_it_and_the_others_continue(
    writer: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    center, neighbour = await writer.opened(0), await writer.opened(1)
    await writer.stop()
    sentence = "spend.events-0 begins at offset 7: 'drawdown offsets adopt' starts from its beginning"
    with monkeypatch.context() as patch:
        fetch = breaks_later(Worker._fetch, lambda self: self.lease.shard == 0, OffsetsDoNotFitError(sentence))
        patch.setattr(Worker, "_fetch", fetch)
        writer.start()
        row = await writer.standing(0, "waiting")
        assert row["detail"] == f"OffsetsDoNotFitError: {sentence}"
        assert any(sentence in line["error"] for line in writer.told("the shard cannot be written"))
        events = [spend(center), *[spend(neighbour) for _ in range(20)]]
        await writer.send(*events)
        await writer.decided(1, 2, 3)
        assert await writer.charged(neighbour) == ids(events[1:])
    await writer.decided()
    assert await writer.charged(center) == ids(events[:1])


async def test_a_dropped_state_leaves_no_objects_in_memory(writer: Writing, monkeypatch: pytest.MonkeyPatch) -> None:
    """This includes objects that the garbage collector ignores, because a load set them apart."""
    center = await writer.opened()
    poisoned(monkeypatch)
    gc.unfreeze()
    gc.collect()
    gc.disable()
    try:
        before = [sum(isinstance(thing, kind) for thing in gc.get_objects()) for kind in (Worker, AdAccount)]
        for _ in range(5):
            await writer.send(spend(center), spend(center, POISON))
            await writer.decided()
        writer.logs.clear()  # with the stack traces
        gc.unfreeze()
        after = [sum(isinstance(thing, kind) for thing in gc.get_objects()) for kind in (Worker, AdAccount)]
    finally:
        gc.enable()
    assert len(await writer.quarantined()) == 5
    assert after == before


async def test_the_checkpoint_of_outcomes_never_moves_backwards(writer: Writing) -> None:
    """The shard's previous owner may still be publishing outcomes that were published long ago."""
    center = await writer.opened()

    async def done(position: int) -> None:
        async def ask() -> bool | None:
            found = await writer.database.fetchval("SELECT position FROM ledger.checkpoints WHERE shard = 0")
            return True if found == position else None

        await until(f"{position} outcomes are published", ask)

    await done(3)
    late = asyncio.Event()

    async def again_and_again(connection: asyncpg.Connection) -> None:
        """Now and then the real publisher corrects the checkpoint between the two steps. Then nothing is late."""
        while not late.is_set():
            await writer.database.execute("UPDATE ledger.checkpoints SET position = 1")
            await outcome_publishing._publish_some(connection, Slow(), 0)

    class Slow:
        """The producer of a process that has lost the shard."""

        async def send(self, *_: Any, **__: Any) -> Any:
            late.set()
            return asyncio.ensure_future(moved_on.wait())

    moved_on = asyncio.Event()
    async with late_follower(writer) as connection:
        publishing = asyncio.create_task(again_and_again(connection))
        await late.wait()
        await writer.send(command(center, "deposit_cash", amount="1"))
        await writer.decided()
        await done(4)
        moved_on.set()
        await publishing
        assert await writer.database.fetchval("SELECT position FROM ledger.checkpoints WHERE shard = 0") == 4


async def test_outcomes_that_cannot_be_published_delay_no_shard(
    writer: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(outcome_publishing, "_message", breaks(outcome_publishing._message, lambda _row: True, FAULT))
        center = await writer.opened()
        await writer.send(spend(center))
        await writer.decided()
        assert len(await writer.charged(center)) == 1

        async def told() -> bool | None:
            return True if writer.told("publishing outcomes failed") else None

        await until("it is told", told)
        assert await writer.database.fetchval("SELECT sum(position) FROM ledger.checkpoints") is None

    async def published() -> bool | None:
        done = await writer.database.fetchval("SELECT position FROM ledger.checkpoints WHERE shard = 0")
        return True if done == 3 else None

    await until("they are published", published)


@pytest.mark.parametrize("fails", [True, False], ids=["fails", "hangs"])
async def test_unpublishable_outcomes_of_one_shard_do_not_delay_other_outcomes(
    writer: Writing, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    publish = outcome_publishing._publish_some

    async def failing(database: Any, producer: Any, shard: int) -> int:
        if shard != 0:
            return await publish(database, producer, shard)
        if fails:
            raise FAULT
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def published(shard: int) -> bool | None:
        query = "SELECT true FROM ledger.checkpoints WHERE shard = $1 AND position = 3"
        return True if await writer.database.fetchval(query, shard) else None

    with monkeypatch.context() as patch:
        await writer.stop()
        patch.setattr(outcome_publishing, "_publish_some", failing)
        writer.start()
        for shard in range(4):
            await writer.opened(shard)
        for shard in (1, 2, 3):
            await until(f"those of shard {shard} are published", partial(published, shard))
        assert await published(0) is None
        assert {line["shard"] for line in writer.told("publishing outcomes failed")} == ({0} if fails else set())
        assert REGISTRY.get_sample_value("drawdown_outcomes_waiting", {"shard": "1"}) is not None
        await writer.stop()
    # The shard's new owner reports it now.
    assert REGISTRY.get_sample_value("drawdown_outcomes_waiting", {"shard": "1"}) is None
    writer.start()
    await until("those of shard 0 are published", partial(published, 0))


async def test_a_locked_checkpoint_of_outcomes_delays_no_other_shard(writer: Writing) -> None:
    centers = [await writer.opened(shard) for shard in range(4)]

    async def published(shard: int, position: int) -> bool:
        query = "SELECT position FROM ledger.checkpoints WHERE shard = $1"
        return bool(await writer.database.fetchval(query, shard) == position)

    async def is_told() -> bool:
        return {line["shard"] for line in writer.told("publishing outcomes failed")} == {0, 1, 2}

    for shard in range(4):
        await until("the first are published", partial(published, shard, 3))
    async with late_follower(writer) as connection, connection.transaction():
        await connection.execute("SELECT FROM ledger.checkpoints_outcomes WHERE shard < 3 FOR UPDATE")
        await writer.send(*(command(center, "deposit_cash", ad_account_id=center, amount="1") for center in centers))
        await until("those of the last shard are published", partial(published, 3, 4))
        await until("it is told of the others", is_told)
    for shard in range(3):
        await until("they are published", partial(published, shard, 4))


async def test_a_shard_that_fails_during_shutdown_is_released_like_the_others(
    writer: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    center = await writer.opened()
    begun, ending = asyncio.Event(), asyncio.Event()
    stop = Worker.stop

    def stopping(self: Worker) -> None:
        ending.set()
        stop(self)

    async def failing_at_the_end(*_: Any) -> None:
        begun.set()
        await ending.wait()
        raise type(FAULT)(*FAULT.args)

    monkeypatch.setattr(Worker, "stop", stopping)
    monkeypatch.setattr(worker, "decode", failing_at_the_end)
    await writer.send(spend(center))
    await begun.wait()
    await writer.stop()
    (line,) = writer.told("a shard failed while it was being released")
    assert (line["shard"], "ZeroDivisionError" in line["error"]) == (0, True)
    assert await writer.database.fetchval("SELECT count(*) FROM ledger.shards WHERE owner IS NOT NULL") == 0


async def cut_off(writer: Writing, instead: type[Exception]) -> None:
    """Cancel the writer, which may end with that error instead."""
    assert writer.allocation is not None
    writer.allocation.cancel()
    with contextlib.suppress(asyncio.CancelledError, instead):
        await writer.allocation
    writer.allocation = None


async def test_the_result_of_a_commit_in_progress_at_shutdown_is_reported(
    writer: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    center = await writer.opened()
    begun = asyncio.Event()

    async def slow(*_: Any) -> None:
        begun.set()
        raise asyncpg.DiskFullError("no space left")

    monkeypatch.setattr(append, "_append_other_rows", slow)
    await writer.send(spend(center))
    await begun.wait()
    await cut_off(writer, asyncpg.PostgresError)
    (line,) = writer.told("the batch that was being committed is undone")[:1]
    assert line["error"] == "DiskFullError: no space left"


async def test_a_commit_whose_connection_was_lost_is_not_reported_as_undone(
    writer: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection may have been lost before or after the database received the commit."""
    center = await writer.opened()
    begun = asyncio.Event()

    async def gone(connection: asyncpg.Connection, *_: Any) -> None:
        connection.terminate()
        begun.set()

    monkeypatch.setattr(append, "_append_other_rows", gone)
    await writer.send(spend(center))
    await begun.wait()
    await cut_off(writer, asyncpg.InterfaceError)
    assert writer.told("a commit was cut off: only the ledger can tell whether it holds the batch after the position")
    assert not writer.told("the batch that was being committed is undone")


async def test_a_commit_that_completes_during_shutdown_is_reported(
    writer: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    center = await writer.opened()
    begun, ends, may_go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
    append_other_rows, finish = append._append_other_rows, worker.Worker._finish

    async def slow(*arguments: Any) -> None:
        begun.set()
        await may_go_on.wait()
        await append_other_rows(*arguments)

    async def finishing(of: worker.Worker) -> None:
        if of.lease.shard == 0:
            ends.set()
        await finish(of)

    monkeypatch.setattr(append, "_append_other_rows", slow)
    monkeypatch.setattr(worker.Worker, "_finish", finishing)
    await writer.send(spend(center))
    await begun.wait()
    stopping = asyncio.create_task(writer.stop())
    await ends.wait()
    may_go_on.set()
    await stopping
    assert writer.told("the batch that was being committed is in the ledger")


async def test_a_record_that_cannot_be_written_is_found_by_bisection(
    writer: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL refuses one of many records. Only writing them one by one shows which."""
    center = await writer.opened()
    await writer.database.execute(
        "ALTER TABLE ledger.entries ADD CONSTRAINT odd CHECK (campaign_id IS DISTINCT FROM 'poison') NOT VALID"
    )
    events = [spend(center, POISON if n == 77 else "c") for n in range(120)]
    reversed_ = [reversal(events[n]) for n in (3, 119)]
    await writer.send(*events, *reversed_)
    await writer.decided()
    assert await writer.charged(center) == [id_ for id_ in ids([*events, *reversed_]) if id_ != events[77]["event_id"]]
    (row,) = await writer.quarantined()
    assert (row["reason"], json.loads(row["raw"])["event_id"]) == ("internal_error", events[77]["event_id"])
    assert row["detail"].startswith("CheckViolationError: ")


# A copy of a row in the place of the next one, and the rows of the table that lie beyond the lease.
STRAYS = {
    "entries_0": (
        """
        INSERT INTO ledger.entries SELECT shard, (SELECT position + 1 FROM ledger.shards WHERE shard = 0), amount,
            occurred_at, recorded_at, gen_random_uuid(), part, day, period, kind, holder, pocket, grant_id,
            business_center_id, ad_account_id, campaign_id, cause, reverses, details
        FROM ledger.entries WHERE shard = 0 LIMIT 1
        """,
        "position > (SELECT position FROM ledger.shards WHERE shard = 0)",
    ),
    "outcomes": (
        """
        INSERT INTO ledger.outcomes (shard, sequence, command_id, first, business_center_id, type, content, status,
            message, first_position, position, recorded_at, rules_version, zones_release)
        SELECT shard, (SELECT outcome_sequence + 1 FROM ledger.shards WHERE shard = 0), gen_random_uuid(), first,
            business_center_id, type, content, status, message, first_position, position, recorded_at, rules_version,
            zones_release
        FROM ledger.outcomes WHERE shard = 0 LIMIT 1
        """,
        "sequence > (SELECT outcome_sequence FROM ledger.shards WHERE shard = 0)",
    ),
}


@pytest.mark.parametrize("table", STRAYS)
async def test_a_foreign_row_in_the_next_place_is_not_blamed_on_any_record(writer: Writing, table: str) -> None:
    """Another session wrote it. The shard reports it, waits, and continues when the row is gone."""
    center = await writer.opened()
    insert, beyond = STRAYS[table]
    await writer.database.execute(insert)
    sent = [spend(center), command(center, "deposit_cash", amount="1")]
    await writer.send(*sent)
    standing = await writer.standing(0, "waiting")
    assert "in the place of the next one" in standing["detail"]
    published = await writer.database.fetchval("SELECT position FROM ledger.checkpoints_outcomes WHERE shard = 0")
    assert published <= await writer.database.fetchval("SELECT outcome_sequence FROM ledger.shards WHERE shard = 0")
    assert await writer.quarantined() == []
    await writer.database.execute(
        f"BEGIN; ALTER TABLE ledger.{table} DISABLE TRIGGER append_only; DELETE FROM ledger.{table} WHERE {beyond};"
        f" ALTER TABLE ledger.{table} ENABLE ALWAYS TRIGGER append_only; COMMIT"
    )
    await writer.decided()
    assert await writer.charged(center) == [sent[0]["event_id"]]
    assert await writer.quarantined() == []
