"""CloudEvents 1.0 on Kafka, in binary and structured mode, converted to the plain form of `spend.events`.

Sources: the Kafka protocol binding and the JSON format of CloudEvents 1.0.2. A `content-type` header that begins with
`application/cloudevents` means structured mode; otherwise a header `ce_specversion` means binary mode; otherwise a JSON
object with a member `specversion` that is no plain event is structured mode. If the data has no `event_id` or
`occurred_at`, the CloudEvent's `id` and `time` are taken; if both are there, they must agree. Other attributes are
ignored: the `type` of the data decides, and JSON data is read whatever `datacontenttype` says.
"""

from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from pydantic_core import from_json

from shared.contracts.fields import is_time, is_uuid, parse_time, parse_uuid
from shared.contracts.strict_json import NUL, without_lone_surrogates

Headers = Sequence[tuple[str, bytes | None]]
ReadJson = Callable[[bytes], Any]

STRUCTURED: Final[Headers] = (("content-type", b"application/cloudevents+json"),)
_MEDIA_TYPE: Final = b"application/cloudevents"
_STRUCTURED_MEDIA_TYPES: Final = (_MEDIA_TYPE, b"application/cloudevents+json")
_READ: Final = {"ce_specversion": "specversion", "ce_id": "id", "ce_time": "time"}


def is_cloud_event(headers: Headers) -> bool:
    """Return whether the headers say that the record is a CloudEvent, in either mode."""
    return _is_binary(headers) or _says_structured(headers)


def is_structured(value: bytes) -> bool:
    """Return whether the bytes are a CloudEvent in structured mode, if the headers say nothing."""
    try:
        return _is_envelope(from_json(value))
    except ValueError:
        return False


def may_be_structured(document: Any, headers: Headers) -> bool:
    """Return whether the document is an envelope around the data, by its own form or by its headers."""
    return _says_structured(headers) or _is_envelope(document)


def plain_form(value: bytes, headers: Headers, read_json: ReadJson) -> dict[str, Any]:
    """Return the plain form of a CloudEvent whose headers say that it is one.

    `read_json` reads it, and what is in `data_base64`; it may raise MalformedError. Raises ValueError if it is not a
    CloudEvent 1.0 with JSON data, or if its attributes contradict its data.
    """
    in_mode = _structured if _says_structured(headers) else _binary
    attributes, data = in_mode(value, headers, read_json)
    if attributes.get("specversion") != "1.0":
        raise ValueError("specversion: only CloudEvents 1.0 are known")
    if not isinstance(data, dict):
        raise ValueError("data: must be a JSON object")  # noqa: TRY004 - it is the input that is wrong
    _agree(attributes.get("id"), data, "id", "event_id", _uuid)
    _agree(attributes.get("time"), data, "time", "occurred_at", _time)
    return data


def data_of(value: bytes, headers: Headers, mark: bytes = NUL) -> Any:
    """Return the data of a CloudEvent, or all of a plain event, even if other parts of it are wrong.

    A mark stands for each lone surrogate. Raises ValueError if no JSON can be read.
    """
    document = read_loosely(value, mark)
    if _says_structured(headers) or (_is_envelope(document) and not _is_binary(headers)):
        return _data(document, lambda data: read_loosely(data, mark))
    return document


def all_data(value: bytes, headers: Headers) -> list[Any]:
    """Return all that a refused record carries as data: of each event of a batch, in `data` and in `data_base64`.

    What cannot be read is left out. Raises ValueError if the value is not JSON.
    """
    document = read_loosely(value)
    if not _says_structured(headers) and (not _is_envelope(document) or _is_binary(headers)):
        return [document]
    events = document if isinstance(document, list) else [document]
    return [data for event in events if isinstance(event, dict) for data in _all_data(event)]


def read_loosely(value: bytes, mark: bytes = NUL) -> Any:
    """Parse JSON in order to look at it, even if the contract refuses it. Raises ValueError if it cannot be parsed."""
    return from_json(without_lone_surrogates(value, mark))


def _is_envelope(document: Any) -> bool:
    return isinstance(document, dict) and "specversion" in document


def _says_structured(headers: Headers) -> bool:
    return _media_type(headers).startswith(_MEDIA_TYPE)


def _is_binary(headers: Headers) -> bool:
    return any(name.lower() == "ce_specversion" for name, _ in headers)


def _media_type(headers: Headers) -> bytes:
    """Return the `content-type` without its parameters, in lower case (RFC 9110 section 8.3.1)."""
    held = [value for name, value in headers if name.lower() == "content-type"]
    return (held[-1] or b"").split(b";", 1)[0].strip().lower() if held else b""


def _binary(value: bytes, headers: Headers, read_json: ReadJson) -> tuple[dict[str, Any], Any]:
    data = read_json(value)
    held = ((_READ.get(name.lower()), value) for name, value in headers)
    return {name: _text(name, value) for name, value in held if name is not None and value is not None}, data


def _text(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ValueError(f"ce_{name}: must be UTF-8") from None


def _structured(value: bytes, headers: Headers, read_json: ReadJson) -> tuple[dict[str, Any], Any]:
    media_type = _media_type(headers)
    if media_type not in _STRUCTURED_MEDIA_TYPES:
        named = media_type.decode(errors="backslashreplace")
        raise ValueError(f"content-type: {named} is unknown, send each event as application/cloudevents+json")
    event = read_json(value)
    data = _data(event, read_json)
    return event, data


def _data(event: Any, read_json: ReadJson) -> Any:
    if not isinstance(event, dict):
        raise ValueError("a CloudEvent in structured mode must be a JSON object")  # noqa: TRY004 - see above
    encoded = event.get("data_base64")
    if encoded is None:
        return event.get("data")
    if event.get("data") is not None:
        raise ValueError("data and data_base64: only one of them may be there")
    return read_json(_decoded(encoded))


def _all_data(event: dict[str, Any]) -> Iterator[Any]:
    yield event.get("data")
    try:
        yield read_loosely(_decoded(event.get("data_base64")))
    except ValueError:
        return


def _decoded(encoded: Any) -> bytes:
    try:
        return b64decode(encoded, validate=True)
    except (ValueError, TypeError):
        raise ValueError("data_base64: must be a text in Base64") from None


def _agree(outer: Any, data: dict[str, Any], attribute: str, field: str, meaning: Callable[[Any], Any]) -> None:
    """Copy the attribute into the data if the data has no such field. Raises ValueError if both exist and differ."""
    inner = data.get(field)
    if outer is None:
        return
    if inner is None:
        data[field] = outer
    elif meaning(outer) is None or meaning(outer) != meaning(inner):
        raise ValueError(f"{attribute} and {field} differ, or one of them is invalid")


def _uuid(value: Any) -> bytes | None:
    return parse_uuid(value) if is_uuid(value) else None


def _time(value: Any) -> int | None:
    try:
        return parse_time(value) if is_time(value) else None
    except ValueError:
        return None
