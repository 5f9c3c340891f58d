"""The limits of a client of the API: its rate, sizes, and the time that everything may take. Each is reported as an
error.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from services.api import context, service
from services.api.door import access, bodies, connections, limits, protocol
from services.api.door.limits import CLIENTS_AT_MOST, HOLD_SECONDS_AT_MOST, Holds, RateLimit
from services.api.service import STATEMENT_TIMEOUT_SECONDS, connected
from shared.runtime.settings import Settings
from tests.integration.api import command
from tests.integration.test_api_service import eventually, serving
from tests.integration.tokens import issuer
from tests.servers import free_ports

# --- The rate ---


class _Seconds:
    """A clock that a test sets."""

    now = 1000.0

    def __call__(self) -> int:
        return round(self.now * 1e9)


def _taken(limit: RateLimit, client: str, times: int) -> int:
    return sum(limit.take(client) == 0 for _ in range(times))


def test_a_client_may_send_two_seconds_worth_of_requests_at_once_and_then_its_rate() -> None:
    seconds = _Seconds()
    limit = RateLimit(10, seconds)
    assert _taken(limit, "a", 100) == 20
    assert limit.take("a") == pytest.approx(0.1)
    seconds.now += 0.35
    assert _taken(limit, "a", 100) == 3
    seconds.now += 1000
    assert _taken(limit, "a", 100) == 20


def test_a_request_that_counts_as_many_delays_the_next_one() -> None:
    seconds = _Seconds()
    limit = RateLimit(10, seconds)
    assert limit.take("a") == 0
    limit.add("a", 64)
    assert limit.take("a") == pytest.approx(4.6)
    assert _taken(limit, "b", 100) == 20
    seconds.now += 4.65
    assert _taken(limit, "a", 100) == 1


def test_each_client_has_its_own_limit() -> None:
    limit = RateLimit(10, _Seconds())
    assert _taken(limit, "a", 100) == 20
    assert _taken(limit, "b", 100) == 20


def test_any_number_of_new_clients_takes_bounded_memory_and_forgets_no_active_one() -> None:
    limit = RateLimit(10, _Seconds())
    for number in range(3 * CLIENTS_AT_MOST):
        limit.take(f"client {number}")
        if number % 1000 == 0:
            _taken(limit, "a", 100)
    assert len(limit._earned_back_at_ns) == CLIENTS_AT_MOST
    assert limit.take("a") > 0


def test_refusals_of_a_client_are_sent_one_by_one_and_delay_no_other_client() -> None:
    seconds = _Seconds()
    holds = Holds(lambda: seconds.now)
    held = [holds.seconds("a") for _ in range(5)]
    assert held == pytest.approx([0.5, 0.55, 0.6, 0.65, 0.7])
    assert holds.seconds("b") == 0.5
    seconds.now += 0.7
    assert holds.seconds("a") == 0.5
    assert [holds.seconds("a") for _ in range(500)][-1] == HOLD_SECONDS_AT_MOST


def test_delays_of_any_number_of_new_clients_take_bounded_memory() -> None:
    holds = Holds()
    for number in range(2 * CLIENTS_AT_MOST):
        holds.seconds(f"client {number}")
    assert len(holds._last) == CLIENTS_AT_MOST


async def _answers(client: httpx.AsyncClient, count: int, **options: Any) -> list[httpx.Response]:
    return await asyncio.gather(*(client.get("/v1/deals", **options) for _ in range(count)))


async def test_an_address_that_asks_too_often_is_429_without_tokens(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HOLD_SECONDS", 0.05)
    monkeypatch.setattr(access, "OPEN_A_SECOND_WITHOUT_TOKENS", 1)
    async with serving(settings.model_copy(update={"http_rate": 1})) as client:
        answers = await _answers(client, 40, headers={"X-Forwarded-For": f"10.0.0.{os.getpid() % 250}"})
        refused = [answer for answer in answers if answer.status_code == 429]
        assert 20 < len(refused) <= 39
        assert refused[0].json()["code"] == "too_many_requests"
        assert refused[0].headers["retry-after"] == "1"
        for path in (
            "/",
            "/openapi.json",
            "/docs",
            "/docs/swagger-ui.css",
            "/metrics",
            "/asyncapi.json",
            "/nothing",
            "/v1/nothing",
        ):
            assert 429 in [(await client.get(path)).status_code for _ in range(5)]
        for path in ("/healthz", "/readyz"):
            assert 429 not in {(await client.get(path)).status_code for _ in range(10)}


async def test_ordinary_clients_never_get_429(settings: Settings) -> None:
    async with serving(settings) as client:
        assert 429 not in {answer.status_code for answer in await _answers(client, 100)}


async def test_a_subject_that_asks_too_often_is_429_with_tokens(settings: Settings, tmp_path: Path) -> None:
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


async def exchange(settings: Settings, sent: bytes, port: int | None = None, address: str = "127.0.0.1") -> bytes:
    """Send bytes, and return everything that comes back until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port or settings.http_port, local_addr=(address, 0))
    try:
        writer.write(sent)
        async with asyncio.timeout(20):
            return await reader.read()
    finally:
        writer.close()


def _error(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    for told in (b"x-content-type-options: nosniff", b"cache-control: no-store", b"referrer-policy: no-referrer"):
        assert told in head.lower()
    assert set(json.loads(body)) == {"code", "message"}
    return int(head.split()[1]), json.loads(body)["code"]


@pytest.fixture
async def served(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Settings]:
    """Run the service with short time limits; each test sets the limit that it is about."""
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
    assert _error(await exchange(served, head)) == (400, "invalid")


async def test_an_incomplete_request_is_408(served: Settings) -> None:
    assert _error(await exchange(served, b"GET /v1/deals HTTP/1.1\r\nHost: localhost\r\n")) == (408, "timeout")
    body = b"POST /v1/commands HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"
    assert _error(await exchange(served, body)) == (408, "timeout")


async def test_sending_single_bytes_does_not_extend_the_time_of_a_request(served: Settings) -> None:
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


async def test_a_connection_without_a_request_is_closed_without_an_answer(served: Settings) -> None:
    assert await exchange(served, b"") == b""


async def test_consecutive_requests_each_have_the_full_time(served: Settings) -> None:
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


async def test_a_client_that_does_not_read_its_answer_is_disconnected(
    served: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "ANSWER_SECONDS", 1.0)
    _, writer = await asyncio.open_connection("127.0.0.1", served.http_port)
    writer.transport.pause_reading()  # type: ignore[attr-defined]

    async def ask_until_left() -> None:
        while True:
            writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await writer.drain()

    with pytest.raises(ConnectionError):
        await ask_until_left()
    writer.close()


@pytest.fixture
async def crowded(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Settings]:
    """Run a service with long time limits that allows 20 connections, 12 of one address, and 12 reads at once."""
    monkeypatch.setattr(access, "READS_AT_ONCE", 12)
    monkeypatch.setattr(connections, "CONNECTIONS_AT_MOST", 20)
    monkeypatch.setattr(service, "LOCK_TIMEOUT_SECONDS", 60)
    changes = {"http_head_seconds": 60, "http_connections_of_one_address": 12, "health_port": free_ports(1)}
    crowded = settings.model_copy(update=changes)
    async with serving(crowded):
        await eventually(lambda: _is_well(crowded))  # By now it has looked at the shards.
        yield crowded


async def _is_well(settings: Settings) -> bool:
    """Return whether a new client is answered, and also the container's health check at the health port."""
    answer = await exchange(settings, b"GET /v1/deals HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    health = await exchange(settings, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n", settings.health_port)
    return answer.startswith(b"HTTP/1.1 200 ") and b"nobody writes shards" in health


# The bytes that connections have sent before they fall silent: none, one, half a head, half a body, or a request before
# that.
BEGUN = (
    b"",
    b"G",
    b"GET /v1/deals HTTP/1.1\r\nHost: localhost\r\n",
    b"POST /v1/commands HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
    b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["127.0.0.2", "127.0.0.3"]])
async def test_connections_without_a_request_are_closed_first(crowded: Settings, addresses: list[str]) -> None:
    for begun in BEGUN:
        held = [await connect(crowded, each) for each in addresses * 50]
        for _, writer in held:
            writer.write(begun)
        assert await _is_well(crowded), begun
        for reader, _ in held[: len(held) - 20]:  # The oldest ones have been closed; the others fit.
            with contextlib.suppress(ConnectionError):
                assert b"HTTP/1.1 503" not in await reader.read()
        for _, writer in held:
            writer.close()


async def test_requests_in_progress_are_not_closed_for_new_clients_that_are_refused(
    crowded: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended_rests: Counter[connections.Connection] = Counter()
    goes_on = connections.Connections.goes_on

    def counted(register: connections.Connections, connection: connections.Connection) -> None:
        goes_on(register, connection)
        ended_rests[connection] += 1

    async def all_are_worked_on() -> bool:
        # Each has begun, and has then had its turn. A connection of an earlier test may end its rest, too.
        return sum(times >= 2 for times in ended_rests.values()) >= 12

    monkeypatch.setattr(connections.Connections, "goes_on", counted)
    locks = await asyncpg.connect(crowded.database_url)
    ask = b"GET /v1/deals HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    try:
        async with locks.transaction():
            await locks.execute("LOCK TABLE incentives.deals IN ACCESS EXCLUSIVE MODE")
            held = [await connect(crowded, "127.0.0.2") for _ in range(12)]
            for _, writer in held:
                writer.write(ask)
            await eventually(all_are_worked_on)
            answer = await exchange(crowded, b"", address="127.0.0.2")
            assert _error(answer) == (503, "unavailable")
            assert b"retry-after:" in answer.lower()
            other = await exchange(crowded, b"GET /docs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert other.startswith(b"HTTP/1.1 200 ")
        for reader, writer in held:
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
            writer.close()
    finally:
        await locks.close()


async def connect(settings: Settings, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", settings.http_port, local_addr=(address, 0))


async def test_the_first_head_has_less_time_than_a_complete_request(settings: Settings) -> None:
    async with serving(settings.model_copy(update={"http_head_seconds": 0.3})):
        assert _error(await exchange(settings, b"GET /v1")) == (408, "timeout")
        assert await exchange(settings, b"") == b""
        reader, writer = await connect(settings, "127.0.0.1")
        ask = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for _ in range(2):  # The second request comes later than the first head was allowed to.
            writer.write(ask)
            assert (await reader.readuntil(b'{"status":"ok"}')).startswith(b"HTTP/1.1 200 ")
            await asyncio.sleep(0.5)
        writer.close()


# --- Answers that the client does not read ---


class Client:
    """A connection that knows whether the server has ended it."""

    ended = False

    def give_way(self, after_seconds: float = 0.0) -> None:
        self.ended = True


def test_unread_answers_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "UNTAKEN_BYTES_AT_MOST", 100)
    register = connections.Connections(of_one_address=10)
    slow, quick, third = Client(), Client(), Client()
    for client in (slow, quick, third):
        assert register.open(client, "a")
    register.untaken(slow, 60)
    register.untaken(quick, 40)
    register.taken(quick)
    register.untaken(quick, 40)
    register.untaken(slow, 59)
    assert not slow.ended
    register.untaken(third, 2)
    assert (slow.ended, quick.ended, third.ended) == (True, False, False)
    register.untaken(third, 61)
    assert (quick.ended, third.ended) == (True, False)


async def test_a_client_that_does_not_read_is_disconnected_when_memory_is_needed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "UNTAKEN_BYTES_AT_MOST", 0)
    async with serving(settings):
        reader, writer = await connect(settings, "127.0.0.1")
        writer.write(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        with contextlib.suppress(ConnectionError):
            received = await reader.read()
        assert len(received) < 1_000_000
        writer.close()


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


async def test_the_database_cancels_long_statements_of_the_api(settings: Settings) -> None:
    async with connected(settings) as of_the_api:
        assert await of_the_api.pool.fetchval("SHOW max_parallel_workers_per_gather") == "0"
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
async def test_bytes_after_an_ambiguous_head_are_not_answered(served: Settings, headers: bytes) -> None:
    head = b"POST /v1/commands HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n\r\n"
    answer = await exchange(served, head + SMUGGLED + NEXT)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert _error(answer) == (400, "invalid")
    assert b"connection: close" in answer.lower()


async def test_later_requests_of_a_connection_are_checked_too(served: Settings) -> None:
    good = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = await exchange(served, good + good.replace(b"HTTP/1.1", b"HTTP/1.2") + NEXT)
    first, _, second = answer.partition(b'{"status":"ok"}')
    assert first.startswith(b"HTTP/1.1 200 ")
    assert _error(second) == (400, "invalid")


async def test_pipelined_requests_are_all_answered(served: Settings) -> None:
    good = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert (await exchange(served, good * 3 + NEXT)).count(b"HTTP/1.1 200 ") == 4


# --- A browser on this machine ---


async def test_pages_of_other_sites_are_refused_without_tokens(settings: Settings) -> None:
    sent = command("deposit_cash", "b", amount="1")
    async with serving(settings) as client:
        for site in ("cross-site", "same-site"):
            headers = {"Sec-Fetch-Site": site, "Content-Type": "text/plain"}
            refused = await client.post("/v1/commands", json=sent, headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (403, "permission_denied")
        for site in ("none", "same-origin"):
            assert (await client.get("/v1/deals", headers={"Sec-Fetch-Site": site})).status_code == 200


async def test_a_foreign_name_of_this_machine_is_misdirected_without_tokens(settings: Settings) -> None:
    rebound = {"Host": f"rebind.evil.example:{settings.http_port}"}
    async with serving(settings) as client:
        for path in ("/v1/deals", "/docs", "/metrics"):
            refused = await client.get(path, headers=rebound)
            assert (refused.status_code, refused.json()["code"]) == (421, "misdirected")
            assert "localhost, 127.0.0.1 or [::1]" in refused.json()["message"]
        for path in ("/healthz", "/readyz"):  # Probes tell every client the truth.
            assert (await client.get(path, headers=rebound)).status_code in (200, 503)


async def test_any_host_name_and_content_type_is_accepted_with_tokens(settings: Settings, tmp_path: Path) -> None:
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
def test_an_api_without_keys_does_not_start_unless_configured_so(settings_: dict[str, str]) -> None:
    environment = {**os.environ, **{f"DRAWDOWN_{name}": value for name, value in settings_.items()}}
    ended = subprocess.run(
        [sys.executable, "-m", "drawdown", "api"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("drawdown: the API needs keys to check tokens: set either DRAWDOWN_API_KEYS_FILE or ")


def test_each_start_logs_the_protections_that_are_off(tmp_path: Path) -> None:
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
    """Write an unusable policy file, which ends the start after the log has said what is off; return its path."""
    path = directory / "policy.json"
    path.write_text("{}")
    return path
