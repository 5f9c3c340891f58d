"""Waiting for servers, telling the time, health, and logs."""

import asyncio
import contextlib
import io
import json
import logging
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Literal

import httpx
import pytest
import structlog

from shared.runtime import health
from shared.runtime.clock import Clock
from shared.runtime.health import answer, answering_health
from shared.runtime.logging import configure_logging
from shared.runtime.retries import with_retries
from shared.runtime.settings import Settings
from tests.servers import free_ports


async def test_a_server_that_returns_is_waited_for() -> None:
    attempts = iter([1, 2, 3])

    async def ask() -> str:
        if next(attempts) < 3:
            raise ConnectionRefusedError("not yet")
        return "here"

    with structlog.testing.capture_logs() as logs:
        assert await with_retries(ask, what="the database", errors=(OSError,)) == "here"
    assert [entry["event"] for entry in logs] == ["waiting", "waiting", "available again"]
    assert all(entry["what"] == "the database" for entry in logs)


async def test_the_last_error_is_raised_when_the_patience_ends() -> None:
    async def ask() -> None:
        raise ConnectionRefusedError("still away")

    with structlog.testing.capture_logs() as logs, pytest.raises(ConnectionRefusedError, match="still away"):
        await with_retries(ask, what="the database", errors=(OSError,), patience_seconds=0.3)
    assert logs[-1]["event"] == "gave up waiting"


async def test_another_error_is_raised_at_once() -> None:
    asked = 0

    async def ask() -> None:
        nonlocal asked
        asked += 1
        raise ValueError("a wrong password does not get better")

    with pytest.raises(ValueError, match="wrong password"):
        await with_retries(ask, what="the database", errors=(OSError,))
    assert asked == 1


def test_the_clock_is_moved_by_its_offset_and_logs_a_warning() -> None:
    clock = Clock(Settings(clock_offset_seconds=-3600.5))
    expected = datetime.now(UTC) - timedelta(seconds=3600.5)
    assert abs(clock.now() - expected) < timedelta(seconds=1)
    assert abs(clock.now_us() - expected.timestamp() * 1_000_000) < 1_000_000
    with structlog.testing.capture_logs() as logs:
        clock.announce()
        Clock(Settings()).announce()
    assert len(logs) == 1
    assert logs[0]["log_level"] == "warning"
    assert logs[0]["offset_seconds"] == -3600.5


@pytest.fixture
def at_a_port() -> Settings:
    return Settings(health_port=free_ports(1))


def asking(settings: Settings) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.health_port}", trust_env=False)


async def connected(settings: Settings) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", settings.health_port)


async def test_health_readiness_and_metrics_are_served(at_a_port: Settings) -> None:
    state = (False, "loading")
    async with answering_health(at_a_port, lambda: answer(lambda: state)), asking(at_a_port) as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        not_ready = await client.get("/readyz")
        assert (not_ready.status_code, not_ready.json()) == (503, {"status": "not ready", "detail": "loading"})
        state = (True, "at position 7")
        assert (await client.get("/readyz?verbose")).status_code == 200
        metrics = await client.get("/metrics")
        assert metrics.headers["content-type"].startswith("text/plain")
        assert "python_info" in metrics.text
        elsewhere, posted = await client.get("/elsewhere"), await client.post("/healthz")
        assert (elsewhere.status_code, elsewhere.json()) == (404, {"status": "not found"})
        assert (posted.status_code, posted.json()) == (405, {"status": "method not allowed"})
        for encoded in ("/%6detrics", "/metric%73", "/%2e/metrics", "/metrics%20"):
            assert (await client.get(encoded)).status_code == 404, encoded
        for each in (not_ready, metrics, elsewhere, posted):
            assert each.headers["x-content-type-options"] == "nosniff"
            assert each.headers["cache-control"] == "no-store"
            assert each.headers["connection"] == "close"
        assert (await client.head("/metrics")).content == b""


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/elsewhere"])
async def test_a_health_port_for_this_machine_only_answers_no_other_host_name(path: str, at_a_port: Settings) -> None:
    port, here = at_a_port.health_port, 404 if path == "/elsewhere" else 200
    async with answering_health(at_a_port, lambda: {"status": "ready"}), asking(at_a_port) as client:
        for host, status in (
            *((name, here) for name in ("localhost", "LOCALHOST:9", "127.0.0.1", f"127.0.0.1:{port}", "[::1]:80")),
            *((name, 421) for name in ("evil.example", f"rebind.example:{port}", "localhost.evil.example", "", "x@:1")),
        ):
            assert (await client.get(path, headers={"Host": host})).status_code == status, host


async def test_a_health_port_for_other_machines_answers_to_any_host_name(at_a_port: Settings) -> None:
    everywhere = at_a_port.model_copy(update={"health_host": "0.0.0.0"})
    async with answering_health(everywhere, lambda: {"status": "ready"}), asking(at_a_port) as client:
        assert (await client.get("/readyz", headers={"Host": "allocation:8081"})).status_code == 200


async def test_the_health_port_survives_a_client_that_does_not_speak_http(at_a_port: Settings) -> None:
    async with answering_health(at_a_port, lambda: {"status": "ready"}), asking(at_a_port) as client:
        for nonsense in (b"\r\n\r\n", b"x" * 20_000, b""):
            _, writer = await connected(at_a_port)
            writer.write(nonsense)
            writer.close()
        assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHo"])
async def test_a_client_that_sends_no_complete_request_to_the_health_port_is_disconnected(
    sent: bytes, at_a_port: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "CONNECTION_SECONDS", 0.1)
    async with answering_health(at_a_port, lambda: {"status": "ready"}), asyncio.timeout(10):
        reader, writer = await connected(at_a_port)
        writer.write(sent)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()


async def answer_to(settings: Settings, sent: bytes, client: str = "127.0.0.1") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", settings.health_port, local_addr=(client, 0))
    writer.write(sent)
    answered = await reader.read()
    writer.close()
    return answered


async def is_open(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Return whether the connection still answers a request."""
    with contextlib.suppress(ConnectionError):
        writer.write(PROBE)
        return (await reader.read()).startswith(b"HTTP/1.1 200 ")
    return False


PROBE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def test_clients_that_hold_connections_do_not_block_the_health_check(at_a_port: Settings) -> None:
    async with answering_health(at_a_port, lambda: {"status": "ready"}), asyncio.timeout(20):
        held = [await connected(at_a_port) for _ in range(4 * health.CONNECTIONS_AT_MOST)]
        for _ in range(3):
            assert (await answer_to(at_a_port, PROBE)).startswith(b"HTTP/1.1 200 ")
        for _, writer in held:
            writer.close()


async def test_the_oldest_connection_of_the_address_with_the_most_connections_is_closed(
    at_a_port: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "CONNECTIONS_AT_MOST", 3)
    everywhere = at_a_port.model_copy(update={"health_host": "0.0.0.0"})
    async with answering_health(everywhere, lambda: {"status": "ready"}), asyncio.timeout(10):
        clients = ["127.0.0.1", "127.0.0.2", "127.0.0.2", "127.0.0.2"]
        [first, oldest, *others] = [
            await asyncio.open_connection("127.0.0.1", at_a_port.health_port, local_addr=(client, 0))
            for client in clients
        ]
        assert not await is_open(*oldest)
        for connection in (first, *others):
            assert await is_open(*connection)
        for _, writer in (first, oldest, *others):
            writer.close()


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (PROBE.replace(b"Host", b"X: " + b"x" * health.HEAD_LIMIT_BYTES + b"\r\nHost"), b"8192 bytes"),
        (PROBE.replace(b"\r\n", b"\n"), b"CR LF"),
        (PROBE.replace(b"Host", b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\nHost"), b"not both"),
    ],
)
async def test_the_health_port_refuses_a_head_that_is_too_long_or_ambiguous(
    sent: bytes, said: bytes, at_a_port: Settings
) -> None:
    async with answering_health(at_a_port, lambda: {"status": "ready"}), asyncio.timeout(10):
        answered = await answer_to(at_a_port, sent)
        assert answered.startswith(b"HTTP/1.1 400 ")
        assert said in answered


async def test_a_path_with_an_extra_slash_is_not_found_and_redirects_to_no_other_host(at_a_port: Settings) -> None:
    everywhere = at_a_port.model_copy(update={"health_host": "0.0.0.0"})
    async with answering_health(everywhere, lambda: {"status": "ready"}), asking(at_a_port) as client:
        for path in ("/readyz/", "/metrics/", "/healthz/"):
            assert (await client.get(path, headers={"Host": "evil.example"})).status_code == 404


async def test_health_ends_with_its_block_and_frees_its_port_and_keeps_signal_handlers(at_a_port: Settings) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    for _ in range(2):
        async with answering_health(at_a_port, lambda: {"status": "ready"}), asking(at_a_port) as client:
            reader, writer = await connected(at_a_port)  # Without a request it is not waited for.
            assert (await client.get("/healthz")).status_code == 200
            assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
            begun = time.monotonic()
        assert time.monotonic() - begun < health.GRACE_SECONDS
        assert await reader.read() == b""
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await connected(at_a_port)


async def test_a_health_port_in_use_is_an_error(at_a_port: Settings) -> None:
    async with answering_health(at_a_port, dict):
        with pytest.raises(OSError, match="in use"):
            async with answering_health(at_a_port, dict):
                pass


@pytest.mark.parametrize("port", [None, 0])
async def test_health_is_not_served_without_a_port(port: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "Server", None)  # It would be called here.
    async with answering_health(Settings(health_port=port), dict):
        pass


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    configure_logging(Settings(), "balance", stream)
    yield stream
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    root.handlers[:] = before
    root.setLevel(level)


def test_logs_are_json_lines_that_name_the_service(logged: io.StringIO) -> None:
    structlog.get_logger().info("shard taken", shard=3)
    logging.getLogger("a.library").warning("says %s", "something")
    ours, theirs = (json.loads(line) for line in logged.getvalue().splitlines())
    assert (ours["event"], ours["shard"], ours["service"], ours["level"]) == ("shard taken", 3, "balance", "info")
    assert (theirs["event"], theirs["service"], theirs["level"]) == ("says something", "balance", "warning")
    assert ours["timestamp"].endswith("Z")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_stack_trace_shows_no_local_variables(log_format: Literal["json", "console"], logged: io.StringIO) -> None:
    configure_logging(Settings(log_format=log_format), "balance", logged)
    password = "".join(("se", "cret"))

    def fail(_password: str) -> None:
        raise ValueError("it failed")

    try:
        fail(password)
    except ValueError:
        structlog.get_logger().exception("the service failed")
    assert "it failed" in logged.getvalue()
    assert password not in logged.getvalue()


def test_settings_do_not_show_the_databases_password() -> None:
    assert "secret" not in repr(Settings(database_url="postgresql://ledger:secret@db/ledger"))


def test_repeated_messages_of_a_library_are_logged_only_occasionally(logged: io.StringIO) -> None:
    for number in range(100):
        logging.getLogger("aiokafka").error("no connection %d", number)
    assert len(logged.getvalue().splitlines()) == 1
