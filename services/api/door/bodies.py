"""Bodies: received as bytes by the gate, checked by one prepared adapter, described in OpenAPI."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final, TypeVar

from fastapi import Request
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json
from starlette.types import Message, Receive

from services.api.door.errors import ApiError, invalid, sentence
from shared.contracts.strict_json import refusal

T = TypeVar("T")

BODY_LIMIT_BYTES = 65_536
BODY_TIMEOUT_SECONDS = 8.0
# Where the gate puts a body.
BODY: Final = "drawdown.body"
COMPONENTS = "#/components/schemas/{model}"


async def read_body(
    request: Request, adapter: TypeAdapter[T], *, tagged: bool = False, known: Mapping[str, Any] | None = None
) -> T:
    """The body as what the adapter makes of its JSON, whatever the content type says.

    Args:
        request: whose body; the gate has received it.
        adapter: strict about JSON's types.
        tagged: the adapter's errors begin with the tag of a union, which is no field.
        known: fields that are known better than the body can say: they take the place of its own.

    Raises:
        ApiError: 400, with a sentence that names the first field that is wrong.

    """
    text: bytes = request.scope[BODY]
    refused = refusal(text)
    if refused is not None:
        raise invalid(f"the body is not JSON: {refused}")
    try:
        return adapter.validate_json(_with(text, known) if known else text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        location = first["loc"][1:] if tagged else first["loc"]
        raise invalid(sentence(first, location)) from None


def _with(text: bytes, known: Mapping[str, Any]) -> bytes:
    try:
        value = from_json(text)
    except ValueError:
        return text  # The adapter says what is wrong with it.
    return to_json({**value, **known}) if isinstance(value, dict) else text


async def receive_body(receive: Receive, declared_bytes: int) -> bytes:
    """A body in full, before any work is done for it.

    Args:
        receive: for its pieces.
        declared_bytes: what its head says of its length, or 0.

    Raises:
        ApiError: 400 for one that ends early, 408 for one that takes longer than eight seconds, 413 for one above
            64 KiB.

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
        raise ApiError(408, "timeout", f"the body should be here within {BODY_TIMEOUT_SECONDS:.0f} seconds") from None
    return bytes(body)


def _too_large() -> ApiError:
    return ApiError(413, "too_large", f"the body should be at most {BODY_LIMIT_BYTES} bytes")


def body_schema(adapter: TypeAdapter[Any], examples: dict[str, Any]) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads its body with `read_body`."""
    schema = adapter.json_schema(ref_template=COMPONENTS)
    schema.pop("$defs", None)
    content = {"schema": schema, "examples": {name: {"value": value} for name, value in examples.items()}}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def definitions(adapter: TypeAdapter[Any]) -> dict[str, Any]:
    """The schemas that `body_schema` refers to."""
    found: dict[str, Any] = adapter.json_schema(ref_template=COMPONENTS).get("$defs", {})
    return found
