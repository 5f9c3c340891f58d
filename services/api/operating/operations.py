"""Serves `/healthz`, `/readyz` and `/metrics`, and counts requests."""

import time
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api.answers.models import Problem
from services.api.context import Api
from services.api.door.errors import ApiError
from services.api.door.gate import REFUSED
from services.api.watching.writers import Readiness
from shared.runtime.health import NOT_READY

REQUESTS = Counter("drawdown_http_requests_total", "HTTP requests answered", ["method", "route", "status"])
LATENCY = Histogram("drawdown_http_request_seconds", "Seconds until an HTTP request was answered", ["method", "route"])
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

router = APIRouter(tags=["operations"])


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> dict[str, str]:
    """Answer as long as the process can."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    response_model=Readiness,
    summary="Can it serve, and is the ledger being written?",
    responses={503: {"model": Readiness, "description": "Not ready"}},
)
async def readyz(context: Api) -> JSONResponse:
    """Answer at once with what the process saw last; no server is asked, so nothing can hang.

    `degraded` (200) means that it can serve, but some shards of the ledger are not written as they should be; `detail`
    names them, and since when. `not ready` (503) means that it cannot serve, or that no shard is written.
    """
    answer = context.readiness()
    return JSONResponse(answer, 503 if answer["status"] == NOT_READY else 200)


@router.get(
    "/metrics",
    summary="Metrics for Prometheus, without authentication",
    responses={404: {"model": Problem, "description": "Authentication is on: use the health port"}},
)
async def metrics(context: Api) -> Response:
    """Return metrics in Prometheus's text format.

    They show the traffic of all Business Centers, so with authentication only the health port has them.
    """
    if context.access.verifier is not None:
        raise ApiError(404, "not_found", "metrics are at the health port (DRAWDOWN_HEALTH_PORT)")
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


class CountRequests:
    """Counts requests by route and status, and measures how long they took."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and count its answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 500
        begun = time.perf_counter()

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_noting_status)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = _route(scope)
            REQUESTS.labels(method, route, str(status)).inc()
            LATENCY.labels(method, route).observe(time.perf_counter() - begun)


def _route(scope: Scope) -> str:
    """Return the route's pattern, or why there is none. Paths themselves would make a series for every id."""
    route: Any = scope.get("route")
    return getattr(route, "path", "refused" if REFUSED in scope else "unmatched")
