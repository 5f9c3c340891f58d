"""`/docs`, `/openapi.json`, `/asyncapi.json`: made once, at the start, and the same bytes from then on.

`/docs` is the description of the calls as one page that loads nothing from anywhere.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from typing import Any

from fastapi import APIRouter, Request, Response

router = APIRouter(include_in_schema=False)

# Longer lists of values are left to /openapi.json.
_ENUM_AT_MOST = 20
_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881 }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 62rem; padding: 1rem }
nav ul { columns: 22rem; list-style: none; padding: 0 } nav h3 { margin: .5rem 0 0 }
code, pre { font: .875rem/1.45 ui-monospace, monospace }
pre { background: var(--soft); overflow: auto; padding: .75rem }
article { border-top: 1px solid var(--line); margin-top: 2rem; padding-top: .5rem }
table { border-collapse: collapse; width: 100% } th, td { border-bottom: 1px solid var(--line); padding: .25rem .5rem;
text-align: left; vertical-align: top } .method { font-weight: bold } a { color: inherit }
summary { cursor: pointer }
"""
# The page needs no script, no image and no other host, and nobody may show it within another: the browser is told so.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


@dataclass(frozen=True, slots=True)
class Page:
    """What is answered at a path, whoever asks."""

    body: bytes
    headers: dict[str, str]

    def answer(self, request: Request) -> Response:
        """The page, or that it is still the one that the client has (RFC 9110, section 13.1.2)."""
        known = {each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")}
        if self.headers["ETag"] in known:
            return Response(status_code=304, headers=self.headers)
        return Response(self.body, headers=self.headers)


def pages(openapi: dict[str, Any], asyncapi: dict[str, Any]) -> dict[str, Page]:
    """The pages by their paths."""
    html = {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": _POLICY}
    return {
        "/docs": _page(render(openapi), html),
        "/openapi.json": _page(_json(openapi), {"Content-Type": "application/json"}),
        "/asyncapi.json": _page(_json(asyncapi), {"Content-Type": "application/json"}),
    }


def _page(text: str, headers: dict[str, str]) -> Page:
    body = text.encode()
    tag = f'"{sha256(body).hexdigest()[:32]}"'
    return Page(body, {**headers, "ETag": tag, "Cache-Control": "no-cache"})


def _json(document: dict[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


@router.get("/openapi.json")
@router.get("/docs")
async def page(request: Request) -> Response:
    """A page that never changes while the process runs."""
    found: Page = request.app.state.pages[request.url.path]
    return found.answer(request)


def render(document: dict[str, Any]) -> str:
    """An OpenAPI document as a page of HTML."""
    title = escape(document["info"]["title"])
    body = "\n".join([*_contents(document), *_calls(document), *_schemas(document)])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}: the API</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><h1>{title}</h1><p>{escape(document['info'].get('summary', ''))}. "
        '<a href="/openapi.json">OpenAPI</a> · <a href="/asyncapi.json">AsyncAPI: the Kafka topics</a></p>'
        "<p>Calls below <code>/v1</code> want a token (<code>Authorization: Bearer …</code>) unless that is off. "
        "What a token may not see is answered as what is not there.</p>"
        f"{body}</body></html>"
    )


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def _contents(document: dict[str, Any]) -> Iterator[str]:
    tags: dict[str, list[str]] = {}
    for method, path, operation in _operations(document):
        item = f'<li><a href="#{_anchor(operation)}"><code>{method} {escape(path)}</code></a></li>'
        tags.setdefault(operation.get("tags", ["calls"])[0], []).append(item)
    yield "<nav>"
    for tag, items in tags.items():
        yield f"<h3>{escape(tag)}</h3><ul>{''.join(items)}</ul>"
    yield "</nav>"


def _calls(document: dict[str, Any]) -> Iterator[str]:
    for method, path, operation in _operations(document):
        yield f'<article id="{_anchor(operation)}"><h2>{escape(operation.get("summary", path))}</h2>'
        yield f'<p><code><span class="method">{method}</span> {escape(path)}</code></p>'
        yield _text(operation.get("description", ""))
        yield from _parameters(operation.get("parameters", []))
        if "requestBody" in operation:
            yield "<h3>Body</h3>"
            yield from _content(operation["requestBody"].get("content", {}))
        yield "<h3>Answers</h3>"
        for status, answer in operation["responses"].items():
            yield f"<p><b>{escape(status)}</b> {escape(answer.get('description', ''))}</p>"
            yield from _content(answer.get("content", {}))
        yield "</article>"


def _parameters(parameters: list[dict[str, Any]]) -> Iterator[str]:
    if not parameters:
        return
    yield "<h3>Parameters</h3><table><tr><th>Name</th><th>In</th><th>Type</th><th>What</th></tr>"
    for each in parameters:
        schema = each.get("schema", {})
        examples = _examples(schema)
        what = _inline(each.get("description", ""))
        what += f" Example: <code>{escape(str(examples[0]))}</code>" if examples else ""
        required = " (required)" if each.get("required") else ""
        yield f"<tr><td><code>{escape(each['name'])}</code>{required}</td><td>{escape(each['in'])}</td>"
        yield f"<td>{_type(schema)}</td><td>{what}</td></tr>"
    yield "</table>"


def _content(content: dict[str, Any]) -> Iterator[str]:
    for media_type, body in content.items():
        yield f"<p><code>{escape(media_type)}</code> {_type(body.get('schema', {}))}</p>"
        examples = {name: each["value"] for name, each in body.get("examples", {}).items()}
        if "example" in body:
            examples["example"] = body["example"]
        for name, value in examples.items():
            text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
            yield f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"


def _schemas(document: dict[str, Any]) -> Iterator[str]:
    yield "<h2>Schemas</h2>"
    for name, schema in sorted(document["components"]["schemas"].items()):
        yield f'<article id="schema-{escape(name)}"><h3>{escape(name)}</h3>{_text(schema.get("description", ""))}'
        yield "<table><tr><th>Field</th><th>Type</th><th>What</th></tr>"
        for field, of in schema.get("properties", {}).items():
            absent = "" if field in schema.get("required", []) else " (may be absent)"
            yield f"<tr><td><code>{escape(field)}</code>{absent}</td><td>{_type(of)}</td>"
            yield f"<td>{_inline(of.get('description', ''))}</td></tr>"
        yield "</table></article>"


def _options(schema: dict[str, Any]) -> list[dict[str, Any]]:
    options: list[dict[str, Any]] = schema.get("anyOf") or schema.get("oneOf") or []
    return options


def _examples(schema: dict[str, Any]) -> list[Any]:
    """Those of a schema, or else of the first of its options that has any."""
    found: list[Any] = schema.get("examples") or []
    for option in _options(schema):
        found = found or _examples(option)
    return found


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words, with a link where it has a name."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    if options := _options(schema):
        return " or ".join(_type(each) for each in options)
    if len(schema.get("enum", ())) > _ENUM_AT_MOST:
        return f"one of {len(schema['enum'])} names, listed in OpenAPI"
    if "enum" in schema:
        return " | ".join(f"<code>{escape(str(each))}</code>" for each in schema["enum"])
    if "const" in schema:
        return f"<code>{escape(str(schema['const']))}</code>"
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return escape(str(schema.get("type", "anything")))


def _text(text: str) -> str:
    """Paragraphs of a docstring."""
    return "".join(f"<p>{_inline(each)}</p>" for each in text.split("\n\n") if each.strip())


def _inline(text: str) -> str:
    """A line of text; `code` is code."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{each}</code>" if number % 2 else each for number, each in enumerate(pieces))


def _anchor(operation: dict[str, Any]) -> str:
    return escape(operation["operationId"])
