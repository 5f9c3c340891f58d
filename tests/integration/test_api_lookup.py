"""`POST /v1/events/lookup`: each event is charged, quarantined, waiting or unknown, and callers see only their own."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.integration.api import RECORDED_AT, Api, running_api, shard_of
from tests.integration.test_api_reads import append
from tests.integration.tokens import issuer
from tests.servers import Postgres

BC = "lookup-1"
SHARD = shard_of(BC)
CHARGED = "0193aaaa-0000-7000-8000-000000000007"


@pytest.fixture(scope="module")
async def api(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    keys = issuer(tmp_path_factory.mktemp("keys"))
    options = {"api_authentication": "tokens", "api_keys_file": keys.keys_file}
    async with running_api(postgres.url, tmp_path_factory.mktemp("api"), **options) as running:
        running.client.headers["authorization"] = f"Bearer {keys.token()}"
        running.client.headers["x-others"] = keys.token(business_centers=["somebody-else"])
        await append(running, BC, 7, "a", source_event_id=CHARGED)
        for sequence, offset in ((1, 50), (2, 60), (3, 60)):
            record = {"topic": "spend.events", "partition": SHARD, "offset": offset, "business_center_id": BC}
            await running.insert(
                "ledger.quarantine",
                shard=SHARD,
                sequence=sequence,
                reason=f"reason_{sequence}",
                detail="why",
                **{**record, "recorded_at": RECORDED_AT},
            )
        await running.database.execute(
            "UPDATE ledger.shards SET spend_offset = 100, quarantine_sequence = 3 WHERE shard = $1", SHARD
        )
        yield running


def cursor(sequence: int) -> str:
    return ".".join(str(sequence if shard == SHARD else 0) for shard in range(4))


async def look(api: Api, *events: dict[str, Any], after: str | None = None, others: bool = False) -> list[Any]:
    headers = {"authorization": f"Bearer {api.client.headers['x-others']}"} if others else {}
    body = {"events": list(events), **({} if after is None else {"after": after})}
    response = await api.client.post("/v1/events/lookup", json=body, headers=headers)
    assert response.status_code == 200, response.text
    assert response.json()["next"] == cursor(0 if others else 3)
    return list(response.json()["events"])


def at(offset: int, event_id: str | None = None) -> dict[str, Any]:
    place = {"partition": SHARD, "offset": offset}
    return place if event_id is None else {"event_id": event_id, **place}


async def test_events_are_answered_in_the_order_of_the_request(api: Api) -> None:
    asked = [{"event_id": str(uuid4())}, {"event_id": CHARGED}, {}, {"event_id": CHARGED.upper()}, at(99, str(uuid4()))]
    states = [each["state"] for each in await look(api, *asked, at(100, CHARGED), at(100))]
    assert states == ["unknown", "charged", "unknown", "charged", "unknown", "waiting", "waiting"]


async def test_the_last_quarantine_of_a_record_after_the_cursor_counts(api: Api) -> None:
    [first, second] = await look(api, at(50), at(60, CHARGED), after=cursor(0))
    assert first == {"state": "quarantined", "record_id": f"{SHARD}-1", "reason": "reason_1", "detail": "why"}
    assert (second["reason"], second["record_id"]) == ("reason_3", f"{SHARD}-3")
    [first, second] = await look(api, at(50), at(60), after=cursor(1))
    assert (first["state"], second["reason"]) == ("unknown", "reason_3")
    [first, second] = await look(api, at(50), at(60, CHARGED), after=cursor(3))
    assert (first["state"], second["state"]) == ("unknown", "charged")


async def test_an_offset_may_be_written_with_a_fraction_of_zero(api: Api) -> None:
    text = f'{{"events": [{{"partition": {SHARD}.0, "offset": 6e1}}], "after": "{cursor(0)}"}}'
    response = await api.client.post("/v1/events/lookup", content=text)
    [found] = response.json()["events"]
    assert (found["state"], found["record_id"]) == ("quarantined", f"{SHARD}-3")


async def test_quarantine_is_not_searched_without_a_cursor(api: Api) -> None:
    [answer] = await look(api, at(50))
    assert answer == {"state": "unknown"}


async def test_records_of_another_tenant_are_unknown(api: Api) -> None:
    answers = await look(api, {"event_id": CHARGED}, at(50), after=cursor(0), others=True)
    assert [answer["state"] for answer in answers] == ["unknown", "unknown"]


@pytest.mark.parametrize(
    "body",
    [
        *({}, {"events": []}, {"events": [{}] * 501}, {"events": [{"event_id": "1"}]}, {"events": [{"offset": -1}]}),
        *({"events": [{"partition": 2**15}]}, {"events": [{"offset": 2**63}]}, {"events": [{"offset": "1"}]}),
        *({"events": [{}], "after": "x"}, {"events": [{}], "after": ""}, {"events": [{}], "after": "1." * 3}, []),
    ],
)
async def test_a_malformed_lookup_is_400(api: Api, body: Any) -> None:
    response = await api.client.post("/v1/events/lookup", json=body)
    assert (response.status_code, response.json()["code"]) == (400, "invalid")


@pytest.mark.parametrize("after", ["0", "0.0.0", "0.0.0.0.0"])
async def test_a_cursor_has_a_number_for_each_shard(api: Api, after: str) -> None:
    response = await api.client.post("/v1/events/lookup", json={"events": [at(50)], "after": after})
    numbers = len(after.split("."))
    assert (response.status_code, response.json()["message"]) == (
        400,
        f"after should have 4 numbers, one for each shard, and has {numbers}: pass the `next` of an earlier answer",
    )


async def test_an_event_at_a_missing_partition_does_not_wait(api: Api) -> None:
    answers = await look(api, {"partition": 4, "offset": 0}, {"partition": 4, "offset": 0, "event_id": CHARGED})
    assert [answer["state"] for answer in answers] == ["unknown", "charged"]


async def test_the_largest_number_of_events_fits_into_a_body(api: Api) -> None:
    events = [
        {"event_id": str(UUID(int=number)), "partition": SHARD, "offset": 2**62 + number} for number in range(500)
    ]
    assert {each["state"] for each in await look(api, *events, after=cursor(0))} == {"waiting"}
