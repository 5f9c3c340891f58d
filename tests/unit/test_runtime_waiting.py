"""Waiting for servers, telling the time, health, and logs."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Literal

import httpx
import pytest
import structlog

from shared.runtime.clock import Clock
from shared.runtime.health import answer, serve_health
from shared.runtime.logging import configure_logging
from shared.runtime.retries import with_retries
from shared.runtime.settings import Settings
from tests.servers import free_ports


async def test_a_server_that_comes_back_is_waited_for() -> None:
    attempts = iter([1, 2, 3])

    async def ask() -> str:
        if next(attempts) < 3:
            raise ConnectionRefusedError("not yet")
        return "here"

    with structlog.testing.capture_logs() as logs:
        assert await with_retries(ask, what="the database", errors=(OSError,)) == "here"
    assert [entry["event"] for entry in logs] == ["waiting", "waiting", "available again"]
    assert all(entry["what"] == "the database" for entry in logs)


async def test_patience_ends_with_the_last_error() -> None:
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


def test_the_clock_is_moved_by_its_offset_and_says_so_loudly() -> None:
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


async def test_health_readiness_and_metrics_are_served() -> None:
    port, state = free_ports(1), (False, "loading")
    server = await serve_health(port, lambda: answer(lambda: state))
    assert server is not None
    async with server, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        assert (await client.get("/healthz")).status_code == 200
        not_ready = await client.get("/readyz")
        assert (not_ready.status_code, not_ready.json()["detail"]) == (503, "loading")
        state = (True, "at position 7")
        assert (await client.get("/readyz?verbose")).status_code == 200
        metrics = await client.get("/metrics")
        assert metrics.headers["content-type"].startswith("text/plain")
        assert "python_info" in metrics.text
        assert (await client.get("/elsewhere")).status_code == 404
        assert (await client.post("/healthz")).status_code == 405


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_what_is_said_on_this_machine_alone_is_said_to_no_page_of_another_name(path: str) -> None:
    port = free_ports(1)
    server = await serve_health(port, lambda: {"status": "ready"})
    assert server is not None
    async with server, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        for host, status in (
            *((name, 200) for name in ("localhost", "LOCALHOST:9", "127.0.0.1", f"127.0.0.1:{port}", "[::1]:80")),
            *((name, 421) for name in ("evil.example", f"rebind.example:{port}", "localhost.evil.example", "", "x@:1")),
        ):
            assert (await client.get(path, headers={"Host": host})).status_code == status, host


async def test_health_survives_who_speaks_no_http() -> None:
    port = free_ports(1)
    server = await serve_health(port, lambda: {"status": "ready"})
    assert server is not None
    async with server:
        for nonsense in (b"\r\n\r\n", b"x" * 20_000, b""):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(nonsense)
            writer.close()
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"http://127.0.0.1:{port}/healthz")).status_code == 200


async def test_health_is_not_served_without_a_port() -> None:
    assert await serve_health(None, dict) is None
    assert await serve_health(0, dict) is None


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


def test_what_a_library_says_over_and_over_is_logged_once_in_a_while(logged: io.StringIO) -> None:
    for number in range(100):
        logging.getLogger("aiokafka").error("no connection %d", number)
    assert len(logged.getvalue().splitlines()) == 1
