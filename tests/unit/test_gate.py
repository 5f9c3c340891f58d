"""The gate before the routes: no request gets around it, and every answer restricts what browsers may do with it."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from structlog.testing import capture_logs

from services.api.app import create_app
from services.api.context import Context
from services.api.door import gate, limits
from services.api.door.access import BYTES_OF_A_REQUEST, IN_VAIN_A_SECOND, Access
from services.api.door.bodies import BODY_LIMIT_BYTES
from services.api.door.headers import SAFE_HEADERS
from services.api.door.limits import RateLimit
from shared.runtime.settings import Settings
from tests.passes import counted_passes


def _client(**settings: Any) -> httpx.AsyncClient:
    """Return a client of an application without servers, with a route that fails."""
    nobody = cast("Any", None)
    access = Access(Settings(api_authentication="off", **settings))
    app = create_app(Context(access, nobody, nobody, nobody, nobody, nobody, nobody, shards=4))

    @app.get("/v1/fails")
    async def fails() -> None:
        raise RuntimeError("on purpose")

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


@pytest.fixture(scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with _client(http_rate=1_000_000) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/healthz", {}, 200),
        ("GET", "/nothing", {}, 404),
        ("GET", "/v1/nothing", {}, 404),
        ("PATCH", "/v1/deals", {}, 405),
        ("GET", "/v1/fails", {}, 500),
        ("GET", "/v1/deals?limit=0", {}, 400),
        ("GET", "/docs", {"Host": "evil.example"}, 421),
        ("POST", "/v1/commands", {"Content-Type": "text/plain"}, 415),
        ("POST", "/v1/commands", {"Content-Type": "application/json"}, 400),
        ("GET", "/v1%2fdeals", {}, 404),
    ],
)
async def test_every_answer_has_the_headers_once(
    client: httpx.AsyncClient, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    with capture_logs():
        answer = await client.request(method, path, headers=headers)
    assert answer.status_code == status
    for name, value in SAFE_HEADERS.items():
        assert answer.headers.get_list(name) == [value]


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/metrics", "/docs/initializer.js", "/v1/deals", "/v1/business-centers/a"]
)
async def test_a_path_with_an_encoded_letter_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    for place, letter in enumerate(path[1:], 1):
        encoded = f"{path[:place]}%{ord(letter):02x}{path[place + 1 :]}"
        assert (await client.get(encoded)).status_code == 404, encoded


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the seconds for which requests were held. The test does not wait for them."""
    held: list[float] = []

    async def hold(seconds: float) -> None:
        if seconds:  # Otherwise it only yields to other tasks.
            held.append(seconds)

    # Only for the gate. A task that another test has left in this loop would never yield if it slept by `hold` as well.
    monkeypatch.setattr(gate, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": hold}))
    return held


@pytest.mark.parametrize(("path", "let_in"), [("/nothing", 2), ("/docs", 2), ("/%64ocs", 2), ("/v1/nothing", 10)])
async def test_every_request_counts_and_a_client_that_asks_too_often_waits(
    path: str, let_in: int, held: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.api.door.access.OPEN_A_SECOND_WITHOUT_TOKENS", 1)
    monkeypatch.setattr("services.api.door.access.RateLimit", partial(RateLimit, now_ns=lambda: 0))
    async with _client(http_rate=5) as client:
        statuses = [(await client.get(path)).status_code for _ in range(40)]
        assert statuses.count(429) == 40 - let_in
        assert len(held) == statuses.count(429)
        assert min(held) >= limits.HOLD_SECONDS
        assert held[-1] > 30 / limits.LET_GO_A_SECOND  # Any number of simultaneous requests is refused one by one.
        assert (await client.get("/healthz")).status_code == 200


async def test_a_long_body_counts_as_many_requests(held: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.api.door.access.RateLimit", partial(RateLimit, now_ns=lambda: 0))
    async with _client(http_rate=5) as client:

        async def status(size: int) -> int:
            headers = {"Content-Type": "application/json"}
            return (await client.post("/v1/commands", content=b" " * size, headers=headers)).status_code

        assert [await status(4 * BYTES_OF_A_REQUEST) for _ in range(3)] == [400, 400, 429]
    assert held[:2] == [4 * gate.REST_SECONDS] * 2  # before each is looked at
    assert held[2] >= limits.HOLD_SECONDS


async def test_a_refused_body_counts_as_the_longest(held: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.api.door.access.RateLimit", partial(RateLimit, now_ns=lambda: 0))
    async with _client(http_rate=40) as client:
        too_long = b" " * (BODY_LIMIT_BYTES + 1)
        headers = {"Content-Type": "application/json"}
        asked = [await client.post("/v1/commands", content=too_long, headers=headers) for _ in range(3)]
    assert [answer.status_code for answer in asked] == [413, 413, 429]
    assert len(held) == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200),
        ("GET", "/v1/nothing", 404),
        ("PATCH", "/v1/deals", 405),
        ("HEAD", "/v1/deals", 405),
        ("GET", "/v1/commands", 405),
        ("GET", "/v1/deals?limit=0", 400),
        ("GET", "/nothing", 404),
    ],
)
async def test_only_one_request_that_is_answered_at_once_begins_in_each_pass_of_the_loop(
    client: httpx.AsyncClient, method: str, path: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tasks get their turn in between: they wait for one request, not for all that one client sends at once."""
    monkeypatch.setattr(RateLimit, "take", lambda *_: 0)  # No request is held.
    async with counted_passes() as passes:
        answers = await asyncio.gather(*(client.request(method, path) for _ in range(100)))
    assert {answer.status_code for answer in answers} == {status}
    assert passes.count > 100


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("PATCH", "/v1/deals", 405),
        ("GET", "/v1/commands", 405),
        ("GET", "/healthz", 200),
    ],
)
async def test_a_client_with_too_many_failed_requests_is_answered_late(
    method: str, path: str, status: int, held: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.api.door.access.RateLimit", partial(RateLimit, now_ns=lambda: 0))
    async with _client() as client:
        statuses = {(await client.request(method, path)).status_code for _ in range(IN_VAIN_A_SECOND * 2 + 20)}
    assert statuses == {status}
    assert len(held) == 20
