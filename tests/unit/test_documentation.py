"""The page `/docs` shows every call and needs nothing from elsewhere."""

import re
from html.parser import HTMLParser
from typing import Any, cast

import httpx
import pytest

from services.api.app import create_app
from services.api.context import Context
from services.api.described.documentation import render
from services.api.door.access import Access
from shared.runtime.settings import Settings


@pytest.fixture
def app() -> Any:
    nobody = cast("Any", None)  # The page asks no server.
    access = Access(Settings(api_authentication="off"))
    return create_app(Context(access, nobody, nobody, nobody, nobody, nobody, nobody, shards=4))


@pytest.fixture
async def page(app: Any) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        return await client.get("/docs")


class Links(HTMLParser):
    """Collects what a page has, and checks that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.targets: set[str] = set()
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag != "meta":
            self.open.append(tag)
        for name, value in attrs:
            if name in ("href", "src", "action"):
                self.targets.add(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


async def test_every_call_and_parameter_is_on_the_page(app: Any, page: httpx.Response) -> None:
    assert page.status_code == 200
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            assert f'<span class="method">{method.upper()}</span> {path}</code>' in page.text
            for parameter in operation.get("parameters", []):
                assert f"<td><code>{parameter['name']}</code>" in page.text
    assert {"/v1/business-centers/{business_center_id}/series", "/v1/deals/{deal_id}/spend-detail"} <= {
        *app.openapi()["paths"]
    }


async def test_the_page_loads_nothing_and_its_links_lead_somewhere(page: httpx.Response) -> None:
    found = Links(page.text)
    assert found.open == []
    assert not found.tags & {"script", "link", "img", "iframe"}
    assert not re.search(r"url\(|@import|https?:", page.text)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert len(found.ids) == len(set(found.ids))
    assert {target for target in found.targets if not target.startswith("#")} == {"/openapi.json", "/asyncapi.json"}
    assert {target[1:] for target in found.targets if target.startswith("#")} <= set(found.ids)


def test_text_is_text() -> None:
    document = {
        "info": {"title": "<b>", "summary": "&"},
        "paths": {"/<i>": {"get": {"operationId": "a", "description": "<u> `<s>`", "responses": {}}}},
        "components": {"schemas": {}},
    }
    page = render(document)
    assert "&lt;b&gt;" in page
    assert "&lt;u&gt; <code>&lt;s&gt;</code>" in page
    assert not {"b", "i", "u", "s"} & Links(page).tags
