"""Health and metrics: what a service says of itself, and a server for those that serve no HTTP otherwise.

/readyz asks nobody: it tells what the service's own work saw last. So it answers at once, whatever hangs.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from shared.runtime.reachability import Reachability
from shared.runtime.settings import Settings, is_loopback

# (ready, why not or what is so)
Readiness = Callable[[], tuple[bool, str]]
# What /readyz answers: a JSON object whose `status` is "not ready" where it cannot serve.
Answer = Callable[[], Mapping[str, Any]]

NOT_READY: Final = "not ready"
_REQUEST_LIMIT_BYTES = 8192
_REQUEST_TIMEOUT_SECONDS = 5.0
_REASONS = {
    200: "OK",
    404: "Not Found",
    405: "Method Not Allowed",
    421: "Misdirected Request",
    503: "Service Unavailable",
}


class Health:
    """What a process says of itself: not ready before its work says that it is, nor while a server is away."""

    def __init__(self) -> None:
        self.work: Readiness = lambda: (False, "starting")
        self._servers: dict[str, Reachability] = {}

    def reachability(self, server: str) -> Reachability:
        """Report from now on when this server is unavailable. `server` is its name in a sentence: "the database"."""
        return self._servers.setdefault(server, Reachability(server))

    def readiness(self) -> tuple[bool, str]:
        """Whether it is ready, and a sentence about it."""
        problems = [server.problem for server in self._servers.values() if server.problem]
        return (False, "; ".join(problems)) if problems else self.work()

    def answer(self) -> dict[str, Any]:
        """What /readyz answers."""
        return answer(self.readiness)


def answer(ready: Readiness) -> dict[str, Any]:
    """A readiness as /readyz answers it."""
    is_ready, text = ready()
    return {"status": "ready" if is_ready else NOT_READY, "detail": text}


@contextlib.asynccontextmanager
async def serving_health(settings: Settings) -> AsyncIterator[Health]:
    """Serve the health of this process at the port that the settings name, from its start to its end."""
    health = Health()
    async with answering_health(settings, health.answer):
        yield health


@contextlib.asynccontextmanager
async def answering_health(settings: Settings, answer: Answer) -> AsyncIterator[None]:
    """Serve that answer at the port that the settings name. Raises OSError: the port is taken."""
    server = await serve_health(settings.health_port, answer, settings.health_host)
    try:
        yield
    finally:
        if server is not None:
            server.close()


async def serve_health(port: int | None, answer: Answer, host: str = "127.0.0.1") -> asyncio.Server | None:
    """Answer `GET /healthz` (200), `/readyz` (200 or 503) and `/metrics` until the server is closed.

    Args:
        port: where to listen; none or 0: nowhere.
        answer: asked at each `/readyz`.
        host: the address to listen at.

    Raises:
        OSError: the port is taken.

    """
    if not port:
        return None

    is_local = is_loopback(host)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_answer(head, answer, is_local=is_local))
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # Whoever asked has gone, or speaks no HTTP.
        finally:
            writer.close()

    server = await asyncio.start_server(serve, host, port, limit=_REQUEST_LIMIT_BYTES)
    structlog.get_logger().info("health and metrics", url=f"http://{host}:{port}/metrics")
    return server


def _answer(head: bytes, answer: Answer, *, is_local: bool) -> bytes:
    method, _, rest = head.partition(b" ")
    path = rest.split(b" ", 1)[0].split(b"?", 1)[0]
    if is_local and not _names_this_machine(head):
        return _response(421, "application/json", b'{"status":"ask localhost or 127.0.0.1"}')
    if method not in (b"GET", b"HEAD"):
        return _response(405, "application/json", b'{"status":"method not allowed"}')
    if path == b"/healthz":
        return _response(200, "application/json", b'{"status":"ok"}')
    if path == b"/readyz":
        said = answer()
        return _response(503 if said["status"] == NOT_READY else 200, "application/json", json.dumps(said).encode())
    if path == b"/metrics":
        return _response(200, CONTENT_TYPE_LATEST, generate_latest(REGISTRY))
    return _response(404, "application/json", b'{"status":"not found"}')


def _names_this_machine(head: bytes) -> bool:
    """No page of another name reads what is said on this machine alone. A program may say no `Host`."""
    hosts = re.findall(rb"\r\nhost:[ \t]*([^\r\n]*)", head, re.IGNORECASE)
    return all(is_loopback(re.sub(r":\d*$", "", host.decode("latin-1").strip().lower())) for host in hosts)


def _response(status: int, content_type: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {content_type}\r\n"
        "X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
