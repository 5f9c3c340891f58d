"""From Kafka's bytes to what the rules take, one record at a time.

A record that cannot be decoded is quarantined with the reason and its bytes; it never stops the rest. This is the hot
path: one prepared validator, no framework.
"""

import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from services.allocation.cloudevents import is_binary, is_structured, plain_form
from shared.contracts.commands import FINANCE_COMMAND, command_content, command_meaning
from shared.contracts.fields import parse_time, parse_uuid
from shared.contracts.spend import SPEND_EVENT
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
    headers: Sequence[tuple[str, bytes]]
    forwarded_id: int | None = None

    def headers_json(self) -> list[list[str]] | None:
        """The headers as `[[name, base64 value], …]`."""
        if not self.headers:
            return None
        return [[printable(name), b64encode(value or b"").decode()] for name, value in self.headers]


@dataclass(slots=True)
class Fault:
    """Why a record is quarantined: the contract's reason and a sentence."""

    reason: str
    detail: str


@dataclass(slots=True)
class Command:
    """A finance command: its content as it came, what it means to the rules, and its id's 16 bytes."""

    id: bytes
    content: dict[str, Any]
    meaning: dict[str, Any]


_validate_event = SPEND_EVENT.validator.validate_json


def decode_event(value: bytes | None, headers: Sequence[tuple[str, bytes]]) -> Event | Fault:
    """A spend or reversal, plain or as a CloudEvent, or why it is none."""
    if value is None:
        return Fault("malformed", "the record has no value")
    if len(value) > LARGEST_RECORD_BYTES:
        return Fault("too_large", f"the record has {len(value)} bytes, {LARGEST_RECORD_BYTES} are allowed")
    if headers and is_binary(headers):
        return _decode_cloud_event(value, headers)
    try:
        event = _validate_event(value)
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
    except ValidationError as error:
        if is_structured(value):
            return _decode_cloud_event(value, headers)
        return _fault_of(error, value)
    except (ValueError, OverflowError) as error:
        return Fault("invalid", f"occurred_at: {error}"[:_LONGEST_DETAIL])


def decode_command(value: bytes | None) -> Command | Fault:
    """A finance command, or why it is none."""
    if value is None:
        return Fault("malformed", "the record has no value")
    if len(value) > LARGEST_RECORD_BYTES:
        return Fault("too_large", f"the record has {len(value)} bytes, {LARGEST_RECORD_BYTES} are allowed")
    try:
        content = command_content(FINANCE_COMMAND.validate_json(value))
        return Command(parse_uuid(content["command_id"]), content, command_meaning(content))
    except ValidationError as error:
        return _fault_of(error, value)
    except (ValueError, OverflowError) as error:
        return Fault("invalid", str(error)[:_LONGEST_DETAIL])


def business_center_of(value: bytes | None) -> str | None:
    """The Business Center that a quarantined record names, where it can be read."""
    try:
        named = _CENTER.validate_json(value or b"")["business_center_id"]
    except (ValidationError, KeyError):
        return None
    return printable(named)[:64] if isinstance(named, str) else None


_CENTER: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


def _decode_cloud_event(value: bytes, headers: Sequence[tuple[str, bytes]]) -> Event | Fault:
    try:
        return decode_event(plain_form(value, headers), ())
    except ValidationError as error:
        return _fault_of(error, value)
    except (ValueError, OverflowError) as error:
        return Fault("invalid", str(error)[:_LONGEST_DETAIL])


def _fault_of(error: ValidationError, value: bytes) -> Fault:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return Fault("malformed", printable(first["msg"])[:_LONGEST_DETAIL])
    if _has_no_json_number(value):
        return Fault("malformed", "Invalid JSON: NaN and Infinity are no JSON")
    place = ".".join(str(part) for part in first["loc"])
    return Fault("invalid", printable(f"{place}: {first['msg']}" if place else first["msg"])[:_LONGEST_DETAIL])


def _has_no_json_number(value: bytes) -> bool:
    """The validator reads NaN and Infinity, which JSON does not have."""
    try:
        json.loads(value, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return True
    return False


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def printable(text: str) -> str:
    """The text without anything that PostgreSQL refuses: NUL and lone surrogates are shown as escapes."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
