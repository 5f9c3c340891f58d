"""Completes OpenAPI beyond what FastAPI makes of the routes."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from pydantic import TypeAdapter

from services.api.answers.models import Problem
from services.api.door.bodies import definitions
from shared.contracts.fields import TIME_PATTERN
from shared.contracts.patterns import TIME

READ_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "A bad parameter"},
    404: {"model": Problem, "description": "It does not exist, or the token may not see it"},
    503: {"model": Problem, "description": "The database is unavailable: try again"},
}
# For every route that reads one deal.
UNREADABLE_DEAL: dict[int | str, dict[str, Any]] = {
    409: {"model": Problem, "description": "The stored deal cannot be read: register it again"}
}
# For every route that depends on a stored time zone, policy, budget or pause.
UNREADABLE: dict[int | str, dict[str, Any]] = {
    409: {
        "model": Problem,
        "description": "What is stored cannot be read: a time zone that this release does not know, or an entry or"
        " policy that the rules did not write",
    }
}
# For every route with a body.
BODY_PROBLEMS: dict[int | str, dict[str, Any]] = {
    408: {"model": Problem, "description": "The body took longer than eight seconds"},
    413: {"model": Problem, "description": "The body is above 64 KiB"},
    415: {"model": Problem, "description": "Without authentication: the content type is not JSON"},
}
# For every route that needs a token.
ACCESS_PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "There is no token, or it is not valid"},
    403: {
        "model": Problem,
        "description": "The token does not allow it. Without authentication: a page of another site sent the request",
    },
    421: {"model": Problem, "description": "Without authentication: `Host` is not this machine"},
    429: {"model": Problem, "description": "Too many requests: try again after `Retry-After` seconds"},
}


def describe(app: FastAPI, bodies: Iterable[TypeAdapter[Any]]) -> None:
    """Add the schemas of bodies that routes read themselves, and drop the 422 that FastAPI assumes."""
    generated = app.openapi()
    for adapter in bodies:
        generated["components"]["schemas"].update(definitions(adapter))
    for path in generated["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", []):
                parameter["schema"] = present(parameter["schema"])
            assumed = operation["responses"].get("422", {})
            if "HTTPValidationError" in str(assumed):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        generated["components"]["schemas"].pop(name, None)
    _tell_all_of_times(generated)


def present(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without null, because an optional field may be left out but not null."""
    options = [each for each in schema.get("anyOf", []) if each != {"type": "null"}]
    if not options:
        return schema
    [option] = options
    return {**option, **{name: value for name, value in schema.items() if name != "anyOf"}}


def _tell_all_of_times(part: Any) -> None:
    """Replace the pattern of times with one that knows the calendar, because times that do not exist are refused."""
    if isinstance(part, dict):
        if part.get("pattern") == TIME_PATTERN:
            part["pattern"] = TIME
        part = list(part.values())
    if isinstance(part, list):
        for each in part:
            _tell_all_of_times(each)
