"""From Kafka's bytes to what the rules take, one record at a time.

A record that cannot be decoded is quarantined with the reason and its bytes; it never stops the rest. This is the hot
path: one prepared validator, no framework.
"""

from base64 import b64encode
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import from_json

from services.allocation.cloudevents import STRUCTURED, Headers, data_of, is_cloud_event, is_structured, plain_form
from shared.contracts.commands import FINANCE_COMMAND, command_content, command_meaning
from shared.contracts.fields import parse_time, parse_uuid
from shared.contracts.spend import SPEND_EVENT
from shared.contracts.strict_json import MalformedError, refusal
from shared.rules.money import parse_amount
from shared.rules.shard import Event

LARGEST_RECORD_BYTES: Final = 64 * 1024
_LONGEST_DETAIL: Final = 500


@dataclass(slots=True)
class Raw:
    """A record as it came, wherever it came from; `forwarded_id` if another shard, or a replay, passed it on."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    forwarded_id: int | None = None

    def headers_json(self) -> list[list[str | None]] | None:
        """The headers as `[[name, base64 value or null], …]`."""
        if not self.headers:
            return None
        return [[printable(name), None if value is None else b64encode(value).decode()] for name, value in self.headers]


@dataclass(slots=True)
class Fault:
    """Why a record is quarantined: the contract's reason and a sentence; `error` where it should not have happened."""

    reason: str
    detail: str
    error: Exception | None = field(default=None, compare=False)


@dataclass(slots=True)
class Command:
    """A finance command: its content as it came, what it means to the rules, and its id's 16 bytes."""

    id: bytes
    content: dict[str, Any]
    meaning: dict[str, Any]


_validate_event = SPEND_EVENT.validator.validate_json
_validate_plain_form = SPEND_EVENT.validator.validate_python
# No shorter event has room for nesting beyond the bound beside its eight fields.
_ROOM_FOR_NESTING_BYTES: Final = 448
_NO_VALUE: Final = Fault("malformed", "the record has no value")


def decode_event(value: bytes | None, headers: Headers) -> Event | Fault:
    """A spend or reversal, plain or as a CloudEvent, or why it is none. Raises nothing, whatever the bytes are."""
    try:
        if value is None:
            return _NO_VALUE
        size = len(value)
        if size > LARGEST_RECORD_BYTES:
            return _too_large(size)
        if headers and is_cloud_event(headers):
            event = _validate_plain_form(plain_form(value, headers))
        else:
            event = _validate_event(value)
            # NaN and Infinity need these letters (N, I), and a ninth member to stand in: all eight of a spend are texts
            # without commas. So next to no event is looked at twice.
            if ((78 in value or 73 in value) and value.count(b",") > 7) or size > _ROOM_FOR_NESTING_BYTES:
                refused = refusal(value)
                if refused is not None:
                    return Fault("malformed", f"Invalid JSON: {refused}")
        amount = parse_amount(event["amount"])
        if amount <= 0:
            return Fault("invalid", "amount: must be above zero")
        reverses = reason = None
        if event["type"] == "reversal":
            reverses, reason = parse_uuid(event["reverses"]), event.get("reason")
            if reason is not None and "\0" in reason:
                return Fault("invalid", "reason: holds a NUL character")
        return (
            parse_uuid(event["event_id"]),
            event["business_center_id"],
            event["ad_account_id"],
            event["campaign_id"],
            amount,
            event["currency"],
            parse_time(event["occurred_at"]),
            reverses,
            reason,
        )
    except Exception as error:
        return _refused_event(error, value, headers)


def decode_command(value: bytes | None) -> Command | Fault:
    """A finance command, or why it is none. Raises nothing, whatever the bytes are."""
    try:
        if value is None:
            return _NO_VALUE
        if len(value) > LARGEST_RECORD_BYTES:
            return _too_large(len(value))
        command = FINANCE_COMMAND.validate_json(value)
        refused = refusal(value)
        if refused is not None:
            return Fault("malformed", f"Invalid JSON: {refused}")
        content = command_content(command)
        return Command(parse_uuid(content["command_id"]), content, command_meaning(content))
    except Exception as error:
        return _refused(error, value)


def business_center_of(value: bytes | None, headers: Headers) -> str | None:
    """The Business Center that a quarantined event names, where the decoder would have read it."""
    try:
        return _named_center(data_of(value or b"", headers))
    except ValueError:
        return None


def business_center_of_command(value: bytes | None) -> str | None:
    """The Business Center that a quarantined command names."""
    try:
        return _named_center(from_json(value or b""))
    except ValueError:
        return None


def _named_center(document: Any) -> str | None:
    named = document.get("business_center_id") if isinstance(document, dict) else None
    return printable(named)[:64] if isinstance(named, str) else None


def _too_large(size: int) -> Fault:
    return Fault("too_large", f"the record has {size} bytes, {LARGEST_RECORD_BYTES} are allowed")


def _refused_event(error: Exception, value: bytes | None, headers: Headers) -> Event | Fault:
    """What is no plain event may be a CloudEvent whose headers do not say so."""
    fault = _refused(error, value)
    if fault.reason == "invalid" and not is_cloud_event(headers) and is_structured(value or b""):
        return decode_event(value, STRUCTURED)
    return fault


def _refused(error: Exception, value: bytes | None) -> Fault:
    """Why decoding ended with this error; `internal_error` for one that should not happen."""
    try:
        if isinstance(error, ValidationError):
            return _not_valid(error, value or b"")
    except Exception as unexpected:
        error = unexpected
    if isinstance(error, MalformedError):
        return _fault("malformed", str(error))
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
        return _fault("invalid", str(error))
    fault = _fault("internal_error", f"{type(error).__name__}: {error}")
    fault.error = error
    return fault


def _not_valid(error: ValidationError, value: bytes) -> Fault:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return _fault("malformed", first["msg"])
    refused = refusal(value)
    if refused is not None:
        return Fault("malformed", f"Invalid JSON: {refused}")
    place = ".".join(str(part) for part in first["loc"])
    return _fault("invalid", f"{place}: {first['msg']}" if place else first["msg"])


def _fault(reason: str, text: str) -> Fault:
    return Fault(reason, printable(text)[:_LONGEST_DETAIL])


def printable(text: str) -> str:
    """The text without anything that PostgreSQL refuses: NUL and lone surrogates are shown as escapes."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
