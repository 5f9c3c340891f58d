"""Health and metrics: what a service reports about itself, and the HTTP server that shows it to operators.

`/readyz` asks no server: it reports what the service's own work saw last. So it answers at once, whatever hangs.
"""

import asyncio
import contextlib
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any, Final

import h11
import structlog
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from shared.runtime.heads import fault_of, is_longer
from shared.runtime.reachability import Reachability
from shared.runtime.serving import Server
from shared.runtime.settings import Settings, is_loopback

# Whether the process is ready, and a sentence: why it is not, or what it does.
Readiness = Callable[[], tuple[bool, str]]
# The answer of /readyz: a JSON object whose `status` is "not ready" if the process cannot serve.
Answer = Callable[[], Mapping[str, Any]]

NOT_READY: Final = "not ready"
# More than the probes and Prometheus need.
CONNECTIONS_AT_MOST: Final = 32
# This many connections may wait to be accepted while the service does something else.
QUEUED_AT_MOST: Final = 1_024
# For a whole connection, until the client has read the answer.
CONNECTION_SECONDS = 5.0
HEAD_LIMIT_BYTES: Final = 8_192
# At the end of the service, for clients to read their answers.
GRACE_SECONDS: Final = 1
_PORT: Final = re.compile(r":\d*$")


class Health:
    """The health of a process. It is not ready until its work says so, nor while a server is unavailable."""

    def __init__(self) -> None:
        self.work: Readiness = lambda: (False, "starting")
        self._servers: dict[str, Reachability] = {}

    def reachability(self, server: str) -> Reachability:
        """Report from now on when this server is unavailable. `server` is its name in a sentence: "the database"."""
        return self._servers.setdefault(server, Reachability(server))

    def readiness(self) -> tuple[bool, str]:
        """Return whether the process is ready, and a sentence about it."""
        problems = [server.problem for server in self._servers.values() if server.problem]
        return (False, "; ".join(problems)) if problems else self.work()

    def answer(self) -> dict[str, Any]:
        """Return the answer of /readyz."""
        return answer(self.readiness)


def answer(ready: Readiness) -> dict[str, Any]:
    """Return a readiness in the form of /readyz's answer."""
    is_ready, text = ready()
    return {"status": "ready" if is_ready else NOT_READY, "detail": text}


@contextlib.asynccontextmanager
async def serving_health(settings: Settings) -> AsyncIterator[Health]:
    """Serve the health of this process, at the port that the settings name, while the block runs."""
    health = Health()
    async with answering_health(settings, health.answer):
        yield health


@contextlib.asynccontextmanager
async def answering_health(settings: Settings, answer: Answer) -> AsyncIterator[None]:
    """Serve `/healthz`, `/readyz` and `/metrics` at the port that the settings name, if they name one.

    Args:
        settings: `health_host` and `health_port`. Without a port, or with port 0, nothing is served.
        answer: called for each request of `/readyz`.

    Raises:
        OSError: the port is taken.

    """
    host, port = settings.health_host, settings.health_port
    if not port:
        yield
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=QUEUED_AT_MOST) as listener:
        structlog.get_logger().info("health and metrics", url=f"http://{host}:{port}/metrics")
        server = Server(_config(create_app(answer, is_local=is_loopback(host))))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield
        finally:
            server.should_exit = True
            await serving


def create_app(answer: Answer, *, is_local: bool) -> Starlette:
    """Return the application that answers the probes and shows the metrics.

    Args:
        answer: called for each request of `/readyz`.
        is_local: whether it listens on this machine alone. Then it answers only requests that name this machine, so
            that a web page under another name cannot read the answers.

    """

    async def readyz(_: Request) -> Response:
        said = answer()
        return JSONResponse(said, 503 if said["status"] == NOT_READY else 200)

    app = Starlette(
        routes=[Route("/healthz", _healthz), Route("/readyz", readyz), Route("/metrics", _metrics)],
        middleware=[Middleware(_PlainPath), *([Middleware(_AskedAsThisMachine)] if is_local else [])],
        exception_handlers={HTTPException: _http_error},
    )
    app.router.redirect_slashes = False  # A redirect would lead to the host that the request names.
    return app


async def _healthz(_: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _metrics(_: Request) -> Response:
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"status": error.detail.lower()}, error.status_code, error.headers)


class _PlainPath:
    """Knows no path with percent-encoded characters, which a proxy's rule for `/metrics` may not recognise."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with 404."""
        if b"%" in scope.get("raw_path", b""):
            await JSONResponse({"status": "not found"}, 404)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class _AskedAsThisMachine:
    """Refuses a request whose `Host` is another machine's name. A client of HTTP/1.0 may omit the header."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with 421."""
        hosts = Headers(scope=scope).getlist("host")
        if all(is_loopback(_PORT.sub("", host.lower())) for host in hosts):
            await self._app(scope, receive, send)
        else:
            await JSONResponse({"status": "use localhost or 127.0.0.1"}, 421)(scope, receive, send)


class _BoundedProtocol(H11Protocol):
    """Closes each connection after some seconds, whatever its client does; earlier if a new one needs its place.

    It closes the oldest connection of the address that has most. So clients that hold connections cannot keep out the
    container's own health check.
    """

    _deadline: asyncio.TimerHandle | None = None
    _seen_bytes = 0  # of the head that has begun

    def __init__(self, addresses: "dict[_BoundedProtocol, str]", **of_uvicorn: Any) -> None:
        """Share `addresses`: the open connections of the server, oldest first."""
        super().__init__(**of_uvicorn)
        self._addresses = addresses

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._deadline = self.loop.call_later(CONNECTION_SECONDS, transport.abort)
        self._addresses[self] = self.client[0] if self.client else ""
        if len(self._addresses) > CONNECTIONS_AT_MOST:
            self._make_room()

    def _make_room(self) -> None:
        [(most, _)] = Counter(self._addresses.values()).most_common(1)
        oldest = next(each for each, address in self._addresses.items() if address == most)
        del self._addresses[oldest]
        oldest.transport.abort()

    def handle_events(self) -> None:
        """Handle what was parsed, unless it is a head that is too long or could be read differently elsewhere."""
        head = self.conn.trailing_data[0] if self.conn.their_state is h11.IDLE else b""
        if is_longer(head, HEAD_LIMIT_BYTES):
            self.send_400_response(f"A head may have {HEAD_LIMIT_BYTES} bytes.")
        elif fault := fault_of(head, self._seen_bytes):
            self.send_400_response(fault)
        else:
            self._seen_bytes = len(head)
            super().handle_events()

    def connection_lost(self, exc: Exception | None) -> None:
        self._addresses.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)


def _config(app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        http=partial(_BoundedProtocol, {}),  # type: ignore[arg-type]
        h11_max_incomplete_event_size=HEAD_LIMIT_BYTES,
        ws="none",
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        # Each connection is for one request, because probes and Prometheus ask only every few seconds.
        headers=[("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store"), ("Connection", "close")],
        backlog=QUEUED_AT_MOST,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
