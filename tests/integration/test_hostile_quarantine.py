"""Whatever the writer's login puts into quarantine, the API lists, shows and sends back, and it stops nothing behind
it.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import pytest

from shared.runtime.settings import Settings
from tests.integration.api import Api, serving
from tests.integration.writing import Writing, spend, writing
from tests.servers import Broker

REASON: Final = "unknown_ad_account"
# Values of columns, as SQL. The constraints accept each, and our writer writes none of them.
ODD: Final[dict[str, tuple[str, ...]]] = {
    "shard": ("77", "32767"),
    "sequence": ("999999999999999999",),
    "reason": ("''", "E'\\x01'", "'ÄÖÜ'", "'a reason of tomorrow'"),
    "detail": ("''", "repeat(E'\\x01', 8000)", "repeat('😀', 2000)"),
    "topic": ("'finance.commands'",),
    "partition": ("77", "2147483647"),
    "offset": ("9223372036854775807",),
    "key": ("''", "'\\xff'", "decode(repeat('ff', 81920), 'hex')"),
    "raw": ("''", "'\\x00'", "decode(repeat('5b', 65536), 'hex')", '\'{"type": "spend"}\''),
    "headers": (
        *("'7'", "'{}'", "'[1]'", "'[[null, null]]'", "'[[\"h\"]]'", '\'[["h", "no base64"]]\'', "'\"\\ud800\"'"),
        *("repeat('9', 5000)::json", "(repeat('[', 3000) || repeat(']', 3000))::json"),
        "json_build_array(json_build_array('ce_specversion', repeat('A', 1000000)))",
    ),
    "business_center_id": ("''", "E'\\x01'", "repeat('😀', 64)"),
    "raw_bytes, raw_sha256": ("9223372036854775807, sha256('')", "0, sha256('')"),
    "replay_shard, replay_sequence": (
        *("32767, 1", "0, 999999999999999999"),
        "(SELECT 0), (SELECT quarantine_sequence + 1 FROM ledger.shards WHERE shard = 0)",  # the record itself
    ),
}


def records() -> Iterator[str]:
    """Return the statements that put the odd records into quarantine, each behind the last record of its shard."""
    usual = {
        "shard": "0",
        "sequence": "quarantine_sequence + 1",
        "reason": f"'{REASON}'",
        "detail": "'why'",
        "topic": "'spend.events'",
        "partition": "0",
        "offset": "0",
        "raw": "'{}'",
        "recorded_at": "date_trunc('second', now())",
    }
    for column, values in ODD.items():
        for value in values:
            row = {f'"{name}"': of for name, of in usual.items() if name != column}
            row[column if "," in column else f'"{column}"'] = value
            yield (
                f"INSERT INTO ledger.quarantine ({', '.join(row)}) SELECT {', '.join(row.values())}"
                " FROM ledger.shards WHERE shard = 0"
            )


@pytest.fixture
async def writer(settings: Settings) -> AsyncIterator[Writing]:
    async with writing(settings) as writer:
        yield writer


@pytest.fixture
async def api(writer: Writing, kafka: Broker) -> AsyncIterator[Api]:
    async with serving(writer.settings, kafka) as api:
        yield api


async def pages(api: Api, limit: int) -> list[dict[str, Any]]:
    """Return every record, page by page."""
    page = await api.get("/v1/quarantine", limit=limit)
    entries = page["entries"]
    while page["next"] is not None:
        page = await api.get("/v1/quarantine", limit=limit, after=page["next"])
        entries += page["entries"]
    return list(entries)


async def send_back(api: Api, **body: Any) -> None:
    """Replay the records that the body names, a part at a time."""
    while body.get("after") != "":
        answer = await api.client.post("/v1/quarantine/replay", json=body)
        assert answer.status_code in (202, 400, 422), answer.text
        body["after"] = answer.json().get("next") or ""


async def test_odd_records_are_listed_and_replayed_and_block_nothing(writer: Writing, api: Api) -> None:
    center = await writer.opened()
    await writer.stop()
    for statement in records():
        await writer.database.execute(statement)
        await writer.database.execute(
            "UPDATE ledger.shards SET quarantine_sequence = coalesce((SELECT max(sequence) FROM ledger.quarantine"
            " WHERE shard = 0 AND sequence < 1000), 0) WHERE shard = 0"
        )
    stored = await writer.quarantined()
    assert len(stored) == sum(map(len, ODD.values()))
    for limit in (1, 7, 500):
        listed = await pages(api, limit)
        assert [each["id"] for each in listed] == [f"{row['shard']}-{row['sequence']}" for row in stored]
    for each in listed:
        assert await api.get(f"/v1/quarantine/{each['id']}") == each

    writer.start()
    await send_back(api, reason=REASON, limit=5)
    for each in listed:
        answer = await api.client.post(f"/v1/quarantine/{each['id']}/replay", params={"force": True})
        assert answer.status_code in (202, 409, 422), answer.text
    event = spend(center)
    await writer.send(event)
    await writer.decided()
    assert await writer.charged(center) == [event["event_id"]]
    assert await writer.database.fetchval("SELECT count(*) FROM ledger.forwarded") == 0
    assert writer.told("the shard cannot be written") == []
    assert len(await writer.quarantined()) > len(stored), "what was sent back has failed again"
