"""Request bodies: the gate receives their bytes, a route checks them with one adapter, OpenAPI describes them."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from fastapi import Request
from pydantic import BeforeValidator, TypeAdapter, ValidationError
from pydantic_core import from_json, to_json
from starlette.types import Message, Receive

from services.api.door.errors import ApiError, invalid, sentence
from shared.contracts.strict_json import refusal, validated

T = TypeVar("T")

BODY_LIMIT_BYTES = 65_536
BODY_TIMEOUT_SECONDS = 8.0
# The key of the request's scope under which the gate stores the body.
BODY: Final = "drawdown.body"
COMPONENTS = "#/components/schemas/{model}"
# Below this, no two whole numbers are the same float (RFC 8259, section 6).
_INEXACT: Final = 2.0**53


def _whole(value: Any) -> Any:
    """Return the integer that a float is; any other value unchanged. Raises ValueError if the float may be inexact."""
    if not isinstance(value, float) or not value.is_integer():
        return value
    if abs(value) >= _INEXACT:
        raise ValueError("should have neither a fraction nor an exponent: from 2^53 on such a number is not exact")
    return int(value)


# Stands last in the annotation of an integer. Then 1.0 and 1e3 are integers, too, as in JSON Schema.
WHOLE: Final = BeforeValidator(_whole)


async def read_body(
    request: Request, adapter: TypeAdapter[T], *, tagged: bool = False, known: Mapping[str, Any] | None = None
) -> T:
    """Return what the adapter makes of the body's JSON; the content type is ignored.

    Args:
        request: the request, whose body the gate has received.
        adapter: the expected type; it is applied in strict mode.
        tagged: whether the adapter's errors begin with the tag of a union, which is not a field.
        known: fields with trusted values; they replace those of the body.

    Raises:
        ApiError: 400, with a message that names the first wrong field.

    """
    text: bytes = request.scope[BODY]
    refused = refusal(text)
    if refused is not None:
        raise invalid(f"the body is not JSON: {refused}")
    try:
        return validated(lambda read: adapter.validate_json(_with(read, known) if known else read, strict=True), text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        location = first["loc"][1:] if tagged else first["loc"]
        raise invalid(sentence(first, location)) from None


def _with(text: bytes, known: Mapping[str, Any]) -> bytes:
    try:
        value = from_json(text)
    except ValueError:
        return text  # The adapter reports what is wrong with it.
    return to_json({**value, **known}) if isinstance(value, dict) else text


async def receive_body(receive: Receive, declared_bytes: int) -> bytes:
    """Receive a whole body.

    Args:
        receive: the ASGI callable that yields its pieces.
        declared_bytes: the length that the header declares, or 0.

    Raises:
        ApiError: 400 if the body ends early, 408 if it takes longer than eight seconds, 413 above 64 KiB.

    """
    if declared_bytes > BODY_LIMIT_BYTES:
        raise _too_large()
    body = bytearray()
    message: Message = {"more_body": True}
    try:
        async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
            while message.get("more_body"):
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise invalid("the body ended early")
                body += message.get("body", b"")
                if len(body) > BODY_LIMIT_BYTES:
                    raise _too_large()
    except TimeoutError:
        raise ApiError(408, "timeout", f"the body should arrive within {BODY_TIMEOUT_SECONDS:.0f} seconds") from None
    return bytes(body)


def _too_large() -> ApiError:
    return ApiError(413, "too_large", f"the body should be at most {BODY_LIMIT_BYTES} bytes")


def body_schema(adapter: TypeAdapter[Any], examples: dict[str, Any]) -> dict[str, Any]:
    """Return the `openapi_extra` of a route that reads its body with `read_body`."""
    schema = adapter.json_schema(ref_template=COMPONENTS)
    schema.pop("$defs", None)
    content = {"schema": schema, "examples": {name: {"value": value} for name, value in examples.items()}}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def definitions(adapter: TypeAdapter[Any]) -> dict[str, Any]:
    """Return the component schemas that `body_schema` refers to."""
    found: dict[str, Any] = adapter.json_schema(ref_template=COMPONENTS).get("$defs", {})
    return found
