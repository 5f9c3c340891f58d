"""Error answers: always `{"code", "message"}` with the right status, and never a 500 for bad input."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg
import structlog
from aiokafka.errors import KafkaError
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from services.api.door import patterns
from services.api.door.headers import SAFE_HEADERS
from shared.contracts.commands import NO_PREVIEW
from shared.contracts.fields import (
    AMOUNT_PATTERN,
    CURRENCY_PATTERN,
    IDENTIFIER_PATTERN,
    TIME_PATTERN,
    UUID_PATTERN,
)
from shared.contracts.patterns import DAY, RATE
from shared.contracts.strict_json import worded
from shared.runtime.kafka import is_broker_unavailable
from shared.runtime.postgres import is_unavailable

RETRY_AFTER_SECONDS = 2

_FORMS = {
    AMOUNT_PATTERN: 'should be a decimal string such as "12.345678", below 10^12 and with at most six places',
    CURRENCY_PATTERN: "should be three capital letters, such as USD",
    IDENTIFIER_PATTERN: "should be 1 to 64 of A-Z a-z 0-9 _ . : -",
    TIME_PATTERN: "should be an RFC 3339 time with an offset, such as 2026-11-21T12:00:00Z",
    UUID_PATTERN: "should be a UUID",
    DAY: "should be a day from 1970 to 2999, such as 2026-11-01",
    RATE: 'should be a decimal fraction above 0 and at most 1, such as "0.03", with at most six places',
    patterns.RECORD_CURSOR: "should be the `next` of another page",
    patterns.RECORD_ID: "should be the id of a record, such as 0-1",
    patterns.POSITION_CURSOR: "should be the `next` of another page, or a position",
    patterns.ROW_CURSOR: "should be the `next` of another page",
}
_STATUSES = {
    404: ("not_found", "this path does not exist"),
    405: ("method_not_allowed", "this path does not support this method"),
}


class ApiError(Exception):
    """Raised where a request is answered with an error."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers


def not_found(what: str) -> ApiError:
    """Return a 404: `what` does not exist, or the caller may not see it."""
    return ApiError(404, "not_found", f"there is no such {what}")


def nothing_here() -> ApiError:
    """Return a 404: no route has this path."""
    return ApiError(404, *_STATUSES[404])


def invalid(message: str) -> ApiError:
    """Return a 400: the request breaks what the route documents."""
    return ApiError(400, "invalid", message)


def permission_denied(message: str) -> ApiError:
    """Return a 403: the caller may not do this."""
    return ApiError(403, "permission_denied", message)


def unreadable(what: str) -> ApiError:
    """Return a 409: our services did not write what is stored. `what` is the subject of its sentence."""
    return ApiError(409, "conflict", f"{what} cannot be read: 'drawdown audit verify' says what is wrong")


def unavailable(what: str) -> ApiError:
    """Return a 503: a server that the answer needs is unavailable; a later try may succeed."""
    return ApiError(503, "unavailable", f"{what} is unavailable: try again")


def too_many_requests(wait_seconds: float) -> ApiError:
    """Return a 429: the client asks too often, or for too much at once. It may try again after `wait_seconds`."""
    headers = {"Retry-After": str(math.ceil(wait_seconds))}
    return ApiError(429, "too_many_requests", "too many requests: try again a little later", headers)


def sentence(error: Mapping[str, Any], location: Sequence[int | str]) -> str:
    """Return what is wrong: the name of the field, and what it should be.

    Args:
        error: one error of a pydantic `ValidationError`.
        location: the path to the field, from the body or the parameters.

    """
    name = ".".join(map(str, location))
    kind, context = error["type"], error.get("ctx", {})
    if kind == "json_invalid":
        return f"the body is not JSON: {worded(context['error'])}"
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return f"{name or 'the body'} should be a JSON object"
    if kind == "union_tag_not_found":
        return "type is missing"
    if kind == "union_tag_invalid":
        return f"type should be one of {context['expected_tags']}"
    if kind == NO_PREVIEW:
        return str(error["msg"])
    if kind == "missing":
        return f"{name} is missing"
    if kind == "string_pattern_mismatch" and context["pattern"] in _FORMS:
        return f"{name} {_FORMS[context['pattern']]}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ").removeprefix("String ")
    return f"{name or 'the body'} {message}"


def install(app: FastAPI) -> None:
    """Register the handlers that turn exceptions into error answers."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    # Starlette finds handlers by class, but faults of our own have these classes too. So each handler looks again.
    for kind in (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        app.add_exception_handler(kind, _database_error)
    app.add_exception_handler(KafkaError, _kafka_error)
    app.add_exception_handler(Exception, _internal)


def _answer(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    retry = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status == 503 else {}
    return JSONResponse({"code": code, "message": message}, status, {**(headers or {}), **retry})


def answer(error: ApiError) -> JSONResponse:
    """Return the response for an error."""
    return _answer(error.status, error.code, error.message, error.headers)


async def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return answer(error)


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code, message = _STATUSES.get(error.status_code, ("invalid", str(error.detail)))
    return _answer(error.status_code, code, message, error.headers)


async def _validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place, *location = first["loc"]
    if place == "path":  # The text cannot be an id, so nothing has it.
        return _answer(404, *_STATUSES[404])
    return _answer(400, "invalid", sentence(first, location))


async def _database_error(request: Request, error: Exception) -> JSONResponse:
    if not is_unavailable(error):
        return await _internal(request, error)
    structlog.get_logger().warning("the database is unavailable", error=f"{type(error).__name__}: {error}")
    return _answer(503, "unavailable", "the database is unavailable: try again")


async def _kafka_error(request: Request, error: Exception) -> JSONResponse:
    if not is_broker_unavailable(error):
        return await _internal(request, error)
    structlog.get_logger().warning("the broker is unavailable", error=f"{type(error).__name__}: {error}")
    return _answer(503, "unavailable", "the broker is unavailable: try again with the same command_id")


async def _internal(_: Request, error: Exception) -> JSONResponse:
    """Return an answer that carries the safe headers itself, because Starlette sends it outside of the middleware."""
    structlog.get_logger().error("a request failed", exc_info=error)
    return _answer(500, "internal", "the server failed; the request is not at fault", SAFE_HEADERS)
