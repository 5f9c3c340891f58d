"""Quarantine through HTTP: pages that stay small, single records by id, and replays that multiply nothing."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY

from services.api.door import access
from services.api.door.tokens import Caller
from services.api.quarantine import replays
from services.api.watching import growth
from shared.runtime.postgres import connect
from shared.runtime.roles import API_ROLE
from tests.integration.api import RECORDED_AT, Api, api_at_noon, shard_of
from tests.servers import Postgres

MIB = 1024 * 1024
Id = tuple[int, int]


@pytest.fixture(scope="module")
async def api(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    async with api_at_noon(postgres.url, tmp_path_factory.mktemp("api")) as running:
        yield running


async def quarantine(
    api: Api, id_: Id, reason: str, raw: bytes | None, center: str | None = None, of: Id | None = None, **more: Any
) -> None:
    """Insert a record into quarantine. `of` is the first record if this one is a failed replay."""
    shard, sequence = id_
    fields = {"detail": "why", "topic": "spend.events", "key": None if of else b"key", "recorded_at": RECORDED_AT}
    await api.insert(
        "ledger.quarantine",
        **{**fields, **more},
        shard=shard,
        sequence=sequence,
        reason=reason,
        partition=shard,
        offset=sequence * 10,
        raw=raw,
        business_center_id=center,
        replay_shard=of[0] if of else None,
        replay_sequence=of[1] if of else None,
    )


async def replay(api: Api, **body: Any) -> httpx.Response:
    return await api.client.post("/v1/quarantine/replay", json=body)


async def replayed(api: Api, **body: Any) -> dict[str, Any]:
    answer = await replay(api, **body)
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


async def forwarded(api: Api, first: Id) -> list[tuple[Any, ...]]:
    """Return what waits for a shard as a replay of this record: the shard, and the bytes that are stored with it."""
    rows = await api.database.fetch(
        "SELECT shard, key, raw, headers FROM ledger.forwarded WHERE (replay_shard, replay_sequence) = ($1, $2)", *first
    )
    return [tuple(row) for row in rows]


# ---- Pages ------------------------------------------------------------------------------------------------------


async def test_quarantined_records_are_listed_with_their_raw_bytes(api: Api) -> None:
    await quarantine(api, (0, 1), "malformed", b"\x00\xff")
    await quarantine(api, (0, 2), "malformed", None)
    await quarantine(api, (1, 1), "malformed", b"x")
    page = await api.get("/v1/quarantine", reason="malformed", limit=2)
    assert [entry["id"] for entry in page["entries"]] == ["0-1", "0-2"]
    assert base64.b64decode(page["entries"][0]["raw"]) == b"\x00\xff"
    assert page["entries"][1]["raw"] is None
    assert [page["entries"][0][name] for name in ("replayed_at", "replay_of", "raw_bytes")] == [None, None, None]
    rest = await api.get("/v1/quarantine", reason="malformed", after=page["next"])
    assert [entry["id"] for entry in rest["entries"]] == ["1-1"]
    assert rest["next"] is None


async def pages(api: Api, reason: str) -> list[httpx.Response]:
    query: dict[str, Any] = {"reason": reason, "limit": 1000}
    seen = []
    while query.get("after", "") is not None:
        response = await api.client.get("/v1/quarantine", params=query)
        assert response.status_code == 200
        seen.append(response)
        query["after"] = response.json()["next"]
    return seen


async def test_a_page_is_sent_with_a_mebibyte_at_most_whatever_makes_it_long(api: Api) -> None:
    shapes = [(b"r" * 65_536, "why"), (b"", "\x01" * 2000), (b"q" * 30_000, '"\\' * 900), (None, "ü" * 500)]
    for sequence in range(100, 180):
        raw, detail = shapes[sequence % 4]
        await quarantine(api, (2, sequence), "content_conflict", raw, detail=detail)
    seen = await pages(api, "content_conflict")
    assert [entry["id"] for page in seen for entry in page.json()["entries"]] == [f"2-{n}" for n in range(100, 180)]
    sizes = [len(page.content) for page in seen]
    assert max(sizes) <= MIB
    assert len(sizes) == 3, "pages are as long as they may be"


@contextlib.asynccontextmanager
async def without_size_bounds(api: Api) -> AsyncIterator[None]:
    """Let records of any size into quarantine while the block runs, as before sizes had bounds."""
    (bound,) = await api.database.fetchrow(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conrelid = 'ledger.quarantine'::regclass AND conname = 'quarantine_sizes'"
    )
    await api.database.execute("ALTER TABLE ledger.quarantine DROP CONSTRAINT quarantine_sizes")
    yield
    await api.database.execute(f"ALTER TABLE ledger.quarantine ADD CONSTRAINT quarantine_sizes {bound} NOT VALID")


async def test_a_record_longer_than_a_page_gets_its_own_page(api: Api) -> None:
    async with without_size_bounds(api):
        for sequence, raw in ((11, b"a"), (12, b"b" * MIB), (13, b"c")):
            await quarantine(api, (2, sequence), "too_large", raw)
    seen = [
        [base64.b64decode(entry["raw"]) for entry in page.json()["entries"]] for page in await pages(api, "too_large")
    ]
    assert seen == [[b"a"], [b"b" * MIB], [b"c"]]


async def test_a_record_is_read_by_its_id_with_all_its_bytes(api: Api) -> None:
    raw, sha256 = b"begins" * 5000, b"\x07" * 32
    await quarantine(api, (3, 70), "too_large", raw, raw_bytes=9_000_000, raw_sha256=sha256)
    record = await api.get("/v1/quarantine/3-70")
    assert (record["id"], base64.b64decode(record["raw"])) == ("3-70", raw)
    assert (record["raw_bytes"], record["raw_sha256"]) == (9_000_000, sha256.hex())
    (listed,) = [each for each in (await api.get("/v1/quarantine", after="3-69"))["entries"] if each["id"] == "3-70"]
    assert record == listed


async def test_no_record_is_so_large_that_its_page_cannot_be_answered(api: Api) -> None:
    """Rows from before the bounds: if one has too many bytes, its beginning and its size are shown."""
    raw = bytes(range(256)) * 40_000
    async with without_size_bounds(api):
        await quarantine(api, (2, 21), "invalid", b"before", "large-1")
        await quarantine(api, (2, 22), "invalid", raw, "large-1", detail="x" * 30_000_000)
        await quarantine(api, (2, 23), "invalid", None, "large-1", of=(2, 22))
        await quarantine(api, (2, 24), "invalid", b"behind", "large-1")
    listed = [entry for page in await pages(api, "invalid") for entry in page.json()["entries"]]
    shown = [(entry["id"], base64.b64decode(entry["raw"]), entry["raw_bytes"]) for entry in listed]
    beginning = (raw[:4096], len(raw))
    assert shown == [
        *(("2-21", b"before", None), ("2-22", *beginning)),
        *(("2-23", *beginning), ("2-24", b"behind", None)),
    ]
    assert {len(entry["detail"]) for entry in listed} == {3, 2000}
    assert await api.get("/v1/quarantine/2-22") == listed[1]


# ---- Replays ----------------------------------------------------------------------------------------------------


async def test_a_replay_is_forwarded_to_the_shard_of_its_business_center_without_bytes(api: Api) -> None:
    await quarantine(api, (3, 1), "unknown_ad_account", b"raw", "reads-1")
    response = await api.client.post("/v1/quarantine/3-1/replay")
    assert (response.status_code, response.json()) == (202, {"replayed": 1})
    assert await forwarded(api, (3, 1)) == [(shard_of("reads-1"), None, None, None)]
    row = await api.database.fetchrow(
        'SELECT shard, "offset", key, raw FROM ledger.waiting_records WHERE replay_shard = 3 AND replay_sequence = 1'
    )
    assert tuple(row) == (shard_of("reads-1"), 10, b"key", b"raw")
    assert (await api.get("/v1/quarantine/3-1"))["replayed_at"] == "2026-03-12T12:00:00.000000Z"


async def test_a_record_that_waits_or_has_not_failed_again_is_not_sent_back(api: Api) -> None:
    await quarantine(api, (1, 23), "too_old", b"old")
    assert await replayed(api, ids=["1-23"]) == {"replayed": 1}
    one = await api.client.post("/v1/quarantine/1-23/replay")
    assert (one.status_code, one.json()["code"]) == (409, "conflict")
    assert "1-23" in one.json()["message"]
    await quarantine(api, (1, 24), "too_old", b"older")
    assert await replayed(api, ids=["1-23", "1-24", "1-24"]) == {"replayed": 1, "waiting": 1}
    assert len(await forwarded(api, (1, 23))) == 1
    await api.database.execute("DELETE FROM ledger.forwarded")  # The replay was decided.
    assert await replayed(api, ids=["1-23", "1-24"]) == {"replayed": 0, "waiting": 2}
    assert await forwarded(api, (1, 23)) == []


async def test_a_failed_replay_can_be_sent_back_by_its_own_id_or_the_first_id(api: Api) -> None:
    center = "again-1"
    await quarantine(api, (0, 40), "unknown_ad_account", b"the bytes", center)
    await replayed(api, ids=["0-40"])
    await quarantine(api, (shard_of(center), 41), "unknown_reversal", None, center, of=(0, 40))
    failed = await api.get(f"/v1/quarantine/{shard_of(center)}-41")
    assert (failed["replay_of"], base64.b64decode(failed["raw"])) == ("0-40", b"the bytes")
    assert failed["replayed_at"] is None
    assert await replayed(api, ids=["0-40", failed["id"]]) == {"replayed": 1, "waiting": 1}
    assert await replayed(api, ids=["0-40", failed["id"]]) == {"replayed": 0, "waiting": 2}
    await quarantine(api, (shard_of(center), 42), "unknown_reversal", None, center, of=(0, 40))
    by_its_own = await api.client.post(f"/v1/quarantine/{shard_of(center)}-42/replay")
    assert by_its_own.json() == {"replayed": 1}
    assert await forwarded(api, (0, 40)) == [(shard_of(center), None, None, None)] * 3
    assert await replayed(api, reason="unknown_reversal") == {"replayed": 0}


async def test_a_reason_sends_back_only_one_of_a_record_and_its_failed_replays(api: Api) -> None:
    await quarantine(api, (0, 50), "internal_error", b"fault")
    assert await replayed(api, reason="internal_error") == {"replayed": 1}
    for sequence in (51, 52, 53):
        await quarantine(api, (0, sequence), "internal_error", None, of=(0, 50))
        assert await replayed(api, reason="internal_error") == {"replayed": 1}
        assert await replayed(api, reason="internal_error") == {"replayed": 0}
    assert len(await forwarded(api, (0, 50))) == 4


async def test_only_one_of_many_simultaneous_requests_sends_a_record_back(api: Api) -> None:
    await quarantine(api, (0, 60), "too_old", b"wanted")
    answers = await asyncio.gather(*(replayed(api, ids=["0-60"]) for _ in range(8)))
    assert sum(answer["replayed"] for answer in answers) == 1
    assert len(await forwarded(api, (0, 60))) == 1


async def test_one_unknown_id_refuses_the_whole_request(api: Api) -> None:
    await quarantine(api, (1, 61), "too_old", b"known")
    unknown = await replay(api, ids=["1-61", "1-999"])
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
    assert await forwarded(api, (1, 61)) == []


async def test_a_reason_is_replayed_in_portions_without_records_that_fail_again(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.api.quarantine.replays.PORTION_RECORDS", 4)
    monkeypatch.setattr("services.api.quarantine.replays.PORTION_BYTES", 80)
    sizes = [1, 1, 1, 1, 1, 90, 20, 20, 20, 1, 1]
    for sequence, size in enumerate(sizes, 131):
        await quarantine(api, (sequence % 2, sequence), "reversal_mismatch", b"m" * size)
    portions: list[list[tuple[int, int]]] = []
    send_back = replays.send_back

    async def noted(context: Any, connection: Any, caller: Any, rows: list[Any], *, force: bool) -> replays.Sent:
        portions.append([(row["shard"], row["sequence"]) for row in rows])
        await quarantine(api, (1, 150 + len(portions)), "reversal_mismatch", b"again")
        return await send_back(context, connection, caller, rows, force=force)

    monkeypatch.setattr(replays, "send_back", noted)
    body: dict[str, Any] = {"reason": "reversal_mismatch", "limit": 5}
    first = await replayed(api, **body)
    second = await replayed(api, **body, after=first["next"])
    third = await replayed(api, reason="reversal_mismatch", after=second["next"])
    assert (first["replayed"], second["replayed"], third) == (5, 5, {"replayed": 1})
    order = sorted((sequence % 2, sequence) for sequence, _ in enumerate(sizes, 131))
    assert [row for rows in portions for row in rows] == order
    assert max(map(len, portions)) <= 4
    assert len(portions) >= 4
    failed_again = len(portions)
    assert await replayed(api, reason="reversal_mismatch") == {"replayed": failed_again}


@pytest.mark.parametrize(
    "after",
    [
        *("", "1", "0-1", "0-1:", "0-1:2.", "0-1:x", "0-1:99999999999999999999", "0-1:2", "0-1:2.2.2", "0-1:2.2.2.2.2"),
        *("4-1:2.2.2.2", "99999-1:2.2.2.2"),
    ],
)
async def test_a_replay_continues_only_from_a_valid_cursor(api: Api, after: str) -> None:
    answer = await replay(api, reason="malformed", after=after)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid")
    assert (await replay(api, ids=["0-1"], limit=1)).status_code == 400


# ---- Bounds of replays ------------------------------------------------------------------------------------------


async def test_a_request_names_at_most_a_thousand_records_of_eight_mebibytes(api: Api) -> None:
    many = await replay(api, ids=[f"0-{n}" for n in range(1, 1002)])
    assert (many.status_code, many.json()["code"]) == (400, "invalid")
    long = "h" * 3 * MIB
    async with without_size_bounds(api):
        await quarantine(api, (1, 200), "too_old", long.encode())
        await quarantine(api, (1, 201), "too_old", None, key=long.encode())
        await quarantine(api, (1, 202), "too_old", None, headers=f'["{long}"]')
    large = await replay(api, ids=["1-200", "1-201", "1-202"])
    assert (large.status_code, large.json()["code"]) == (413, "too_large")
    assert "name fewer ids" in large.json()["message"]
    assert await replayed(api, ids=["1-200", "1-201"]) == {"replayed": 2}


@pytest.fixture
def act_as(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make this caller the one of every request."""

    def be(role: Any, *centers: str) -> None:
        monkeypatch.setattr(access, "ANYBODY", Caller("somebody", role, frozenset(centers) or None))

    return be


@pytest.mark.parametrize("reason", ["too_large", "malformed", "invalid"])
async def test_an_unchangeable_failure_is_sent_back_only_if_forced_by_an_admin_of_all_tenants(
    api: Api, act_as: Callable[..., None], reason: str
) -> None:
    first = 300 + 10 * ["too_large", "malformed", "invalid"].index(reason)
    for sequence in (first, first + 1):
        await quarantine(api, (0, sequence), reason, b"bad", "forced")
    await quarantine(api, (0, first + 2), "too_old", b"old", "forced")
    ids = [f"0-{first + 2}", f"0-{first}"]
    for asked in ({"ids": ids}, {"reason": reason}):
        refused = await replay(api, **asked)
        assert (refused.status_code, refused.json()["code"]) == (422, "not_eligible")
        assert reason in refused.json()["message"]
    one = f"/v1/quarantine/{ids[1]}/replay"
    assert (await api.client.post(one)).status_code == 422
    for role, *centers in (("admin", "forced"), ("finance_manager",), ("system",)):
        act_as(role, *centers)
        assert (await replay(api, ids=ids, force=True)).status_code == 403
        assert (await replay(api, reason=reason, force=True)).status_code == 403
        assert (await api.client.post(one, params={"force": True})).status_code == 403
    act_as("admin")
    assert await forwarded(api, (0, first + 2)) == []
    assert await replayed(api, ids=ids, force=True) == {"replayed": 2}
    assert (await api.client.post(f"/v1/quarantine/0-{first + 1}/replay", params={"force": True})).status_code == 202


async def test_a_record_that_is_not_stored_completely_is_never_replayed(api: Api) -> None:
    await quarantine(api, (3, 80), "too_large", b"begins", raw_bytes=70_000, raw_sha256=b"\x01" * 32)
    await quarantine(api, (3, 81), "skipped", None)
    await quarantine(api, (3, 82), "too_large", None, of=(3, 80))
    await quarantine(api, (3, 83), "too_old", None, of=(3, 84))  # The first record was dropped.
    for sequence in (80, 81, 82, 83):
        refused = await replay(api, ids=[f"3-{sequence}"], force=True)
        assert (refused.status_code, refused.json()["code"]) == (422, "not_eligible")
        assert f"spend.events-3, offset {sequence}0" in refused.json()["message"]
    assert await replayed(api, reason="skipped") == {"replayed": 0, "not_whole": 1}
    await replayed(api, reason="too_large", force=True)
    assert await forwarded(api, (3, 80)) == []


async def fail_again(api: Api, first: Id, sequence: int, reason: str = "unknown_reversal") -> Id:
    """Do what the writer does with a failed replay: it no longer waits, and a row names the first record."""
    await api.database.execute("DELETE FROM ledger.forwarded WHERE (replay_shard, replay_sequence) = ($1, $2)", *first)
    center = await api.database.fetchval(
        "SELECT business_center_id FROM ledger.quarantine WHERE (shard, sequence) = ($1, $2)", *first
    )
    await quarantine(api, (first[0], sequence), reason, None, center, of=first)
    return first[0], sequence


async def fail_ten_times(api: Api, first: Id, sequence: int, reason: str = "unknown_reversal") -> Id:
    """Send a record back as often as allowed, and return the id of its last failed replay. This takes ten sequence
    numbers.
    """
    newest = first
    for n in range(replays.MOST_REPLAYS):
        assert await replayed(api, ids=[f"{newest[0]}-{newest[1]}"]) == {"replayed": 1}
        newest = await fail_again(api, first, sequence + n, reason)
    return newest


async def test_a_record_that_failed_ten_times_is_sent_back_only_if_forced_by_an_admin_of_all_tenants(
    api: Api, act_as: Callable[..., None]
) -> None:
    await quarantine(api, (0, 400), "unknown_ad_account", b"hopeless", "worn")
    await quarantine(api, (0, 401), "unknown_ad_account", b"fresh", "worn")
    newest = await fail_ten_times(api, (0, 400), 410)
    assert newest == (0, 419)
    for id_ in ("0-400", "0-410", "0-419"):
        for refused in (await replay(api, ids=["0-401", id_]), await api.client.post(f"/v1/quarantine/{id_}/replay")):
            assert (refused.status_code, refused.json()["code"]) == (422, "not_eligible")
            assert refused.json()["message"].startswith(
                f"the record {id_} was sent back 10 times and failed each time: "
            )
    assert await forwarded(api, (0, 401)) == []
    act_as("finance_manager", "worn")
    forced = await replay(api, ids=["0-419"], force=True)
    assert (forced.status_code, forced.json()["code"]) == (403, "permission_denied")
    assert await forwarded(api, (0, 400)) == []
    act_as("admin")
    assert await replayed(api, ids=["0-419"], force=True) == {"replayed": 1}
    assert await replayed(api, ids=["0-419"], force=True) == {"replayed": 0, "waiting": 1}
    newest = await fail_again(api, (0, 400), 420)
    assert (await replay(api, ids=["0-420"])).status_code == 422
    assert (await api.client.post("/v1/quarantine/0-420/replay", params={"force": True})).status_code == 202


async def test_a_record_has_not_failed_ten_times_while_its_tenth_replay_waits_or_is_charged(api: Api) -> None:
    await quarantine(api, (1, 400), "too_old", b"last chance", "worn")
    for sequence in range(410, 419):
        await replayed(api, ids=["1-400"])
        await fail_again(api, (1, 400), sequence)
    assert await replayed(api, ids=["1-400"]) == {"replayed": 1}
    assert await replayed(api, ids=["1-400"]) == {"replayed": 0, "waiting": 1}
    await api.database.execute("DELETE FROM ledger.forwarded")  # The replay was charged.
    assert await replayed(api, ids=["1-418"]) == {"replayed": 0, "waiting": 1}


async def test_six_simultaneous_clients_send_a_record_back_ten_times_in_total(api: Api) -> None:
    await quarantine(api, (2, 400), "too_old", b"wanted by many", "worn")
    sent, ids = 0, ["2-400"]
    for sequence in range(410, 425):
        answers = await asyncio.gather(*(replay(api, ids=[id_]) for id_ in (ids * 6)[-6:]))
        done = sum(answer.json().get("replayed", 0) for answer in answers)
        assert done == (1 if sent < 10 else 0)
        assert {answer.status_code for answer in answers} == ({202} if sent < 10 else {422})
        sent += done
        if done:
            await fail_again(api, (2, 400), sequence)
            ids.append(f"2-{sequence}")
    assert sent == 10
    notes = "SELECT count(*) FROM ledger.quarantine_replays WHERE shard = 2 AND sequence BETWEEN 400 AND 425"
    assert await api.database.fetchval(notes) == 19  # The first record ten times, nine failed replays once each.


async def test_a_reason_skips_records_that_failed_ten_times_and_continues(api: Api) -> None:
    for first, sequence in (((0, 500), 510), ((0, 501), 530)):
        await quarantine(api, first, "unknown_business_center", b"hopeless")
        await fail_ten_times(api, first, sequence, "of_a_newer_version")
    for id_ in ((0, 505), (0, 545), (0, 550), (1, 500)):
        await quarantine(api, id_, "of_a_newer_version", b"fresh", "worn")
    answers: list[dict[str, Any]] = [await replayed(api, reason="of_a_newer_version", limit=2)]
    while "next" in answers[-1]:
        answers.append(await replayed(api, reason="of_a_newer_version", limit=2, after=answers[-1]["next"]))
    assert [{**answer, "next": None} for answer in answers] == [
        {"replayed": 1, "failed_too_often": 1, "next": None},
        {"replayed": 1, "failed_too_often": 1, "next": None},
        {"replayed": 2, "next": None},
        {"replayed": 0, "next": None},
    ]
    assert await replayed(api, reason="of_a_newer_version") == {"replayed": 0, "failed_too_often": 2}
    assert await replayed(api, reason="of_a_newer_version", force=True) == {"replayed": 2}


@pytest.mark.parametrize("many", ["records", "bytes"])
async def test_nothing_more_is_sent_back_while_too_much_waits_for_a_shard(api: Api, many: str) -> None:
    sequence = 90 if many == "records" else 91
    await quarantine(api, (1, sequence), "too_far_ahead", b"later", "crowded")
    await api.database.execute("DELETE FROM ledger.forwarded")
    shard = shard_of("crowded")
    count, size = (100_000, 1) if many == "records" else (2, 128 * MIB)
    await api.database.execute(
        'INSERT INTO ledger.forwarded (shard, topic, partition, "offset", replay_shard, replay_sequence, replay_bytes)'
        " SELECT $1, 'spend.events', 0, n, 9, n, $3 FROM generate_series(1, $2::bigint) AS n",
        shard,
        count,
        size,
    )
    for asked in ({"ids": [f"1-{sequence}"]}, {"reason": "too_far_ahead"}):
        refused = await replay(api, **asked)
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
        assert refused.json()["message"].startswith(f"too many replayed records wait for shard {shard}")
        assert int(refused.headers["retry-after"]) > 0
    await api.database.execute("DELETE FROM ledger.forwarded WHERE replay_shard = 9 AND replay_sequence = 1")
    assert await replayed(api, reason="too_far_ahead") == {"replayed": 1}
    await api.database.execute("DELETE FROM ledger.forwarded")


# ---- Scope ------------------------------------------------------------------------------------------------------


async def test_a_record_of_another_tenant_looks_as_if_it_did_not_exist(api: Api, act_as: Callable[..., None]) -> None:
    await quarantine(api, (2, 700), "too_old", b"theirs", "theirs")
    await quarantine(api, (2, 701), "too_old", None, "theirs", of=(2, 700))
    act_as("finance_manager", "ours")
    for id_ in ("2-700", "2-701"):
        await api.get(f"/v1/quarantine/{id_}", 404)
        assert (await replay(api, ids=[id_])).status_code == 404
    act_as("finance_analyst", "theirs")
    assert (await api.get("/v1/quarantine/2-701"))["replay_of"] == "2-700"


async def test_the_progress_of_a_replay_reveals_nothing_of_other_tenants(api: Api, act_as: Callable[..., None]) -> None:
    await quarantine(api, (2, 720), "currency_mismatch", b"ours", "ours")
    await quarantine(api, (2, 721), "currency_mismatch", b"ours", "ours")
    await quarantine(api, (2, 799), "currency_mismatch", b"theirs", "theirs")
    act_as("finance_manager", "ours")
    assert (await replayed(api, reason="currency_mismatch", limit=1))["next"] == "2-720:0.0.721.0"


# ---- Growth -----------------------------------------------------------------------------------------------------


async def test_metrics_show_the_size_of_quarantine_and_of_waiting_records(api: Api) -> None:
    def told(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    await api.database.execute("DELETE FROM ledger.forwarded")
    connection = await connect(api.settings, API_ROLE, "growth")
    await growth.look(connection)
    before = told("drawdown_quarantine_bytes")
    assert told("drawdown_quarantine_months") == await api.database.fetchval(
        "SELECT count(*) FROM pg_inherits WHERE inhparent = 'ledger.quarantine'::regclass"
    )
    async with without_size_bounds(api):
        await quarantine(api, (0, 800), "too_old", bytes(range(256)) * 4000, recorded_at="2025-01-01T00:00:00Z")
    await replayed(api, ids=["0-800"])
    await growth.look(connection)
    await connection.close()
    assert told("drawdown_quarantine_bytes") > before
    assert told("drawdown_forwarded_records", shard="0") == 1
    assert told("drawdown_forwarded_replay_bytes", shard="0") == 256 * 4000 + len(b"key")
    assert told("drawdown_forwarded_records", shard="1") == 0
