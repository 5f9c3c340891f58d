"""Bodies: read as bytes, checked by one prepared adapter, described in OpenAPI."""

from typing import Any, TypeVar

from fastapi import Request
from pydantic import TypeAdapter, ValidationError

from services.api.errors import ApiError, invalid, sentence

T = TypeVar("T")

BODY_LIMIT_BYTES = 65_536
COMPONENTS = "#/components/schemas/{model}"


async def read_body(request: Request, adapter: TypeAdapter[T], *, tagged: bool = False) -> T:
    """The body as what the adapter makes of its JSON, whatever the content type says.

    Args:
        request: whose body.
        adapter: strict about JSON's types.
        tagged: the adapter's errors begin with the tag of a union, which is no field.

    Raises:
        ApiError: 400, with a sentence that names the first field that is wrong; 413 for a body above 64 KiB.

    """
    try:
        return adapter.validate_json(await _read(request), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        location = first["loc"][1:] if tagged else first["loc"]
        raise invalid(sentence(first, location)) from None


async def _read(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_LIMIT_BYTES:
            raise ApiError(413, "too_large", f"the body should be at most {BODY_LIMIT_BYTES} bytes")
    return bytes(body)


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
