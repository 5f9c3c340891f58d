"""The door of HTTP: framings, paths, headers, connections that do nothing."""

import asyncio
import re
import time

import httpx

from tests.security.check import Check, require
from tests.security.crowd import crowded
from tests.security.target import Target
from tests.security.tenants import open_tenant

_ANSWER_SECONDS = 15.0
_IDLE_CONNECTIONS = 950
_IDLE_SECONDS = 20.0
_OPENED_A_SECOND = 400
_SLOW_HEAD_SECONDS = 12.0
_PROBE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def _open(target: Target) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", target.http_port)


async def exchange(target: Target, sent: bytes) -> tuple[bytes, bool]:
    """Send these bytes; return the whole answer, and whether the API closed the connection."""
    reader, writer = await _open(target)
    answered = b""
    try:
        writer.write(sent)
        async with asyncio.timeout(_ANSWER_SECONDS):
            while piece := await reader.read(65_536):
                answered += piece
    except TimeoutError:
        return answered, False
    except ConnectionError:
        pass
    finally:
        writer.close()
    return answered, True


def _statuses(answered: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", answered)]


def _post(*lines: str, body: bytes = b"") -> bytes:
    head = "\r\n".join(["POST /v1/commands HTTP/1.1", "Host: localhost", *lines, "", ""])
    return head.encode("latin-1") + body


_CHUNKED = "Transfer-Encoding: chunked"
# Each could be read in two ways. A server that reads it the other way takes the rest for a second request.
FRAMINGS = {
    "Content-Length with Transfer-Encoding": _post("Content-Length: 5", _CHUNKED, body=b"0\r\n\r\n"),
    "the same, the other way round": _post(_CHUNKED, "Content-Length: 5", body=b"0\r\n\r\n"),
    "two of Content-Length": _post("Content-Length: 0", "Content-Length: 5", body=b"hello"),
    "two lengths in one line": _post("Content-Length: 0, 5", body=b"hello"),
    "a length with a sign": _post("Content-Length: +0"),
    "a length below zero": _post("Content-Length: -1"),
    "a length in hexadecimal": _post("Content-Length: 0x0"),
    "a length with a blank within": _post("Content-Length: 0 0"),
    "an encoding that is not chunked": _post("Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "chunked and then another": _post("Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"),
    "two of Transfer-Encoding": _post(_CHUNKED, "Transfer-Encoding: identity", body=b"0\r\n\r\n"),
    "a blank before the colon": _post("Content-Length : 0"),
    "a chunk's size with a sign": _post(_CHUNKED, body=b"+0\r\n\r\n"),
    "a chunk's size in other digits": _post(_CHUNKED, body=b"0x0\r\n\r\n"),
    "a chunk that ends without CRLF": _post(_CHUNKED, body=b"3\r\nabcXX0\r\n\r\n"),
    "a folded line": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n c\r\n\r\n",
    "a bare LF": b"GET /healthz HTTP/1.1\nHost: localhost\n\n",
    "a bare CR": b"GET /healthz HTTP/1.1\r\nHost: localhost\rX: y\r\n\r\n",
    "NUL in a header": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
    "HTTP/1.2": b"GET /healthz HTTP/1.2\r\nHost: localhost\r\n\r\n",
    "HTTP/2 as if known": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no Host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two of Host": b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "two of Authorization": b"GET /v1/ledger HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer a\r\n"
    b"Authorization: Bearer b\r\n\r\n",
    "a method that is none": b"G\x00T /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


async def framings(target: Target) -> str:
    """Send each framing with a second request behind it, which must not be answered."""
    answers = await asyncio.gather(*(exchange(target, sent + _PROBE) for sent in FRAMINGS.values()))
    wrong = []
    for what, (answered, ended) in zip(FRAMINGS, answers, strict=True):
        statuses = _statuses(answered)
        if not (ended and len(statuses) <= 1 and all(400 <= status < 500 for status in statuses)):
            wrong.append(f"{what}: {statuses}{'' if ended else ', and the connection goes on'}")
    require(not wrong, wrong)
    return f"{len(FRAMINGS)} framings: an error at most, and the connection ends"


async def bodies(target: Target) -> str:
    """Send bodies that are too long or too deep to be read."""
    odd = {
        "1 MB": (b'{"x":"' + b"a" * 1_000_000 + b'"}', 413),
        "30,000 levels": (b"[" * 30_000 + b"]" * 30_000, 400),
        "60,000 digits": (b'{"x":' + b"9" * 60_000 + b"}", 400),
        "NaN": (b'{"x":NaN}', 400),
        "not UTF-8": (b'{"x":"\xff"}', 400),
        "half a surrogate": (b'{"type":"\\ud800"}', 400),
        "a list": (b"[]", 400),
        "nothing": (b"", 400),
    }
    token = target.token()
    headers = {"Content-Type": "application/json"}
    wrong = []
    for what, (body, expected) in odd.items():
        answer = await target.ask("POST", "/v1/commands", token, content=body, headers=headers)
        if answer.status_code != expected:
            wrong.append(f"{what}: {answer.status_code}, not {expected}")
    require(not wrong, wrong)
    return f"{len(odd)} bodies, 400 or 413"


async def paths(target: Target) -> str:
    """Read routes under other spellings of their paths, and metrics at the published port."""
    token = target.token()
    tenant = await open_tenant(target)
    spellings = (
        "/%6detrics", "/metrics", "/metrics/", "//metrics", "/v1/../metrics", "/v1%2fbusiness-centers",
        f"/v1/business-centers/{tenant.id.replace('s', '%73', 1)}", f"/v1/business%2Dcenters/{tenant.id}",
        "/%76%31/business-centers", "/v1/business-centers/..%2f..%2fmetrics", "/v1/business-centers%00",
    )  # fmt: skip
    found = []
    for path in spellings:
        request = (
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        )
        answered, _ = await exchange(target, request.encode())
        if not all(400 <= status < 500 for status in _statuses(answered)):
            found.append(f"{path}: {_statuses(answered)}")
    require(not found, found)
    return f"{len(spellings)} spellings lead nowhere, metrics are not here"


async def headers(target: Target) -> str:
    """Check what each kind of answer allows a browser to do with it."""
    tenant = await open_tenant(target)
    answers = {
        "money": await target.ask("GET", f"/v1/business-centers/{tenant.id}", target.token()),
        "401": await target.ask("GET", "/v1/business-centers"),
        "404": await target.ask("GET", "/nothing"),
        "docs": await target.ask("GET", "/docs"),
        "openapi": await target.ask("GET", "/openapi.json"),
    }
    wrong = []
    for what, answer in answers.items():
        if answer.headers.get("x-content-type-options") != "nosniff":
            wrong.append(f"{what}: no nosniff")
        if answer.headers.get("referrer-policy") != "no-referrer":
            wrong.append(f"{what}: no Referrer-Policy")
        if "access-control-allow-origin" in answer.headers:
            wrong.append(f"{what}: CORS")
    for what in ("money", "401"):
        if "no-store" not in answers[what].headers.get("cache-control", ""):
            wrong.append(f"{what}: may be stored")
    if "frame-ancestors 'none'" not in answers["docs"].headers.get("content-security-policy", ""):
        wrong.append("docs: may be framed")
    require(not wrong, wrong)
    return "nosniff, no-referrer, no-store, no frames, no CORS"


async def constant_pages(target: Target) -> str:
    """Read the constant pages, and read them again with their ETags."""
    came = []
    for path in ("/docs", "/docs/swagger-ui-bundle.js", "/openapi.json", "/asyncapi.json"):
        first = await target.ask("GET", path)
        tag = first.headers.get("etag")
        require(tag is not None, f"{path} has no ETag")
        again = await target.ask("GET", path, headers={"If-None-Match": str(tag)})
        require(again.status_code == httpx.codes.NOT_MODIFIED, f"{path}: {again.status_code}")
        came.append(path)
    return f"{', '.join(came)}: 304"


async def slow_head(target: Target) -> str:
    """Send one byte of a request and wait."""
    reader, writer = await _open(target)
    began = time.monotonic()
    writer.write(b"G")
    try:
        async with asyncio.timeout(_SLOW_HEAD_SECONDS + 3):
            while await reader.read(4_096):
                pass
    except TimeoutError:
        require(held=False, came="it is still open")
    except ConnectionError:
        pass
    finally:
        writer.close()
    took = time.monotonic() - began
    require(took < _SLOW_HEAD_SECONDS, f"it was open for {took:.1f} s")
    return f"ended after {took:.1f} s"


async def idle_connections(target: Target) -> str:
    """Hold idle connections, and meanwhile send requests as somebody else, each over a new connection."""
    tenant = await open_tenant(target)
    token, asked, refused = target.token(), 0, []
    async with crowded(target, _IDLE_CONNECTIONS, idle=_OPENED_A_SECOND):
        await asyncio.sleep(2)
        give_up_at = time.monotonic() + _IDLE_SECONDS
        while time.monotonic() < give_up_at:
            asked += 1
            try:
                answer = await target.ask("GET", f"/v1/business-centers/{tenant.id}", token)
                if answer.status_code != httpx.codes.OK:
                    refused.append(str(answer.status_code))
            except httpx.HTTPError as error:
                refused.append(type(error).__name__)
            await asyncio.sleep(0.1)
        health = (await target.inspect("api"))["State"]["Health"]["Status"]
    require(health == "healthy", f"the API is {health}")
    require(len(refused) <= asked // 20, f"{len(refused)} of {asked} were not answered: {sorted(set(refused))}")
    return f"{asked - len(refused)} of {asked} were answered, and the API is healthy"


async def nowhere(target: Target) -> str:
    """Read paths that do not exist, many times at once."""
    async with target.client() as client:
        answers = await asyncio.gather(*(client.get(f"/nothing/{n}") for n in range(300)))
    codes = [answer.status_code for answer in answers]
    require(set(codes) <= {404, 429}, sorted(set(codes)))
    require(429 in codes, "300 at once were all looked for: what matches no route is not counted")
    return f"{codes.count(404)} times 404, {codes.count(429)} times 429"


CHECKS = (
    Check("http", "framings", "heads and bodies that two readers could read in two ways", framings),
    Check("http", "bodies", "bodies that are long, deep, or no JSON", bodies),
    Check("http", "paths", "other spellings of paths, and metrics", paths),
    Check("http", "headers", "what a browser may do with an answer", headers),
    Check("http", "pages", "the constant pages, again and again", constant_pages),
    Check("http", "slow", "one byte of a request", slow_head),
    Check("http", "idle", f"{_IDLE_CONNECTIONS} connections that do nothing", idle_connections, is_quick=False),
    Check("http", "nowhere", "300 requests at once for what is not there", nowhere),
)
