"""`/healthz`, `/readyz` and `/metrics`, and the count of requests."""

import asyncio
import time
from typing import Any

from aiokafka.errors import KafkaError
from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.api.context import Api, Context
from services.api.waiting import DATABASE_AWAY

CHECK_TIMEOUT_SECONDS = 3.0

REQUESTS = Counter("drawdown_http_requests_total", "HTTP requests answered", ["method", "route", "status"])
LATENCY = Histogram("drawdown_http_request_seconds", "Seconds until an HTTP request was answered", ["method", "route"])
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

router = APIRouter(tags=["operations"])


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> dict[str, str]:
    """Answered as long as the process can."""
    return {"status": "ok"}


@router.get("/readyz", summary="Can it serve?", responses={503: {"description": "Not ready"}})
async def readyz(context: Api) -> JSONResponse:
    """Asks the database and the broker, each time."""
    database, broker = await asyncio.gather(_database_problem(context), _broker_problem(context))
    problems = [problem for problem in (database, broker) if problem]
    status = "not ready" if problems else "ready"
    detail = "; ".join(problems) or "the database and the broker answer"
    return JSONResponse({"status": status, "detail": detail}, 503 if problems else 200)


@router.get("/metrics", summary="Metrics for Prometheus")
async def metrics() -> Response:
    """In Prometheus's text format."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


class CountRequests:
    """Counts requests by route and status, and how long they took."""

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
    """The route's pattern: paths themselves would make a series for every id."""
    route: Any = scope.get("route")
    return getattr(route, "path", "unmatched")


async def _database_problem(context: Context) -> str | None:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_SECONDS), context.pool.acquire() as connection:
            await connection.execute("SELECT 1")
    except DATABASE_AWAY as error:
        return f"the database is away: {type(error).__name__}"
    return None


async def _broker_problem(context: Context) -> str | None:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
            await context.producer.client.fetch_all_metadata()
    except (KafkaError, OSError, TimeoutError) as error:
        return f"the broker is away: {type(error).__name__}"
    return None
