"""What OpenAPI says beyond the routes themselves."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from pydantic import TypeAdapter

from services.api.door.bodies import definitions
from services.api.models import Problem
from shared.contracts.fields import TIME_PATTERN
from shared.contracts.patterns import TIME

READ_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "A bad parameter"},
    404: {"model": Problem, "description": "There is no such thing, or it is not yours"},
    503: {"model": Problem, "description": "The database is away: ask again"},
}
# Of every call that reads one deal.
UNREADABLE_DEAL: dict[int | str, dict[str, Any]] = {
    409: {"model": Problem, "description": "What is stored is no deal: register it again"}
}
# Of every call with a body.
BODY_PROBLEMS: dict[int | str, dict[str, Any]] = {
    408: {"model": Problem, "description": "The body took longer than eight seconds"},
    413: {"model": Problem, "description": "A body above 64 KiB"},
    415: {"model": Problem, "description": "Without tokens: the body says that it is no JSON"},
}
# Of every call that wants a token.
ACCESS_PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "No token, or one that is no good"},
    403: {"model": Problem, "description": "The token does not allow it; without tokens: a page of another site asks"},
    421: {"model": Problem, "description": "Without tokens: `Host` is not this machine"},
    429: {"model": Problem, "description": "Too many requests: ask again after `Retry-After` seconds"},
}


def describe(app: FastAPI, bodies: Iterable[TypeAdapter[Any]]) -> None:
    """Add the schemas of bodies that routes read by themselves, and drop the 422 that FastAPI assumes."""
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
    """The schema of what is there: that it may be left out does not make it null."""
    options = [each for each in schema.get("anyOf", []) if each != {"type": "null"}]
    if not options:
        return schema
    [option] = options
    return {**option, **{name: value for name, value in schema.items() if name != "anyOf"}}


def _tell_all_of_times(part: Any) -> None:
    """Show the pattern of times with the calendar in it: what has the plain form and no day is refused too."""
    if isinstance(part, dict):
        if part.get("pattern") == TIME_PATTERN:
            part["pattern"] = TIME
        part = list(part.values())
    if isinstance(part, list):
        for each in part:
            _tell_all_of_times(each)
