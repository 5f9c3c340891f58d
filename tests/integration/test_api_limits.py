"""What bounds a client of the API: the rate, sizes, and the time for everything. All of it is said as an error."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from services.api import bodies, context, protocol
from services.api.limits import CLIENTS_AT_MOST, RateLimit
from services.api.service import STATEMENT_TIMEOUT_SECONDS, connected
from shared.runtime.settings import Settings
from tests.integration.api import command
from tests.integration.test_api_service import eventually, serving
from tests.integration.tokens import issuer

# --- The rate ---


class _Seconds:
    """A clock that a test moves."""

    now = 1000.0

    def __call__(self) -> int:
        return round(self.now * 1e9)


def _taken(limit: RateLimit, client: str, times: int) -> int:
    return sum(limit.take(client) == 0 for _ in range(times))


def test_two_seconds_worth_at_once_and_then_so_many_a_second() -> None:
    seconds = _Seconds()
    limit = RateLimit(10, seconds)
    assert _taken(limit, "a", 100) == 20
    assert limit.take("a") == pytest.approx(0.1)
    seconds.now += 0.35
    assert _taken(limit, "a", 100) == 3
    seconds.now += 1000
    assert _taken(limit, "a", 100) == 20


def test_clients_do_not_take_from_each_other() -> None:
    limit = RateLimit(10, _Seconds())
    assert _taken(limit, "a", 100) == 20
    assert _taken(limit, "b", 100) == 20


def test_ever_new_clients_fill_no_memory_and_drive_out_none_that_asks() -> None:
    limit = RateLimit(10, _Seconds())
    for number in range(3 * CLIENTS_AT_MOST):
        limit.take(f"client {number}")
        if number % 1000 == 0:
            _taken(limit, "a", 100)
    assert len(limit._earned_back_at_ns) == CLIENTS_AT_MOST
    assert limit.take("a") > 0


async def _answers(client: httpx.AsyncClient, count: int, **options: Any) -> list[httpx.Response]:
    return await asyncio.gather(*(client.get("/v1/deals", **options) for _ in range(count)))


async def test_without_tokens_an_address_that_asks_too_often_is_429(settings: Settings) -> None:
    async with serving(settings.model_copy(update={"http_rate": 1})) as client:
        answers = await _answers(client, 40, headers={"X-Forwarded-For": f"10.0.0.{os.getpid() % 250}"})
        refused = [answer for answer in answers if answer.status_code == 429]
        assert 20 < len(refused) <= 39
        assert refused[0].json()["code"] == "too_many_requests"
        assert refused[0].headers["retry-after"] == "1"
        for path in ("/openapi.json", "/docs", "/metrics", "/asyncapi.json"):
            assert 429 in [(await client.get(path)).status_code for _ in range(5)]
        for path in ("/healthz", "/readyz"):
            assert 429 not in {(await client.get(path)).status_code for _ in range(10)}


async def test_usual_clients_never_see_429(settings: Settings) -> None:
    async with serving(settings) as client:
        assert 429 not in {answer.status_code for answer in await _answers(client, 100)}


async def test_with_tokens_it_is_the_subject_that_asks_too_often(settings: Settings, tmp_path: Path) -> None:
    issues = issuer(tmp_path / "keys")
    changes = {"http_rate": 1, "api_authentication": "tokens", "api_keys_file": issues.keys_file}
    async with serving(settings.model_copy(update=changes)) as client:

        async def statuses(token: str, count: int) -> set[int]:
            headers = {"Authorization": f"Bearer {token}"}
            return {answer.status_code for answer in await _answers(client, count, headers=headers)}

        assert await statuses(issues.token(sub="ann"), 40) == {200, 429}
        assert await statuses("guess", 40) == {401, 429}
        assert await statuses(issues.token(sub="bob"), 1) == {200}


# --- Sizes and time, on the wire ---


async def _exchange(settings: Settings, sent: bytes) -> bytes:
    """What comes back until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", settings.http_port)
    try:
        writer.write(sent)
        async with asyncio.timeout(20):
            return await reader.read()
    finally:
        writer.close()


def _error(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert set(json.loads(body)) == {"code", "message"}
    return int(head.split()[1]), json.loads(body)["code"]


@pytest.fixture
async def served(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Settings]:
    """The service with little patience; each test sets what it is about."""
    monkeypatch.setattr(protocol, "RECEIVE_SECONDS", 1.0)
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_SECONDS", 0.5)
    async with serving(settings):
        yield settings


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v1/deals HTTP/1.1\r\nHost: x\r\nX: " + b"a" * protocol.HEAD_LIMIT_BYTES,
        b"GET /v1/deals?after=" + b"a" * protocol.HEAD_LIMIT_BYTES,
    ],
)
async def test_a_head_that_is_too_large_is_400(served: Settings, head: bytes) -> None:
    assert _error(await _exchange(served, head)) == (400, "invalid")


async def test_a_request_that_does_not_come_to_its_end_is_408(served: Settings) -> None:
    assert _error(await _exchange(served, b"GET /v1/deals HTTP/1.1\r\nHost: localhost\r\n")) == (408, "timeout")
    body = b"POST /v1/commands HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    assert _error(await _exchange(served, body)) == (408, "timeout")


async def test_a_byte_now_and_then_wins_no_time(served: Settings) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.http_port)

    async def trickle() -> None:
        writer.write(b"GET /v1/deals HTTP/1.1\r\nHost: x\r\nX: ")
        while True:
            writer.write(b"a")
            await asyncio.sleep(0.05)

    trickling = asyncio.create_task(trickle())
    try:
        async with asyncio.timeout(5):
            assert _error(await reader.read()) == (408, "timeout")
    finally:
        trickling.cancel()
        writer.close()


async def test_a_connection_that_asks_nothing_ends_without_an_answer(served: Settings) -> None:
    assert await _exchange(served, b"") == b""


async def test_requests_one_after_the_other_have_their_time_each(served: Settings) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.http_port)
    begun = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() < begun + 3 * protocol.RECEIVE_SECONDS:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
        for _ in range(2):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            await reader.readexactly(len(b'{"status":"ok"}'))
        await asyncio.sleep(protocol.RECEIVE_SECONDS / 3)
    writer.close()


async def test_who_does_not_take_the_answer_is_left(served: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "ANSWER_SECONDS", 1.0)
    _, writer = await asyncio.open_connection("127.0.0.1", served.http_port)
    writer.transport.pause_reading()  # type: ignore[attr-defined]

    async def ask_until_left() -> None:
        while True:
            writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
            await writer.drain()

    with pytest.raises(ConnectionError):
        await ask_until_left()
    writer.close()


async def test_connections_beyond_the_limit_are_503(served: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "RECEIVE_SECONDS", 30.0)
    monkeypatch.setattr(protocol, "CONNECTIONS_AT_MOST", 20)
    held = [await asyncio.open_connection("127.0.0.1", served.http_port) for _ in range(20)]
    answer = await _exchange(served, b"")
    assert _error(answer) == (503, "unavailable")
    assert b"retry-after:" in answer.lower()
    for _, writer in held:
        writer.close()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.http_port}", trust_env=False) as client:

        async def answers() -> bool:
            return (await client.get("/healthz")).status_code == 200

        await eventually(answers)


# --- The database ---


async def test_a_statement_that_takes_too_long_is_503(
    settings: Settings, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "READ_TIMEOUT_SECONDS", 0.5)
    locks = await asyncpg.connect(database_url)
    try:
        async with serving(settings) as client, locks.transaction():
            await locks.execute("LOCK TABLE incentives.deals IN ACCESS EXCLUSIVE MODE")
            answer = await client.get("/v1/deals")
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    finally:
        await locks.close()


async def test_the_server_gives_up_statements_of_the_api(settings: Settings) -> None:
    async with connected(settings) as of_the_api:
        timeout = await of_the_api.pool.fetchval("SHOW statement_timeout")
        assert timeout == f"{STATEMENT_TIMEOUT_SECONDS}s"
        async with of_the_api.pool.acquire() as connection:
            await connection.execute("SET statement_timeout = 50")
            with pytest.raises(asyncpg.QueryCanceledError):
                await connection.execute("SELECT pg_sleep(5)")


# --- Framing ---

NEXT = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
SMUGGLED = b"0\r\n\r\n" + NEXT


@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: %d\r\nTransfer-Encoding: chunked" % len(SMUGGLED),
        b"Transfer-Encoding: chunked\r\nContent-Length: %d" % len(SMUGGLED),
        b"Content-Length: 0\r\nContent-Length: 0",
        b"Content-Length: 0\r\nX: folded\r\n line",
        b"Content-Length: 0\nX: bare",
        b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\nContent-Length: 0",
    ],
)
async def test_what_follows_a_head_that_reads_in_two_ways_is_not_answered(served: Settings, headers: bytes) -> None:
    head = b"POST /v1/commands HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n\r\n"
    answer = await _exchange(served, head + SMUGGLED + NEXT)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert _error(answer) == (400, "invalid")
    assert b"connection: close" in answer.lower()


async def test_the_second_request_of_a_connection_is_looked_at_too(served: Settings) -> None:
    good = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = await _exchange(served, good + good.replace(b"HTTP/1.1", b"HTTP/1.2") + NEXT)
    first, _, second = answer.partition(b'{"status":"ok"}')
    assert first.startswith(b"HTTP/1.1 200 ")
    assert _error(second) == (400, "invalid")


async def test_requests_that_follow_each_other_are_all_answered(served: Settings) -> None:
    good = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert (await _exchange(served, good * 3 + NEXT)).count(b"HTTP/1.1 200 ") == 4


# --- A browser on this machine ---


async def test_without_tokens_pages_of_other_sites_are_refused(settings: Settings) -> None:
    sent = command("deposit_cash", "b", amount="1")
    async with serving(settings) as client:
        for site in ("cross-site", "same-site"):
            headers = {"Sec-Fetch-Site": site, "Content-Type": "text/plain"}
            refused = await client.post("/v1/commands", json=sent, headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (403, "permission_denied")
        for site in ("none", "same-origin"):
            assert (await client.get("/v1/deals", headers={"Sec-Fetch-Site": site})).status_code == 200


async def test_without_tokens_a_name_that_only_leads_to_this_machine_is_misdirected(settings: Settings) -> None:
    rebound = {"Host": f"rebind.evil.example:{settings.http_port}"}
    async with serving(settings) as client:
        for path in ("/v1/deals", "/docs", "/metrics"):
            refused = await client.get(path, headers=rebound)
            assert (refused.status_code, refused.json()["code"]) == (421, "misdirected")
            assert "localhost, 127.0.0.1 or [::1]" in refused.json()["message"]
        for path in ("/healthz", "/readyz"):  # Probes tell the truth to anybody.
            assert (await client.get(path, headers=rebound)).status_code in (200, 503)


async def test_with_tokens_the_names_and_types_of_a_request_are_its_own_business(
    settings: Settings, tmp_path: Path
) -> None:
    issues = issuer(tmp_path / "keys")
    changes = {"api_authentication": "tokens", "api_keys_file": issues.keys_file}
    async with serving(settings.model_copy(update=changes)) as client:
        headers = {"Host": "ads.example", "Origin": "https://ads.example", "Content-Type": "text/plain"}
        bearer = {"Authorization": f"Bearer {issues.token(sub='ann')}"}
        assert (await client.get("/v1/deals", headers={**headers, **bearer})).status_code == 200
        assert (await client.post("/v1/commands", content=b"{", headers={**headers, **bearer})).status_code == 400


# --- The start ---


@pytest.mark.parametrize(
    "settings_",
    [
        {"HTTP_HOST": "0.0.0.0"},
        {"DATABASE_URL": "postgresql://127.0.0.1:1/drawdown"},
        {"API_AUTHENTICATION": "tokens"},
    ],
)
def test_an_api_without_keys_does_not_start_unless_told_so(settings_: dict[str, str]) -> None:
    environment = {**os.environ, **{f"DRAWDOWN_{name}": value for name, value in settings_.items()}}
    ended = subprocess.run(
        [sys.executable, "-m", "drawdown", "api"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("drawdown: the API wants tokens: set either DRAWDOWN_API_KEYS_FILE or DRAWDOWN_API_JWKS_URL")


def test_each_start_says_what_is_off(tmp_path: Path) -> None:
    environment = {**os.environ, "DRAWDOWN_API_AUTHENTICATION": "off", "DRAWDOWN_DATA_DIR": str(tmp_path)}
    environment |= {"DRAWDOWN_POLICY_FILE": str(_no_policy(tmp_path)), "DRAWDOWN_LOG_FORMAT": "json"}
    ended = subprocess.run(
        [sys.executable, "-m", "drawdown", "allocation"], env=environment, capture_output=True, text=True, timeout=60
    )
    lines = [json.loads(line) for line in (ended.stdout + ended.stderr).splitlines() if line.startswith("{")]
    said = " ".join(str(line.get("what")) for line in lines if line["event"] == "SECURITY IS OFF")
    for variable in ("DRAWDOWN_API_AUTHENTICATION", "DRAWDOWN_KAFKA_SECURITY", "DRAWDOWN_DATABASE_TLS"):
        assert variable in said


def _no_policy(directory: Path) -> Path:
    """A policy file that ends the start, after what is off was said."""
    path = directory / "policy.json"
    path.write_text("{}")
    return path
