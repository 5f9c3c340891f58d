"""`/docs` needs no other host, and is complete: it shows each call with its errors and examples."""

import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from typing import Any, cast

import httpx
import pytest

from services.api.app import create_app
from services.api.context import Context
from services.api.door.access import OPEN_A_SECOND, Access
from services.api.door.headers import SAFE_HEADERS
from services.api.door.limits import BURST_SECONDS
from shared.runtime.settings import Settings

PAGES = {
    "/docs": "text/html; charset=utf-8",
    "/docs/favicon-32x32.png": "image/png",
    "/docs/initializer.js": "text/javascript; charset=utf-8",
    "/docs/swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "/docs/swagger-ui.css": "text/css; charset=utf-8",
    "/openapi.json": "application/json",
}
ERRORS = {"400", "401", "403", "421", "429", "503"}
BODY_ERRORS = {"408", "413", "415"}


@pytest.fixture(scope="module")
def app() -> Any:
    nobody = cast("Any", None)  # No server is needed to make the page.
    access = Access(Settings(api_authentication="off"))
    return create_app(Context(access, nobody, nobody, nobody, nobody, nobody, nobody, shards=4))


@pytest.fixture(scope="module")
async def client(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


class Parts(HTMLParser):
    """Collects the references of a page, and the inline code that should be in a file."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: set[str] = set()
        self.inline: list[str] = []
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_script = tag == "script"
        self.inline += [tag] if tag == "style" else []
        self.inline += [name for name, _ in attrs if name == "style" or name.startswith("on")]
        self.targets |= {value or "" for name, value in attrs if name in ("href", "src", "action")}

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        self.inline += [data] if self._in_script else []


async def test_the_root_redirects_to_the_documentation_page(client: httpx.AsyncClient) -> None:
    answer = await client.get("/")
    assert (answer.status_code, answer.headers["location"]) == (307, "/docs")


async def test_the_page_uses_only_files_that_are_served_next_to_it(client: httpx.AsyncClient) -> None:
    page = (await client.get("/docs")).text
    parts = Parts(page)
    assert parts.inline == []
    assert parts.targets == PAGES.keys() - {"/docs"} | {"/asyncapi.json"}
    initializer = (await client.get("/docs/initializer.js")).text
    assert not re.search(r"https?:|url\(|@import", page + initializer)
    assert "validatorUrl: null" in initializer
    assert not re.search(r"@import|url\((?![\"']?data:)", (await client.get("/docs/swagger-ui.css")).text)


async def test_the_browser_may_not_load_foreign_files_or_run_inline_scripts(client: httpx.AsyncClient) -> None:
    policy = (await client.get("/docs")).headers["content-security-policy"]
    directives = {name: sources for name, *sources in map(str.split, policy.split(";"))}
    ours = {name for name, sources in directives.items() if "'self'" in sources}
    assert ours == {"script-src", "style-src", "img-src", "connect-src"}
    assert directives["img-src"] == ["'self'", "data:"]
    assert all(directives[name] == ["'self'"] for name in ours - {"img-src"})
    assert all(directives[name] == ["'none'"] for name in directives.keys() - ours)
    assert {"default-src", "base-uri", "form-action", "frame-ancestors"} <= directives.keys()


@pytest.mark.parametrize(("path", "content_type"), PAGES.items())
async def test_each_file_has_its_content_type_and_is_the_same_when_loaded_again(
    client: httpx.AsyncClient, path: str, content_type: str
) -> None:
    first, again = await client.get(path), await client.get(path)
    assert (first.status_code, first.headers["content-type"]) == (200, content_type)
    assert first.headers["x-content-type-options"] == "nosniff"
    assert first.content == again.content
    assert first.headers["etag"] == again.headers["etag"]
    if path != "/docs":
        assert first.headers["content-security-policy"] == SAFE_HEADERS["Content-Security-Policy"]


def test_one_address_may_load_the_page_many_times() -> None:
    assert 5 * len(PAGES) <= BURST_SECONDS * OPEN_A_SECOND


def _operations(app: Any) -> dict[str, dict[str, Any]]:
    paths = app.openapi()["paths"].items()
    return {f"{method} {path}": operation for path, methods in paths for method, operation in methods.items()}


def test_each_call_is_described_with_its_errors(app: Any) -> None:
    for call, operation in _operations(app).items():
        assert operation["summary"], call
        assert len(operation["tags"]) == 1, call
        expected = ERRORS if " /v1/" in call else set()
        expected = expected | BODY_ERRORS if "requestBody" in operation else expected
        assert expected <= operation["responses"].keys(), call
        assert all(answer["description"] for answer in operation["responses"].values()), call


def test_each_body_day_and_time_has_an_example(app: Any) -> None:
    for call, operation in _operations(app).items():
        if "requestBody" in operation:
            assert operation["requestBody"]["content"]["application/json"]["examples"], call
        for parameter in operation.get("parameters", []):
            if parameter["name"] in ("at", "from", "to"):
                assert parameter["schema"]["examples"], (call, parameter["name"])


def test_calls_that_need_a_token_say_so_and_the_topics_are_named(app: Any) -> None:
    for call, operation in _operations(app).items():
        assert ("security" in operation) == (" /v1/" in call), call
    assert "(/asyncapi.json)" in app.openapi()["info"]["description"]
