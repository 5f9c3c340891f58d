"""Batches that cannot be unpacked, and records that are too large to repair: a writer skips them, and records what they
were.
"""

import asyncio
import contextlib
import json
from hashlib import sha256
from typing import Any

import pytest

from services.allocation.records import batch_bounds
from shared.runtime.kafka import FINANCE_COMMANDS, SPEND_EVENTS
from shared.runtime.settings import Settings
from tests.acceptance.front_door import until
from tests.integration.writing import Message, Writing, command, spend, writing
from tests.raw_batches import GZIP, PACK, ZSTD, batch, bombs, record, record_of_many_headers
from tests.raw_batches import records as packed_records

KIB = 1024
TOPICS = [SPEND_EVENTS, FINANCE_COMMANDS]


def packed(values: list[bytes], codec: str = "gzip") -> bytes:
    """Return a batch of records with these values."""
    number, pack = PACK[codec]
    return batch(pack(packed_records(values)), len(values), codec=number)


def dumps(messages: list[Message]) -> list[bytes]:
    return [json.dumps(each).encode() for each in messages]


async def offsets(writer: Writing, shard: int = 0) -> dict[str, int]:
    """Return the offset of each topic that the ledger needs next."""
    row = await writer.database.fetchrow(
        "SELECT spend_offset, command_offset FROM ledger.shards WHERE shard = $1", shard
    )
    return dict(zip(TOPICS, row, strict=True))


async def kill(writer: Writing) -> None:
    """Cancel the writer in the middle of its work, once it has loaded every shard, and start it again."""
    assert writer.allocation is not None
    await until("it has loaded every shard", writer.has_loaded)
    writer.allocation.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await writer.allocation
    writer.start()


@pytest.mark.embedded  # Apache Kafka inspects such batches and refuses them. `tests.security` sends real ones.
@pytest.mark.parametrize("topic", TOPICS)
async def test_batches_beyond_the_bound_become_a_row_each_and_records_around_them_are_decided(
    settings: Settings, topic: str
) -> None:
    made = {name: batch(held, 7, codec=codec) for name, (codec, held) in bombs(17).items()}
    made |= {"junk": batch(b"no codec wrote this", 7, codec=GZIP), "no codec": batch(b"junk" * 9, 7)}
    async with writing(settings) as writer:
        center, events, expected = await writer.opened(), [], []
        for name, data in made.items():
            events.append(spend(center))
            first = await writer.send_batch(data, 0, topic)
            await writer.send(events[-1], command(center, "deposit_cash", amount="1", ad_account_id=center))
            expected.append((first, "malformed" if name in ("junk", "no codec") else "too_large", data[8:4096], data))
            if len(expected) % 4 == 0:
                await kill(writer)
        await writer.decided()
        assert await writer.charged(center) == [event["event_id"] for event in events]
        before = await writer.quarantined()
        await kill(writer)
        events.append(spend(center))
        await writer.send(events[-1])
        await writer.decided()
        assert await writer.charged(center) == [event["event_id"] for event in events]
        found = await writer.quarantined()
        assert found == before, "nothing goes aside twice"
        assert [(row["offset"], row["reason"], row["raw"][8:]) for row in found] == [each[:3] for each in expected]
        for row, (first, _, _, data) in zip(found, expected, strict=True):
            stored = first.to_bytes(8, "big") + data[8:]  # as the broker keeps it
            assert (row["topic"], row["partition"], row["business_center_id"]) == (topic, 0, None)
            assert (row["raw_bytes"], row["raw_sha256"]) == (len(data), sha256(stored).digest())
            assert f"from offset {first} to {first + 6} " in row["detail"]
            assert sha256(stored).hexdigest() in row["detail"]
        assert (await offsets(writer))[topic] > expected[-1][0] + 6


@pytest.mark.parametrize("topic", TOPICS)
async def test_a_batch_of_too_many_records_becomes_a_row_and_records_after_it_are_decided(
    settings: Settings, topic: str
) -> None:
    many = batch_bounds.RECORDS_OF_A_KAFKA_BATCH + 1
    async with writing(settings) as writer:
        center = await writer.opened()
        first = await writer.send_batch(packed([b""] * many, "zstd"), 0, topic)
        after = spend(center)
        await writer.send(after, command(center, "deposit_cash", amount="1", ad_account_id=center))
        await writer.decided()
        assert await writer.charged(center) == [after["event_id"]]
        (row,) = await writer.quarantined()
        assert (row["topic"], row["offset"], row["reason"]) == (topic, first, "too_large")
        assert f"from offset {first} to {first + many - 1} " in row["detail"]
        assert f"it holds {many} records" in row["detail"]
        assert (await offsets(writer))[topic] == first + many + 1


async def test_many_large_records_are_split_into_many_transactions(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records within the bounds are kept whole: eight megabytes in a transaction, and in this test one."""
    few = batch_bounds.Bounds(records=5_000, bytes=batch_bounds.MIB, entries=20_000, seconds=60.0)
    monkeypatch.setattr(batch_bounds, "BOUNDS", few)
    async with writing(settings) as writer:
        center, elsewhere = await writer.opened(), await writer.opened(1)
        bad = dumps([spend(center, ad_account_id="nobody", note="x" * 50 * KIB) for _ in range(150)])
        good = [spend(elsewhere, note="x" * 50 * KIB) for _ in range(100)]
        await writer.send_batch(packed(bad), 0)
        await writer.send_batch(packed(dumps(good)), 0)
        await writer.send(spend(center))
        await writer.decided()
        found = await writer.quarantined()
        assert [(row["raw"], row["raw_bytes"], row["raw_sha256"]) for row in found] == [
            (each, None, None) for each in bad
        ]
        at_once = await writer.database.fetch("SELECT count(*) FROM ledger.quarantine GROUP BY recorded_at")
        assert max(row[0] for row in at_once) <= batch_bounds.MIB // (50 * KIB) + 1
        assert await writer.charged(elsewhere) == [event["event_id"] for event in good]


async def test_the_beginning_and_business_center_of_large_records_are_kept(settings: Settings) -> None:
    async with writing(settings) as writer:
        center = await writer.opened()
        large = dumps([spend(center, note="x" * 70 * KIB), {"note": "x" * 70 * KIB, **spend(center)}])
        envelope = json.dumps(
            {"specversion": "1.0", "business_center_id": center, "data": {"x": "x" * 70 * KIB}}
        ).encode()
        keyed = record(json.dumps(spend(center)).encode(), key=b"k" * 900 * KIB)
        headed = record_of_many_headers(50_000, json.dumps(spend(center)).encode(), offset=1)
        await writer.send_batch(packed([*large, envelope]), 0)
        await writer.send_batch(batch(PACK["zstd"][1](keyed + headed), 2, codec=ZSTD), 0)
        commanded = command(center, "deposit_cash", amount="1", ad_account_id=center, note="x" * 70 * KIB)
        await writer.send_batch(packed(dumps([commanded])), 0, FINANCE_COMMANDS)
        after = spend(center)
        await writer.send(after)
        await writer.decided()
        assert await writer.charged(center) == [after["event_id"]]
        found = {(row["topic"], row["offset"]): row for row in await writer.quarantined()}
        rows = [found[SPEND_EVENTS, offset] for offset in range(5)]
        rows.append(next(row for row in found.values() if row["topic"] == FINANCE_COMMANDS))
        assert len(found) == 6
        assert {row["reason"] for row in rows} == {"too_large"}
        assert [row["business_center_id"] for row in rows] == [center, None, None, center, center, center]
        whole = [*large, envelope]
        assert [row["raw"] for row in rows[:3]] == [each[:4096] for each in whole]
        assert [(row["raw_bytes"], row["raw_sha256"]) for row in rows[:3]] == [
            (len(each), sha256(each).digest()) for each in whole
        ]
        assert all(_kept(row) <= 2 * 4096 for row in rows)


def _kept(row: Any) -> int:
    return len(row["raw"] or b"") + len(row["key"] or b"") + len(row["headers"] or "")


async def test_a_forwarded_record_without_a_notification_is_decided(settings: Settings) -> None:
    """A notification is lost together with the connection that listens."""
    async with writing(settings) as writer:
        center = await writer.opened()
        events = [spend(center), spend(center)]
        for event in events:
            await writer.database.execute(
                'INSERT INTO ledger.forwarded (shard, topic, partition, "offset", raw) VALUES (0, $1, 1, 0, $2)',
                SPEND_EVENTS,
                json.dumps(event).encode(),
            )
            await writer.decided(seconds=20)
        assert await writer.charged(center) == [event["event_id"] for event in events]


async def test_reads_of_forwarded_records_are_bounded_by_all_their_bytes(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows from before the bound: they have no value, and a key or headers of any size, above the bound or below it."""
    monkeypatch.setattr(
        batch_bounds, "BOUNDS", batch_bounds.Bounds(records=5_000, bytes=4_000, entries=20_000, seconds=60.0)
    )
    async with writing(settings) as writer:
        center = await writer.opened()
        await writer.database.execute("ALTER TABLE ledger.forwarded DROP CONSTRAINT forwarded_sizes")
        await writer.database.executemany(
            'INSERT INTO ledger.forwarded (shard, topic, partition, "offset", key, headers)'
            " VALUES (0, $1, 0, $2, $3, $4)",
            [(SPEND_EVENTS, number, b"k" * 1_500, None) for number in range(9)]
            + [(SPEND_EVENTS, number, None, json.dumps([["h", "eHh4" * 500]])) for number in range(9)]
            + [(SPEND_EVENTS, number, b"k" * 300_000, json.dumps([["h", "eHh4" * 99_999]])) for number in range(3)],
        )
        await writer.database.execute("NOTIFY forwarded, '0'")
        await writer.decided()
        found = await writer.quarantined()
        assert [row["reason"] for row in found] == ["malformed"] * 18 + ["too_large"] * 3
        assert all(_kept(row) <= 4096 for row in found)
        at_once = await writer.database.fetch("SELECT count(*) FROM ledger.quarantine GROUP BY recorded_at")
        assert max(row[0] for row in at_once) <= 3
        after = spend(center)
        await writer.send(after)
        await writer.decided()
        assert await writer.charged(center) == [after["event_id"]]
