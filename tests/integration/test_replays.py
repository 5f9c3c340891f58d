"""A writer decides replays without copying records, whatever fails again, wherever they go, and whichever process dies
meanwhile.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from services.allocation.writing import append as appending
from services.auditor.cli import PASSED, replay
from shared.runtime.settings import Settings
from tests.integration.writing import OPENED, Writing, breaks_later, command, spend, writing


@pytest.fixture
async def writer(settings: Settings) -> AsyncIterator[Writing]:
    async with writing(settings) as writer:
        yield writer


async def send_back(writer: Writing, rows: list[asyncpg.Record], to: int) -> int:
    """Do what the API does; return how many records were sent back."""
    sent = await writer.database.fetch(
        "SELECT * FROM ledger.replay_quarantined($1, $2, $3, now(), 10) WHERE NOT failed_too_often",
        [row["shard"] for row in rows],
        [row["sequence"] for row in rows],
        [to for _ in rows],
    )
    await writer.database.execute("SELECT pg_notify('forwarded', $1)", str(to))
    return len(sent)


def names(rows: list[asyncpg.Record]) -> list[tuple[int, int] | None]:
    """Return the record of which each row is a failed replay."""
    return [None if row["replay_shard"] is None else (row["replay_shard"], row["replay_sequence"]) for row in rows]


async def test_every_failed_replay_names_the_first_record_and_has_no_bytes(writer: Writing) -> None:
    center = await writer.opened(1)
    await writer.send(spend(center, ad_account_id="nobody", note="x" * 40_000))
    await writer.decided()
    (first,) = await writer.quarantined()
    for times in range(1, 4):
        newest = (await writer.quarantined())[-1]
        # Until the transaction ends, the writer does not see that something waits.
        async with writer.database.transaction():
            assert await send_back(writer, [first if times == 2 else newest], to=1) == 1
            assert await send_back(writer, [first], to=1) == 0
        await writer.decided()
        found = await writer.quarantined()
        assert names(found) == [None, *[(first["shard"], first["sequence"])] * times]
        assert [row["offset"] for row in found] == [first["offset"]] * (times + 1)
        assert {row["business_center_id"] for row in found} == {center}
        assert [row for row in found[1:] if (row["key"], row["raw"], row["headers"]) != (None, None, None)] == []
    size = await writer.database.fetchval("SELECT sum(octet_length(raw)) FROM ledger.quarantine")
    assert size == len(first["raw"])
    assert await send_back(writer, [found[1]], to=1) == 1
    await writer.decided()
    assert len(await writer.quarantined()) == 5


async def test_a_record_that_always_fails_is_replayed_ten_times(writer: Writing) -> None:
    center = await writer.opened(1)
    await writer.send(spend(center, ad_account_id="nobody"))
    await writer.decided()
    for sent_back in [1] * 10 + [0, 0]:
        assert await send_back(writer, await writer.quarantined(), to=1) == sent_back
        await writer.decided()
    (first, *failed) = await writer.quarantined()
    assert names(failed) == [(first["shard"], first["sequence"])] * 10


async def test_a_replay_sent_to_the_wrong_shard_is_charged_once_in_its_own(writer: Writing) -> None:
    center = writer.center(2)
    event = spend(center)
    await writer.send(event)
    await writer.decided()
    (first,) = await writer.quarantined()
    assert first["reason"] == "unknown_business_center"
    assert await send_back(writer, [first], to=3) == 1  # As if the record's Business Center could not be read then.
    await writer.decided()
    failed = (await writer.quarantined())[-1]
    assert (failed["shard"], failed["raw"], names([failed])) == (2, None, [(first["shard"], first["sequence"])])
    await writer.send(
        command(center, "open_business_center", currency="USD", time_zone="UTC"),
        command(center, "open_ad_account", ad_account_id=center, **OPENED),
    )
    await writer.decided()
    assert await send_back(writer, [failed], to=3) == 1
    await writer.decided()
    assert await writer.charged(center) == [event["event_id"]]
    assert await writer.database.fetchval("SELECT count(*) FROM ledger.forwarded") == 0
    assert len(await writer.quarantined()) == 2
    assert await replay(writer.settings) == PASSED


async def test_the_beginning_of_a_record_can_never_be_replayed(writer: Writing) -> None:
    """The database ensures this: the beginning of a long record may be a complete spend, followed by spaces."""
    center = await writer.opened(0)
    await writer.database.execute(
        'INSERT INTO ledger.quarantine (shard, sequence, reason, detail, topic, partition, "offset", raw, raw_bytes,'
        " raw_sha256, business_center_id, recorded_at)"
        " VALUES (0, 99, 'too_large', 'why', 'spend.events', 0, 1, $1, 70000, sha256(''), $2, now())",
        json.dumps(spend(center)).encode(),
        center,
    )
    rows = await writer.quarantined()
    assert await send_back(writer, rows, to=0) == 0
    await writer.decided()
    assert await writer.charged(center) == []


async def test_a_replay_whose_batch_was_undone_is_decided_once(
    writer: Writing, monkeypatch: pytest.MonkeyPatch
) -> None:
    center = await writer.opened(0)
    events = [spend(center, currency="EUR"), spend(center, ad_account_id="later")]
    await writer.send(*events)
    await writer.decided()
    found = await writer.quarantined()
    await writer.send(command(center, "open_ad_account", ad_account_id="later", **OPENED))
    await writer.decided()
    undone: list[Any] = []

    def once(*arguments: Any) -> bool:
        undone.append(arguments)
        return len(undone) == 1

    broken = breaks_later(appending._append_other_rows, once, ConnectionResetError("the server is gone"))
    monkeypatch.setattr(appending, "_append_other_rows", broken)
    assert await send_back(writer, found, to=0) == 2
    await writer.decided()
    assert len(undone) > 1
    assert await writer.charged(center) == [events[1]["event_id"]]
    assert names(await writer.quarantined()) == [None, None, (0, found[0]["sequence"])]
