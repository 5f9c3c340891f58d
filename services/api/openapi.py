"""What OpenAPI says beyond the routes themselves."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from pydantic import TypeAdapter

from services.api.bodies import definitions
from services.api.models import Problem

READ_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "A bad parameter"},
    404: {"model": Problem, "description": "There is no such thing, or it is not yours"},
    503: {"model": Problem, "description": "The database is away: ask again"},
}


# Of every call that wants a token.
ACCESS_PROBLEMS: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "No token, or one that is no good"},
    403: {"model": Problem, "description": "The token does not allow it"},
    429: {"model": Problem, "description": "Too many requests: ask again after `Retry-After` seconds"},
}


def describe(app: FastAPI, bodies: Iterable[TypeAdapter[Any]]) -> None:
    """Add the schemas of bodies that routes read by themselves, and drop the 422 that FastAPI assumes."""
    generated = app.openapi()
    for adapter in bodies:
        generated["components"]["schemas"].update(definitions(adapter))
    for path in generated["paths"].values():
        for operation in path.values():
            assumed = operation["responses"].get("422", {})
            if "HTTPValidationError" in str(assumed):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        generated["components"]["schemas"].pop(name, None)
