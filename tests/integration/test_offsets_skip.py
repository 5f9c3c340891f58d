"""`drawdown offsets skip`: an operator skips a record that stops a shard, as the runbook says, and never without a
trace.
"""

import json
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from services.allocation import worker
from services.allocation.operating import isolated_reading
from services.allocation.operating.skipping import skip
from services.allocation.records import batch_decoding
from services.auditor.cli import replay, verify
from shared.runtime.errors import CannotGoOnError
from shared.runtime.kafka import FINANCE_COMMANDS, SPEND_EVENTS
from shared.runtime.settings import Settings
from tests.integration.writing import Message, Writing, command, spend, writing
from tests.raw_batches import batch, bombs
from tests.servers import run_to_its_end

BECAUSE = "it makes the decoder fail; ticket 4711"


@pytest.fixture
def failing_at_poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the writer fail at records that contain "poison", for an unexpected reason."""

    def stumbles(decode: Callable[..., Any]) -> Callable[..., Any]:
        async def decoding(commands: list[Any], events: list[Any], keys: Any) -> Any:
            if any(b"poison" in (record.value or b"") for record in [*commands, *events]):
                raise RuntimeError("nobody foresaw this")
            return await decode(commands, events, keys)

        return decoding

    monkeypatch.setattr(worker, "decode", stumbles(batch_decoding.decode))


async def operators_log(writer: Writing) -> list[asyncpg.Record]:
    return await writer.database.fetch("SELECT * FROM ledger.operators_log ORDER BY sequence")  # type: ignore[no-any-return]


def poisoned(topic: str, center: str) -> Message:
    fields = {"note": "poison"}
    return spend(center, **fields) if topic == SPEND_EVENTS else command(center, "deposit_cash", amount="1", **fields)


@pytest.mark.usefixtures("failing_at_poison")
@pytest.mark.parametrize("topic", [SPEND_EVENTS, FINANCE_COMMANDS])
async def test_a_shard_that_is_stopped_by_a_record_is_moved_past_it(settings: Settings, topic: str) -> None:
    """The procedure of the runbook, while the writer runs and fails again and again."""
    async with writing(settings) as writer:
        center, elsewhere = await writer.opened(), await writer.opened(1)
        before, after, other = spend(center), spend(center), spend(elsewhere)
        await writer.send(before)
        await writer.decided()
        poison = poisoned(topic, center)
        (offset,) = await writer.send(poison)
        await writer.send(after, other)
        state = await writer.standing(0, "waiting")
        assert "nobody foresaw this" in state["detail"]
        epoch = await writer.database.fetchval("SELECT epoch FROM ledger.shards WHERE shard = 0")

        await skip(settings, 0, topic, offset, BECAUSE)
        await writer.decided()
        assert await writer.charged(center) == [before["event_id"], after["event_id"]]
        assert await writer.charged(elsewhere) == [other["event_id"]]
        (row,) = await writer.quarantined()
        assert (row["reason"], row["topic"], row["partition"], row["offset"]) == ("skipped", topic, 0, offset)
        assert (row["raw"], row["business_center_id"]) == (json.dumps(poison).encode(), center)
        assert BECAUSE in row["detail"]
        (entry,) = await operators_log(writer)
        assert (entry["action"], entry["because"]) == ("offsets_skipped", BECAUSE)
        assert json.loads(entry["details"]) == {"shard": 0, "topic": topic, "offset": offset, "was_read": True}
        assert await writer.database.fetchval("SELECT epoch FROM ledger.shards WHERE shard = 0") > epoch
        assert await verify(settings) == 0
        assert await replay(settings) == 0


@pytest.mark.usefixtures("failing_at_poison")
@pytest.mark.parametrize("topic", [SPEND_EVENTS, FINANCE_COMMANDS])
async def test_a_skipped_record_keeps_its_headers(settings: Settings, topic: str) -> None:
    headers = [("trace-id", b"1"), ("nothing", None), ("ce_time", b"\xff")]
    async with writing(settings) as writer:
        center = await writer.opened()
        (offset,) = await writer.send(poisoned(topic, center), headers=headers)
        await writer.standing(0, "waiting")
        await skip(settings, 0, topic, offset, BECAUSE)
        await writer.decided()
        (row,) = await writer.quarantined()
        assert (row["reason"], row["offset"], row["business_center_id"]) == ("skipped", offset, center)
        assert [name for name, _ in json.loads(row["headers"])] == [name for name, _ in headers]
        assert await verify(settings) == 0


@pytest.mark.parametrize("topic", [SPEND_EVENTS, FINANCE_COMMANDS])
async def test_a_future_record_cannot_be_skipped(settings: Settings, topic: str) -> None:
    """The shard has recovered meanwhile. Whatever comes next is valid, and nobody would notice its loss."""
    async with writing(settings) as writer:
        center = await writer.opened()
        await writer.send(spend(center))
        await writer.decided()
        column = "spend_offset" if topic == SPEND_EVENTS else "command_offset"
        offset = await writer.database.fetchval(f"SELECT {column} FROM ledger.shards WHERE shard = 0")
        with pytest.raises(CannotGoOnError, match=r"has no record yet, .*: nothing was skipped"):
            await skip(settings, 0, topic, offset, BECAUSE)
        after = spend(center)
        await writer.send(after)
        await writer.decided()
        assert after["event_id"] in await writer.charged(center)
        assert await operators_log(writer) == []


@pytest.mark.usefixtures("failing_at_poison")
async def test_only_the_next_record_can_be_skipped(settings: Settings) -> None:
    async with writing(settings) as writer:
        center = await writer.opened()
        (offset,) = await writer.send(poisoned(SPEND_EVENTS, center))
        await writer.standing(0, "waiting")
        refused: list[tuple[int, str, int, str, str]] = [
            (0, SPEND_EVENTS, offset + 1, BECAUSE, f"shard 0 needs offset {offset} of spend.events next"),
            (0, SPEND_EVENTS, 2**62, BECAUSE, f"shard 0 needs offset {offset} of spend.events next"),
            (0, FINANCE_COMMANDS, offset, BECAUSE, "shard 0 needs offset 3 of finance.commands next"),
            (9, SPEND_EVENTS, offset, BECAUSE, "there is no shard 9"),
            (0, "finance.outcomes", offset, BECAUSE, "reads spend.events and finance.commands"),
            (0, SPEND_EVENTS, offset, " \n", "--because should say why"),
        ]
        lease = "SELECT shard, epoch, spend_offset, command_offset FROM ledger.shards ORDER BY 1"
        before = await writer.database.fetch(lease)
        for shard, topic, wrong, because, told in refused:
            with pytest.raises(CannotGoOnError, match=told):
                await skip(settings, shard, topic, wrong, because)
        assert await writer.database.fetch(lease) == before
        assert (await writer.quarantined(), await operators_log(writer)) == ([], [])


async def test_an_unreadable_record_is_skipped_while_no_process_writes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated_reading, "READ_SECONDS", 0.0)
    async with writing(settings) as writer:
        center = await writer.opened()
        await writer.stop()
        lost, after = spend(center), spend(center)
        offset, _ = await writer.send(lost, after)
        await skip(settings, 0, SPEND_EVENTS, offset, BECAUSE)
        (row,) = await writer.quarantined()
        assert (row["reason"], row["offset"], row["raw"], row["raw_bytes"]) == ("skipped", offset, None, None)
        assert "could not be read within" in row["detail"]
        writer.start()
        await writer.decided()
        assert await writer.charged(center) == [after["event_id"]]
        with pytest.raises(CannotGoOnError, match=f"needs offset {offset + 2} "):
            await skip(settings, 0, SPEND_EVENTS, offset, BECAUSE)


@pytest.mark.embedded  # Apache Kafka inspects such a batch and refuses it.
async def test_one_offset_of_an_unreadable_batch_is_skipped(settings: Settings) -> None:
    codec, packed = bombs(17)["zstd"]
    async with writing(settings) as writer:
        center = await writer.opened()
        await writer.stop()
        offset = await writer.send_batch(batch(packed, 7, codec=codec), 0)
        await skip(settings, 0, SPEND_EVENTS, offset, BECAUSE)
        writer.start()
        after = spend(center)
        await writer.send(after)
        await writer.decided()
        assert await writer.charged(center) == [after["event_id"]]
        found = [(row["reason"], row["offset"], row["raw_bytes"]) for row in await writer.quarantined()]
        size = len(batch(packed, 7))
        assert found == [("skipped", offset, size), ("too_large", offset + 1, size)]


async def test_an_audit_finds_a_skipped_record_without_an_entry_in_the_log_of_operators(settings: Settings) -> None:
    async with writing(settings) as writer:
        await writer.opened()
        await writer.stop()
        assert await verify(settings) == 0
        await writer.database.execute(
            'INSERT INTO ledger.quarantine (shard, sequence, reason, detail, topic, partition, "offset", recorded_at)'
            " SELECT 0, quarantine_sequence + 1, 'skipped', '', 'spend.events', 0, 7, ledger_time"
            " FROM ledger.shards WHERE shard = 0"
        )
        await writer.database.execute(
            "UPDATE ledger.shards SET quarantine_sequence = quarantine_sequence + 1 WHERE shard = 0"
        )
        assert await verify(settings) == 1


async def test_the_command_line_reports_the_skip_and_the_log_keeps_it(settings: Settings) -> None:
    async with writing(settings) as writer:
        center = await writer.opened()
        await writer.stop()
        (offset,) = await writer.send(spend(center))
        wrong = await run_to_its_end(f"offsets skip 0 spend.events {offset + 5} --because nothing", settings)
        assert (wrong.returncode, wrong.stdout) == (1, "")
        assert f"shard 0 needs offset {offset} of spend.events next, not {offset + 5}" in wrong.stderr
        right = await run_to_its_end(f"offsets skip 0 spend.events {offset} --because {BECAUSE.split()[-1]}", settings)
        assert right.returncode == 0, right.stderr
        assert "one record was skipped" in right.stdout + right.stderr
        told = await run_to_its_end("offsets log", settings)
        (line,) = [json.loads(line) for line in told.stdout.splitlines()]
        assert (line["action"], line["because"], line["details"]["offset"]) == ("offsets_skipped", "4711", offset)
