"""Health and metrics of a service that serves no HTTP otherwise: /healthz, /readyz, /metrics."""

import asyncio
import json
from collections.abc import Callable

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

# (ready, why not or what is so)
Readiness = Callable[[], tuple[bool, str]]

_REQUEST_LIMIT_BYTES = 8192
_REQUEST_TIMEOUT_SECONDS = 5.0
_REASONS = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


async def serve_health(port: int | None, ready: Readiness, host: str = "127.0.0.1") -> asyncio.Server | None:
    """Answer `GET /healthz` (200), `/readyz` (200 or 503) and `/metrics` until the server is closed.

    Args:
        port: where to listen; none or 0: nowhere.
        ready: asked at each `/readyz`; the text goes into the answer.
        host: the address to listen at.

    Raises:
        OSError: the port is taken.

    """
    if not port:
        return None

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(_answer(head, ready))
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # Whoever asked has gone, or speaks no HTTP.
        finally:
            writer.close()

    server = await asyncio.start_server(serve, host, port, limit=_REQUEST_LIMIT_BYTES)
    structlog.get_logger().info("health and metrics", url=f"http://{host}:{port}/metrics")
    return server


def _answer(head: bytes, ready: Readiness) -> bytes:
    method, _, rest = head.partition(b" ")
    path = rest.split(b" ", 1)[0].split(b"?", 1)[0]
    if method not in (b"GET", b"HEAD"):
        return _response(405, "application/json", b'{"status":"method not allowed"}')
    if path == b"/healthz":
        return _response(200, "application/json", b'{"status":"ok"}')
    if path == b"/readyz":
        is_ready, text = ready()
        body = json.dumps({"status": "ready" if is_ready else "not ready", "detail": text}).encode()
        return _response(200 if is_ready else 503, "application/json", body)
    if path == b"/metrics":
        return _response(200, CONTENT_TYPE_LATEST, generate_latest(REGISTRY))
    return _response(404, "application/json", b'{"status":"not found"}')


def _response(status: int, content_type: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
