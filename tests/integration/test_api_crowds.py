"""Many connections of one client or of unknown ones, and another client that is answered nevertheless."""

import asyncio
import contextlib
import socket
import struct
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx
import pytest

from services.api import service
from services.api.door import access, connections, limits, protocol
from services.api.door.connections import Connections
from shared.runtime.settings import Settings
from tests.integration.test_api_limits import Client, connect, exchange
from tests.integration.test_api_service import eventually, serving
from tests.integration.tokens import Issuer, issuer
from tests.passes import counted_passes

OF_ONE_ADDRESS = 20


@pytest.fixture
def issues(tmp_path: Path) -> Issuer:
    return issuer(tmp_path / "keys")


@pytest.fixture
async def full(settings: Settings, issues: Issuer) -> AsyncIterator[Settings]:
    """Run a service that requires tokens and allows few connections from one address."""
    full = settings.model_copy(
        update={
            "api_authentication": "tokens",
            "api_keys_file": issues.keys_file,
            "http_connections_of_one_address": OF_ONE_ADDRESS,
        }
    )
    async with serving(full):
        yield full


@pytest.mark.parametrize("asks", ["as one subject", "with a bad token", "without one", "for nothing"])
async def test_the_client_with_the_most_connections_of_an_address_loses_one(
    full: Settings, issues: Issuer, asks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of those connections has a request that waits for its turn, or whose refusal is held."""
    monkeypatch.setattr(connections, "FRESH_SECONDS", 60.0)  # New connections stay fresh, however slow it is.
    token = {"as one subject": issues.token(sub="ann"), "with a bad token": "guess"}.get(asks)
    head = f"Authorization: Bearer {token}\r\n" if token else ""
    path = "/nothing" if asks == "for nothing" else "/v1/deals"
    locks = await asyncpg.connect(full.database_url)
    others = {"Authorization": f"Bearer {issues.token(sub='bob')}"}
    url = f"http://127.0.0.1:{full.http_port}"
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(locks.close)
        before = await stack.enter_async_context(httpx.AsyncClient(base_url=url, headers=others, trust_env=False))
        assert (await before.get("/v1/business-centers")).status_code == 200
        await stack.enter_async_context(locks.transaction())
        await locks.execute("LOCK TABLE incentives.deals IN ACCESS EXCLUSIVE MODE")
        for _ in range(5 * OF_ONE_ADDRESS):
            _, writer = await connect(full, "127.0.0.1")
            stack.callback(writer.close)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{head}\r\n".encode() * 3)
        assert (await before.get("/v1/business-centers")).status_code == 200
        for _ in range(OF_ONE_ADDRESS):
            async with httpx.AsyncClient(base_url=url, headers=others, trust_env=False) as newcomer:
                assert (await newcomer.get("/v1/business-centers")).status_code == 200


async def test_a_body_of_many_chunks_is_read_in_small_portions(
    full: Settings, issues: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "READ_SECONDS", 0)
    body = (b"20\r\n" + b"{" * 32 + b"\r\n") * 2_000 + b"0\r\n\r\n"
    async with counted_passes() as passes:
        answer = await exchange(full, _head_of_chunks(issues.token(sub="ann")) + body)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"not JSON" in answer
    assert passes.count > len(body) / protocol.READ_BYTES


def _head_of_chunks(token: str) -> bytes:
    return (
        f"POST /v1/commands HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: application/json\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    ).encode()


@pytest.mark.parametrize("chunk", [b"1\r\n{\r\n", b"3;" + b"a" * 200 + b"\r\n{{{\r\n"], ids=["tiny", "with extensions"])
async def test_a_body_that_is_mostly_frames_is_refused_before_its_end(
    full: Settings, issues: Issuer, chunk: bytes
) -> None:
    few = protocol.FRAMING_LIMIT_BYTES // (len(chunk) - 5 * chunk.count(b"{") // 4) + 1
    with_the_head = protocol.READ_BYTES // len(chunk)  # Bytes read with the head do not count.
    answer = await exchange(full, _head_of_chunks(issues.token(sub="ann")) + chunk * (with_the_head + few))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"larger chunks" in answer


async def test_a_body_that_is_declared_too_long_is_refused_unread(full: Settings, issues: Issuer) -> None:
    head = _head_of_chunks(issues.token(sub="ann")).replace(b"Transfer-Encoding: chunked", b"Content-Length: 65537")
    assert (await exchange(full, head)).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("size", [100_000, 900_000])
async def test_a_client_that_sends_everything_before_it_reads_sees_the_refusal(
    full: Settings, issues: Issuer, size: int
) -> None:
    """As urllib does: it sends `Connection: close` with every request."""
    url, headers = f"http://127.0.0.1:{full.http_port}/v1/commands", {"Content-Type": "application/json"}
    headers["Authorization"] = f"Bearer {issues.token(sub='ann')}"
    request = urllib.request.Request(url, b"[" * size, headers)
    for _ in range(20):
        with pytest.raises(urllib.error.HTTPError, match="413"):
            await asyncio.to_thread(urllib.request.build_opener(urllib.request.ProxyHandler({})).open, request)


async def test_only_a_few_connections_are_accepted_in_each_pass_of_the_loop(full: Settings) -> None:
    newcomers = [socket.socket() for _ in range(200)]
    for each in newcomers:  # The event loop does not run meanwhile, so they wait in the queue of the socket.
        each.connect(("127.0.0.1", full.http_port))
    async with counted_passes() as passes:
        assert (await exchange(full, b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 ")
    for each in newcomers:
        each.close()
    assert passes.count > len(newcomers) / service.ACCEPTED_AT_ONCE


async def test_a_body_is_read_only_after_its_sender_is_known(full: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = 0
    parse = protocol.BoundedProtocol._parse

    def counted(self: protocol.BoundedProtocol, piece: bytes) -> None:
        nonlocal parsed
        parsed += len(piece)
        parse(self, piece)

    monkeypatch.setattr(protocol.BoundedProtocol, "_parse", counted)
    head = _head_of_chunks("guess")
    answer = await exchange(full, head + b"1000\r\n" + b"{" * 0x1000 + b"\r\n" + b"garbage" * 1_000)
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert parsed < len(head) + protocol.READ_BYTES


@pytest.mark.parametrize("length", ["Transfer-Encoding: chunked", "Content-Length: 5"])
async def test_nothing_is_read_after_an_incomplete_body_that_was_answered(
    full: Settings, length: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest may hold a head that can be read in two ways, or never come. So the connection ends."""
    monkeypatch.setattr(protocol, "LINGER_SECONDS", 3600.0)
    head = f"POST /v1/commands HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer guess\r\n{length}\r\n\r\n"
    held = [await connect(full, "127.0.0.1") for _ in range(3 * OF_ONE_ADDRESS)]
    for reader, writer in held[-OF_ONE_ADDRESS:]:
        writer.write(head.encode())
        answer = await reader.readuntil(b"}")
        assert answer.startswith(b"HTTP/1.1 401 ")
        # Otherwise a client that keeps connections would send its next request over this one.
        assert b"\r\nconnection: close\r\n" in answer
        writer.write(b"helloGET /healthz HTTP/1.1\nHost: localhost\nContent-Length: 3\nTransfer-Encoding: chunked\n\n")
        assert await reader.read() == b""
    answer = await exchange(full, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    for _, writer in held:
        writer.close()


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (200, "GET /docs"),
        (401, "POST /v1/commands"),
        (403, "POST /v1/quarantine/replay"),
        (404, "POST /nothing"),
        (405, "POST /docs"),
    ],
)
async def test_an_answer_before_the_body_closes_the_connection(
    full: Settings, issues: Issuer, status: int, line: str
) -> None:
    token = "guess" if status == 401 else issues.token(sub="ann", role="viewer")
    head = f"{line} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Length: 9\r\n\r\n"
    reader, writer = await connect(full, "127.0.0.1")
    writer.write(head.encode())
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"\r\nconnection: close\r\n" in answer
    writer.close()


async def test_a_client_that_resets_during_a_delayed_refusal_leaves_nothing_behind(
    settings: Settings, issues: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    registers: list[Connections] = []

    class Noted(Connections):
        def __init__(self, of_one_address: int) -> None:
            super().__init__(of_one_address)
            registers.append(self)

    monkeypatch.setattr(service, "Connections", Noted)
    monkeypatch.setattr(access, "IN_VAIN_A_SECOND", 1)
    monkeypatch.setattr(protocol, "RECEIVE_SECONDS", 3600.0)
    with_tokens = {"api_authentication": "tokens", "api_keys_file": issues.keys_file}
    async with serving(settings.model_copy(update=with_tokens)) as client:
        await client.aclose()
        head = b"POST /v1/commands HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n"
        for sent in (head + b"[" * 5_000, head, b"\0\r\n\r\n" * 3, head.replace(b"60000", b"x")) * 5:
            _, writer = await connect(settings, "127.0.0.1")
            writer.write(sent)
            await writer.drain()
            reset = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            writer.transport.abort()
        [register] = registers
        await eventually(lambda: _is_empty(register))


async def _is_empty(register: Connections) -> bool:
    return not register._addresses


async def test_an_address_that_sends_what_is_not_http_is_answered_late(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "IN_VAIN_A_SECOND", 1)
    for name in ("HOLD_SECONDS", "HOLD_SECONDS_AT_MOST"):
        monkeypatch.setattr(limits, name, 3600.0)
    async with serving(settings):
        for _ in range(limits.BURST_SECONDS):
            assert (await exchange(settings, b"\0\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        reader, writer = await connect(settings, "127.0.0.1")
        writer.write(b"\0\r\n\r\n")
        assert await _is_answered(settings)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0)
        writer.close()


async def _is_answered(settings: Settings) -> bool:
    answer = await exchange(settings, b"GET /v1/deals HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    return answer.startswith(b"HTTP/1.1 200 ")


async def test_a_request_with_an_invalid_body_is_answered_once(
    full: Settings, issues: Issuer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody receives the result that was made meanwhile, and that is not an error of the server."""
    monkeypatch.setattr(protocol, "LINGER_SECONDS", 3600.0)
    locks = await asyncpg.connect(full.database_url)
    reader, writer = await connect(full, "127.0.0.1")
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(locks.close)
        await stack.enter_async_context(locks.transaction())
        await locks.execute("LOCK TABLE incentives.deals IN ACCESS EXCLUSIVE MODE")
        head = _head_of_chunks(issues.token(sub="ann")).replace(b"POST /v1/commands", b"GET /v1/deals")
        writer.write(head + b"no number\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    assert await _answers_another(full, issues)
    assert "Exception in ASGI application" not in caplog.text
    writer.close()


async def _answers_another(settings: Settings, issues: Issuer) -> bool:
    headers = {"Authorization": f"Bearer {issues.token(sub='ann')}"}
    url = f"http://127.0.0.1:{settings.http_port}"
    async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as client:
        return (await client.get("/v1/deals")).status_code == 200


def test_a_client_that_opens_ever_more_connections_is_closed_late_and_takes_no_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "CONNECTIONS_AT_MOST", 4)
    told: list[tuple[str, bool]] = []

    class Told(Client):
        def __init__(self, name: str) -> None:
            self.name = name

        def give_way(self, after_seconds: float = 0.0) -> None:
            told.append((self.name, after_seconds > 0))

    register = Connections(of_one_address=2)
    for name in "abcde":
        each = Told(name)
        assert register.open(each, "an address")
        register.waits(each)
    # Two have places, two are closed later. For the fifth, the one that gave way first is closed at once.
    assert told == [("a", True), ("b", True), ("c", True), ("a", False)]


def test_the_newest_connections_are_closed_last() -> None:
    register = Connections(of_one_address=3)
    held, fresh, newcomer = Client(), Client(), Client()
    for each in (fresh, held):
        assert register.open(each, "a")
        register.waits(each)
    register.works(held)
    register.rests(held)
    assert register.open(newcomer, "a")
    register.waits(newcomer)
    assert register.open(Client(), "a")
    assert (held.ended, fresh.ended, newcomer.ended) == (True, False, False)
    assert register.open(Client(), "a")
    assert (fresh.ended, newcomer.ended) == (True, False)
