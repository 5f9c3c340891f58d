"""A record that waits for a shard and cannot be read goes to quarantine, and the records behind it are decided."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.auditor.cli import replay
from shared.runtime.settings import Settings
from tests.acceptance.front_door import until
from tests.integration.writing import Writing, spend, writing

VALUE = b'{"type": "spend"}'
NO_HEADERS = (
    "[1]",
    "[[null, null]]",
    '[["h"]]',
    '["hY"]',
    '[["h", "YQ==", 3]]',
    '[["h", "no base64"]]',
    '[["h", 5]]',
    '[[5, "YQ=="]]',
    '{"h": "YQ=="}',
    "7",
    '"text"',
    "9" * 5_000,
    "[" * 3_000 + "]" * 3_000,
)


@pytest.fixture
async def writer(settings: Settings) -> AsyncIterator[Writing]:
    async with writing(settings) as writer:
        yield writer


async def put(writer: Writing, headers: str | None, **fields: Any) -> None:
    """Insert a row that waits for shard 0, as a writer's login can, and notify the writer."""
    await writer.database.execute(
        'INSERT INTO ledger.forwarded (shard, topic, partition, "offset", key, raw, headers, replay_shard)'
        " VALUES (0, $1, 3, 77, 'key', $2, $3, $4)",
        fields.get("topic", "spend.events"),
        fields.get("raw", VALUE),
        headers,
        fields.get("replay_shard"),
    )
    await writer.database.execute("NOTIFY forwarded, '0'")


@pytest.mark.parametrize("topic", ["spend.events", "finance.commands"])
async def test_invalid_headers_do_not_stop_the_shard(writer: Writing, topic: str) -> None:
    center = await writer.opened()
    for headers in NO_HEADERS:
        await put(writer, headers, topic=topic)
    after = spend(center)
    await writer.send(after)
    await writer.decided()
    assert await writer.charged(center) == [after["event_id"]]
    found = await writer.quarantined()
    assert [row["reason"] for row in found] == ["malformed"] * len(NO_HEADERS)
    assert all(" cannot be read: its headers: " in row["detail"] for row in found)
    row = found[0]
    assert (row["topic"], row["partition"], row["offset"]) == (topic, 3, 77)
    assert (row["key"], row["raw"], row["headers"], row["raw_bytes"]) == (b"key", VALUE, None, len(VALUE))
    assert (await writer.standing(0, "writing"))["waiting_records"] == 0
    assert await replay(writer.settings) == 0


async def test_an_incomplete_replay_id_does_not_stop_the_shard(writer: Writing) -> None:
    """Rows from before the constraint."""
    center = await writer.opened()
    await writer.database.execute("ALTER TABLE ledger.forwarded DROP CONSTRAINT forwarded_records")
    await put(writer, None, replay_shard=3)
    after = spend(center)
    await writer.send(after)
    await writer.decided()
    assert await writer.charged(center) == [after["event_id"]]
    (row,) = await writer.quarantined()
    assert (row["reason"], row["raw"], row["replay_shard"]) == ("malformed", VALUE, None)
    assert "it names only half of the record that it replays" in row["detail"]


async def test_a_shard_whose_epoch_was_changed_from_outside_is_claimed_again(writer: Writing) -> None:
    center = await writer.opened()
    (epoch,) = await writer.database.fetchrow(
        "UPDATE ledger.shards SET epoch = epoch + 1 WHERE shard = 0 RETURNING epoch"
    )

    async def taken() -> bool:
        return bool(await writer.database.fetchval("SELECT epoch > $1 FROM ledger.shards WHERE shard = 0", epoch))

    await until("it is claimed again", taken)
    after = spend(center)
    await writer.send(after)
    await writer.decided()
    assert await writer.charged(center) == [after["event_id"]]
