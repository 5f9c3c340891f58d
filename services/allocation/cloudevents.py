"""CloudEvents 1.0 on Kafka, binary and structured mode, brought to the plain form of `spend.events`.

The CloudEvents `id` is the event id and its `time` the `occurred_at` where the data has none; where both are there
they must agree. The CloudEvents `type` is not looked at, the data's decides.
"""

import json
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from shared.contracts.fields import parse_time, parse_uuid

_ANY: TypeAdapter[Any] = TypeAdapter(Any)
_STANDS_FOR = {"id": ("event_id", parse_uuid), "time": ("occurred_at", parse_time)}


def is_binary(headers: Sequence[tuple[str, bytes]]) -> bool:
    """Binary mode: the attributes are headers, the value is the data."""
    return any(name.lower() == "ce_specversion" for name, _ in headers)


def is_structured(value: bytes) -> bool:
    """Structured mode: the value is an object with attributes and data."""
    if b'"specversion"' not in value:
        return False
    try:
        event = _ANY.validate_json(value)
    except ValueError:
        return False
    return isinstance(event, dict) and "specversion" in event


def plain_form(value: bytes, headers: Sequence[tuple[str, bytes]]) -> bytes:
    """The plain JSON of a CloudEvent.

    Raises pydantic.ValidationError for broken JSON and ValueError where it is no CloudEvent 1.0 with JSON data, or
    its attributes contradict its data.
    """
    attributes, data = _binary(value, headers) if is_binary(headers) else _structured(value)
    if attributes.get("specversion") != "1.0":
        raise ValueError("specversion: only CloudEvents 1.0 are known")
    if not isinstance(data, dict):
        raise ValueError("data: must be a JSON object")  # noqa: TRY004 - it is the input that is wrong
    for attribute in _STANDS_FOR:
        _agree(attributes, data, attribute)
    return json.dumps(data).encode()


def _binary(value: bytes, headers: Sequence[tuple[str, bytes]]) -> tuple[dict[str, Any], Any]:
    attributes = {name[3:].lower(): held.decode() for name, held in headers if name.lower().startswith("ce_")}
    return attributes, _ANY.validate_json(value)


def _structured(value: bytes) -> tuple[dict[str, Any], Any]:
    event = _ANY.validate_json(value)
    if "data_base64" in event:
        raise ValueError("data_base64: the data must be JSON")
    return event, event.get("data")


def _agree(attributes: dict[str, Any], data: dict[str, Any], attribute: str) -> None:
    field, parse = _STANDS_FOR[attribute]
    outer, inner = attributes.get(attribute), data.get(field)
    if outer is None:
        return
    if inner is None:
        data[field] = outer
    elif outer != inner and _value(parse, outer) != _value(parse, inner):
        raise ValueError(f"{attribute} and {field} differ")


def _value(parse: Any, text: Any) -> Any:
    try:
        return parse(text)
    except (ValueError, AttributeError, TypeError):
        return object()
