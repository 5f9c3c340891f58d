"""`/docs`, `/openapi.json` and `/asyncapi.json`: made once, at the start, and the same bytes from then on.

`/docs` is Swagger UI: it shows `/openapi.json` and lets people send requests. Its files are served by this process, and
its policy lets a browser load nothing from elsewhere.
"""

import json
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

router = APIRouter(include_in_schema=False)

DESCRIPTION: Final = """\
Calls under `/v1` need a bearer token (*Authorize*) unless authentication is off. Resources that a token may not see
answer 404, as if they did not exist.

The Kafka topics and their messages are described by [AsyncAPI](/asyncapi.json)."""

_JSON: Final = "application/json"
_SCRIPT: Final = "text/javascript; charset=utf-8"
_STYLE: Final = "text/css; charset=utf-8"
# By path: the package that has the file, the file, and its type.
_FILES: Final = {
    "/docs": ("services.api.described", "docs.html", "text/html; charset=utf-8"),
    "/docs/initializer.js": ("services.api.described", "docs.js", _SCRIPT),
    "/docs/swagger-ui-bundle.js": ("fastapi_swagger.resources", "swagger-ui-bundle.js", _SCRIPT),
    "/docs/swagger-ui.css": ("fastapi_swagger.resources", "swagger-ui.css", _STYLE),
    "/docs/favicon-32x32.png": ("fastapi_swagger.resources", "favicon-32x32.png", "image/png"),
}
# Scripts, styles and requests are allowed for this origin alone, and none inline. Swagger UI's style sheet contains
# small images (`data:`). No other page may show this one.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True)
class Page:
    """What is answered at a path, the same for every client."""

    body: bytes
    headers: dict[str, str]

    def answer(self, request: Request) -> Response:
        """Return the page, or 304 where the client has it already (RFC 9110, section 13.1.2)."""
        known = {each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")}
        if self.headers["ETag"] in known:
            return Response(status_code=304, headers=self.headers)
        return Response(self.body, headers=self.headers)


def pages(openapi: dict[str, Any], asyncapi: dict[str, Any]) -> dict[str, Page]:
    """Return the pages by their paths: the files of `/docs`, and both descriptions."""
    found = {
        path: _page((files(package) / name).read_bytes(), type_) for path, (package, name, type_) in _FILES.items()
    }
    found["/docs"].headers["Content-Security-Policy"] = _POLICY
    return {**found, "/openapi.json": _page(_json(openapi), _JSON), "/asyncapi.json": _page(_json(asyncapi), _JSON)}


def _page(body: bytes, content_type: str) -> Page:
    tag = f'"{sha256(body).hexdigest()[:32]}"'
    return Page(body, {"Content-Type": content_type, "ETag": tag, "Cache-Control": "no-cache"})


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


@router.get("/")
async def root() -> Response:
    """Lead people to `/docs`."""
    return RedirectResponse("/docs")


async def page(request: Request) -> Response:
    """Return a page that never changes while the process runs."""
    found: Page = request.app.state.pages[request.url.path]
    return found.answer(request)


for _path in ("/openapi.json", *_FILES):
    router.add_api_route(_path, page)
