"""/readyz of the API names the shards that nobody writes, or that are stopped, waiting or behind, and since when."""

import asyncio
import re
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import pytest

from services.api.watching import writers
from services.api.watching.read_probe import TABLES, TableReader
from tests.integration.api import Api, running_api
from tests.integration.shard_writers import Writer, shard_writer
from tests.servers import Postgres

SHARDS = (0, 1, 2, 3)
TIME = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ"


@pytest.fixture(scope="module")
async def api(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    async with running_api(postgres.url, tmp_path_factory.mktemp("api")) as running:
        while "not answered yet" in (await running.client.get("/readyz")).text:  # noqa: ASYNC110 - a server's state
            await asyncio.sleep(0.02)
        yield running


@pytest.fixture
async def writer(api: Api) -> AsyncIterator[Writer]:
    await api.database.execute("DELETE FROM ledger.shard_states")
    async with shard_writer(api.settings.database_url) as writer:
        yield writer


async def readiness(api: Api) -> tuple[int, str, str, list[dict[str, Any]]]:
    """Return status code, status, sentence and shards, as seen now."""
    await api.context.writers.look(api.database)
    response = await api.client.get("/readyz")
    answer = response.json()
    return response.status_code, answer["status"], answer["detail"], answer["shards"]


async def figure(api: Api, metric: str) -> float:
    metrics = (await api.client.get("/metrics")).text
    found = re.search(rf"^{metric} (.*)$", metrics, re.MULTILINE)
    assert found is not None
    return float(found[1])


async def unwritten(api: Api) -> float:
    return await figure(api, "drawdown_shards_unwritten")


async def test_the_metrics_show_used_up_transaction_ids(api: Api) -> None:
    before = await figure(api, "drawdown_oldest_transaction_age")
    await api.database.execute(
        "DO $$ BEGIN FOR i IN 1..5000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$"
    )
    await TableReader(api.context.pool)._read()
    assert before + 5000 <= await figure(api, "drawdown_oldest_transaction_age") < before + 10_000
    assert await figure(api, "drawdown_notification_queue_usage") < 0.1


async def test_every_table_that_requests_may_read_is_tried(api: Api) -> None:
    readable = await api.database.fetch(
        "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'p')"
        " AND relnamespace::regnamespace::text IN ('ledger', 'balance', 'incentives', 'signals')"
        " AND (NOT relispartition OR relname LIKE 'checkpoints%')"
        " AND has_table_privilege('drawdown_api', oid, 'SELECT')"
    )
    assert sorted(TABLES) == sorted(row[0] for row in readable)


@pytest.mark.parametrize("table", ["balance.pockets", "incentives.deals", "ledger.quarantine"])
@pytest.mark.parametrize(
    ("change", "undo", "error"),
    [
        ("ALTER TABLE {} RENAME TO elsewhere", "ALTER TABLE {schema}.elsewhere RENAME TO {name}", "does not exist"),
        ("REVOKE SELECT ON {} FROM drawdown_api", "GRANT SELECT ON {} TO drawdown_api", "permission denied"),
    ],
)
async def test_a_table_that_requests_cannot_read_is_named_until_they_can(
    api: Api, table: str, change: str, undo: str, error: str
) -> None:
    reader = TableReader(api.context.pool)
    schema, name = table.split(".")
    assert await reader._problem() is None
    await api.database.execute(change.format(table))
    problem = await reader._problem()
    await api.database.execute(undo.format(table, schema=schema, name=name))
    assert problem is not None
    assert problem.startswith("requests cannot read")
    assert error in problem
    assert name in problem
    assert await reader._problem() is None


async def test_a_request_that_meets_a_change_of_its_table_may_be_tried_again(api: Api) -> None:
    """`drawdown migrate` runs while the services of the release before answer."""
    statuses = []
    changes = ("ADD COLUMN later int", "DROP COLUMN later")
    for change in ("ALTER COLUMN client SET STATISTICS 100", *changes):
        await api.database.execute(f"ALTER TABLE incentives.deals {change}")
        for _ in range(20):
            answer = await api.client.get("/v1/deals/unknown")
            statuses.append(answer.status_code)
            if answer.status_code == 503:
                assert answer.headers["retry-after"]
    assert set(statuses) == {404, 503}
    assert statuses.count(503) <= 2 * api.context.pool.get_size()


async def test_the_api_is_ready_when_all_shards_have_a_writer(api: Api, writer: Writer) -> None:
    for shard in SHARDS:
        await writer.report(shard, "writing", "all is decided")
    code, status, detail, shards = await readiness(api)
    assert (code, status) == (200, "ready")
    assert detail == "the database and the broker answer; every shard is written"
    assert [each.pop("since") is not None for each in shards] == [True] * 4
    common = {"owner": writer.owner, "waiting_records": 0, "waiting_since": None, "detail": "all is decided"}
    assert shards == [{"shard": shard, "state": "writing", **common} for shard in SHARDS]
    assert await unwritten(api) == 0


async def test_an_owner_that_follows_another_at_once_has_some_seconds_to_report(api: Api, writer: Writer) -> None:
    for shard in SHARDS:
        await writer.report(shard, "writing", waiting=7, for_seconds=60)
    await readiness(api)
    async with shard_writer(api.settings.database_url) as heir:
        code, status, _, shards = await readiness(api)
        assert (code, status) == (200, "ready")
        assert {(each["state"], each["owner"], each["waiting_records"]) for each in shards} == {
            ("taken", heir.owner, 0)
        }


async def test_an_owner_that_never_reports_does_not_count_as_a_writer(
    api: Api, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was stopped between taking its lease and its first report."""
    await writer.report(3, "writing")
    await readiness(api)
    with monkeypatch.context() as patch:
        patch.setattr(writers, "monotonic", lambda: monotonic() + writers.SILENT_SECONDS)
        code, status, detail, shards = await readiness(api)
    assert (code, status) == (200, "degraded")
    assert re.fullmatch(rf"nobody has written shards 0, 1, 2 since {TIME}", detail)
    assert shards[0]["detail"] == f"its owner {writer.owner} is alive and has not reported its state yet"
    assert await unwritten(api) == 3


async def test_a_writer_that_ends_each_time_it_takes_a_shard_never_counts(api: Api, writer: Writer) -> None:
    for shard in SHARDS:
        await writer.report(shard, "writing")
    written_at = await api.database.fetchval("SELECT min(reported_at)::text FROM ledger.shard_states")
    await readiness(api)
    await writer.die()
    for _ in range(3):
        assert (await readiness(api))[:2] == (503, "not ready")
        async with shard_writer(api.settings.database_url):
            code, status, detail, _ = await readiness(api)
            assert (code, status) == (503, "not ready")
            assert detail == f"nobody has written shards 0, 1, 2, 3 since {written_at[:19].replace(' ', 'T')}Z"
    async with shard_writer(api.settings.database_url) as last:
        await last.report(0, "loading")
        await last.report(1, "writing")
        _, _, detail, _ = await readiness(api)
        assert re.search(rf"nobody has written shards 2, 3 since {written_at[:10]}", detail)


async def test_the_report_of_a_former_owner_does_not_count(api: Api, writer: Writer) -> None:
    async with shard_writer(api.settings.database_url) as former:
        await former.report(1, "stopped", "five in a row", waiting=7, for_seconds=60, seconds_ago=30)
    await writer.own(SHARDS)
    for shard in (0, 2, 3):
        await writer.report(shard, "writing")
    _, status, detail, shards = await readiness(api)
    assert (status, shards[1]["state"], shards[1]["waiting_records"]) == ("degraded", "unwritten", 0)
    assert re.fullmatch(rf"nobody has written shard 1 since {TIME}", detail)


@pytest.mark.parametrize(
    ("reported", "said", "state", "count"),
    [
        (
            {"state": "stopped", "detail": "five errors"},
            rf"shard 2 has been stopped since {TIME}: five errors",
            "stopped",
            1,
        ),
        ({"state": "loading", "detail": "at 7"}, rf"shard 2 has been loading since {TIME}: at 7", "loading", 0),
        ({"state": "loading", "detail": ""}, rf"shard 2 has been loading since {TIME}", "loading", 0),
        (
            {"state": "waiting", "detail": "its clock"},
            rf"shard 2 has been waiting since {TIME}: its clock",
            "waiting",
            0,
        ),
        (
            {"state": "dreaming", "detail": "of sheep"},
            rf"shard 2 has been dreaming since {TIME}: of sheep",
            "dreaming",
            0,
        ),
        ({"state": "writing", "seconds_ago": 6}, rf"nobody has written shard 2 since {TIME}", "unwritten", 1),
        (
            {"state": "writing", "waiting": 5000, "for_seconds": 11},
            rf"shard 2 is behind: 5,000 records wait, the oldest since {TIME}",
            "writing",
            0,
        ),
    ],
    ids=["stopped", "loading", "loading, without detail", "waiting", "a state of a newer version", "silent", "behind"],
)
async def test_a_shard_with_trouble_is_named_and_the_api_stays_ready(
    api: Api, writer: Writer, reported: dict[str, Any], said: str, state: str, count: int
) -> None:
    for shard in SHARDS:
        await writer.report(shard, "writing", waiting=3, for_seconds=9, seconds_ago=1)
    await writer.report(2, **reported)
    code, status, detail, shards = await readiness(api)
    assert (code, status) == (200, "degraded")
    assert re.fullmatch(said, detail)
    assert [each["state"] for each in shards] == ["writing", "writing", state, "writing"]
    assert await unwritten(api) == count


async def test_shards_with_the_same_trouble_are_named_together(api: Api, writer: Writer) -> None:
    await writer.report(0, "writing", waiting=1_000, for_seconds=60)
    await writer.report(3, "writing", waiting=2_000, for_seconds=30)
    await writer.release(1)
    await writer.release(2)
    _, _, detail, shards = await readiness(api)
    assert re.fullmatch(
        rf"shards 0, 3 are behind: 3,000 records wait, the oldest since {TIME}; "
        rf"nobody has written shards 1, 2 since {TIME}",
        detail,
    )
    assert detail.count(shards[0]["waiting_since"][:19]) == 1
    assert shards[1]["detail"] == "no process owns it"


@pytest.mark.parametrize("ending", ["dies", "stops"])
async def test_the_api_is_not_ready_while_no_shard_has_a_writer_and_recovers_by_itself(
    api: Api, writer: Writer, ending: str
) -> None:
    async with shard_writer(api.settings.database_url) as last:
        if ending == "dies":
            await last.die()
        else:
            for shard in SHARDS:
                await last.report(shard, "stopped", "an error")
        code, status, detail, shards = await readiness(api)
        assert (code, status) == (503, "not ready")
        word = "nobody has written shards 0, 1, 2, 3" if ending == "dies" else "shards 0, 1, 2, 3 have been stopped"
        assert detail.startswith(word)
        assert {each["since"] is not None for each in shards} == {True}
        assert await unwritten(api) == 4
    await writer.own([2])
    await writer.report(2, "writing")
    code, status, detail, _ = await readiness(api)
    assert (code, status) == (200, "degraded")
    assert await unwritten(api) == 3


async def test_the_readiness_answer_is_described_in_openapi(api: Api) -> None:
    answers = (await api.get("/openapi.json"))["paths"]["/readyz"]["get"]["responses"]
    assert {code: answers[code]["content"]["application/json"]["schema"] for code in ("200", "503")} == {
        code: {"$ref": "#/components/schemas/Readiness"} for code in ("200", "503")
    }
