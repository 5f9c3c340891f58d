"""The API as a process runs it: on a socket, with a shutdown, and with a database that becomes unavailable."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from aiokafka import AIOKafkaConsumer

from drawdown.api_client import RequestRefusedError
from drawdown.command_line import quarantine
from drawdown.deployment.migrate import migrate
from services.api.service import listening, run
from shared.runtime.kafka import FINANCE_COMMANDS
from shared.runtime.settings import Settings
from shared.runtime.topics import ensure_topics
from tests import servers
from tests.integration.api import Api, command, running_api
from tests.servers import LIMITS, Broker, Postgres, free_ports, settings_with


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """Run the service, and cancel it at the end as its process's signal handler does."""
    service = asyncio.create_task(run(settings))
    async with _client(settings) as client:
        try:
            await eventually(lambda: _answers(client))
            yield client
        finally:
            service.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await service


def test_no_answer_waits_for_the_acknowledgement_of_earlier_bytes() -> None:
    """Nagle's algorithm would hold a body back until then, and clients acknowledge heads 40 ms late."""
    port = free_ports(1)
    with listening("127.0.0.1", port) as listener, socket.create_connection(("127.0.0.1", port)):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    """Return once the condition holds. The test's time limit ends the wait if it never does."""
    while not await check():  # noqa: ASYNC110 - another process's state, seen through HTTP
        await asyncio.sleep(0.02)


def _client(settings: Settings) -> httpx.AsyncClient:
    url = f"http://127.0.0.1:{settings.http_port}"
    return httpx.AsyncClient(base_url=url, trust_env=False, limits=LIMITS, timeout=30)


@contextlib.asynccontextmanager
async def _published(settings: Settings) -> AsyncIterator[AIOKafkaConsumer]:
    await ensure_topics(settings)
    consumer = AIOKafkaConsumer(FINANCE_COMMANDS, bootstrap_servers=settings.kafka_bootstrap_servers)
    await consumer.start()
    try:
        await consumer.seek_to_beginning()
        yield consumer
    finally:
        await consumer.stop()


async def _answers(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/healthz")).is_success
    except httpx.TransportError:
        return False


async def _misses_the_database(client: httpx.AsyncClient) -> bool:
    response = await client.get("/readyz")
    return response.status_code == 503 and "the database has not answered for" in response.json()["detail"]


async def _misses_no_server(client: httpx.AsyncClient) -> bool:
    """Return whether the API misses nothing except writers of the ledger, which these tests do not have."""
    return bool((await client.get("/readyz")).json()["detail"] == "nobody writes shards 0, 1, 2, 3")


async def test_a_request_in_progress_is_answered_when_the_service_ends(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.api.commands.publishing.DECISION_TIMEOUT_SECONDS", 1)
    sent = command("deposit_cash", "b", amount="1")
    service = asyncio.create_task(run(settings))
    async with _client(settings) as client, _published(settings) as published:
        await eventually(lambda: _answers(client))
        asked = asyncio.create_task(client.post("/v1/commands", json=sent))
        await published.getone()
        service.cancel()
        assert (await asked).status_code == 504
        with pytest.raises(asyncio.CancelledError):
            await service
        with pytest.raises(httpx.ConnectError):
            await client.get("/healthz")


async def test_a_port_in_use_stops_the_service(settings: Settings) -> None:
    async with serving(settings):
        with pytest.raises(ExceptionGroup) as failure:
            await run(settings)
    assert failure.group_contains(OSError)


async def test_bytes_that_are_not_http_are_answered_with_an_error(settings: Settings) -> None:
    async with serving(settings):
        reader, writer = await asyncio.open_connection("127.0.0.1", settings.http_port)
        writer.write(b"GET /v1/ledger?after=\xff\x00 HTTP/1.1\r\nHost: x\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["code"] == "invalid"


@pytest.mark.parametrize("path", ["/docs", "/docs/swagger-ui-bundle.js", "/openapi.json", "/asyncapi.json"])
async def test_an_unchanged_static_document_is_not_sent_again(settings: Settings, path: str) -> None:
    async with serving(settings) as client:
        first = await client.get(path)
        assert (first.status_code, first.headers["cache-control"]) == (200, "no-cache")
        tag = first.headers["etag"]
        for known in (tag, f"W/{tag}", f'"other", {tag}'):
            again = await client.get(path, headers={"If-None-Match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert (await client.get(path, headers={"If-None-Match": '"other"'})).content == first.content


async def test_requests_are_counted_by_route_and_status(settings: Settings) -> None:
    async with serving(settings) as client:
        await client.get("/v1/ad-accounts/nobody")
        metrics = (await client.get("/metrics")).text
    route = 'method="GET",route="/v1/ad-accounts/{ad_account_id}"'
    assert f'drawdown_http_requests_total{{{route},status="404"}}' in metrics
    assert f"drawdown_http_request_seconds_count{{{route}}}" in metrics


async def test_a_request_without_a_route_is_counted_as_refused_or_unmatched(settings: Settings) -> None:
    async with serving(settings) as client:
        await client.get("/nothing")
        await client.get("/v1/deals", headers={"Host": "evil.example"})
        metrics = (await client.get("/metrics")).text
    assert 'drawdown_http_requests_total{method="GET",route="unmatched",status="404"}' in metrics
    assert 'drawdown_http_requests_total{method="GET",route="refused",status="421"}' in metrics


async def test_reads_are_503_while_the_database_is_unavailable_and_then_recover(
    reachable_path: Path, kafka: Broker
) -> None:
    database = servers.chosen.postgres(reachable_path)
    await database.start()
    await migrate(Settings(database_url=database.url))
    settings = settings_with(database.url, kafka, reachable_path)
    try:
        async with serving(settings) as client:
            await eventually(lambda: _misses_no_server(client))
            await database.stop()
            for path in ("/v1/business-centers", "/v1/ledger", "/v1/deals/d/pacing", "/v1/quarantine"):
                response = await client.get(path)
                assert (response.status_code, response.json()["code"]) == (503, "unavailable")
                assert int(response.headers["retry-after"]) > 0
            sent = await client.post("/v1/commands", json=command("deposit_cash", "b", amount="1"))
            assert (sent.status_code, sent.json()["code"]) == (503, "unavailable")
            await eventually(lambda: _misses_the_database(client))
            assert (await client.get("/healthz")).status_code == 200
            await database.start()
            assert (await client.get("/v1/business-centers")).status_code == 200
            await eventually(lambda: _misses_no_server(client))
    finally:
        await database.stop()


# --- The command line ---


async def _quarantine(api: Api, sequence: int) -> None:
    await api.insert(
        "ledger.quarantine",
        shard=1,
        sequence=sequence,
        reason="malformed",
        detail="why",
        topic="spend.events",
        partition=1,
        offset=sequence,
        raw=b"x",
        recorded_at="2026-03-12T10:00:00Z",
    )


async def test_the_command_line_lists_and_replays(
    postgres: Postgres, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running_api(postgres.url, tmp_path) as api, serving(api.settings):
        for sequence in range(1, 6):
            await _quarantine(api, sequence)
        capsys.readouterr()
        await quarantine.list_records(api.settings, "malformed")
        listed = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
        assert [record["id"] for record in listed] == [f"1-{sequence}" for sequence in range(1, 6)]
        with pytest.raises(RequestRefusedError, match="malformed fails again"):
            await quarantine.replay_records(api.settings, ["1-2"], None)
        await quarantine.replay_records(api.settings, ["1-2"], None, force=True)
        assert capsys.readouterr().out.splitlines()[-1] == "1 sent back"
        await quarantine.replay_records(api.settings, ["1-2", "1-3"], None, force=True)
        assert "1 sent back\n1 left out" in capsys.readouterr().out
        await quarantine.replay_records(api.settings, [], "malformed", force=True)
        assert "3 sent back" in capsys.readouterr().out
        with pytest.raises(RequestRefusedError, match="no such"):
            await quarantine.replay_records(api.settings, ["1-99"], None)
        with pytest.raises(RequestRefusedError, match="reason"):
            await quarantine.list_records(api.settings, "no reason")


async def test_the_command_line_lists_the_reasons_if_no_record_has_the_given_one(
    postgres: Postgres, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running_api(postgres.url, tmp_path) as api, serving(api.settings):
        await api.database.execute(
            "INSERT INTO ledger.quarantine SELECT 1, 1, 'cosmic_rays', 'why', 'spend.events', 1, 1, NULL, NULL, NULL,"
            " NULL, now()"
        )
        capsys.readouterr()
        await quarantine.list_records(api.settings, "cosmic_rays")
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["reason"] == "cosmic_rays"
        await quarantine.list_records(api.settings, "malfromed")
        assert "with the reason malfromed: this version knows too_large, malformed," in capsys.readouterr().err
        await quarantine.list_records(api.settings, "too_old")
        assert capsys.readouterr().err.endswith("nothing is in quarantine with the reason too_old\n")
