"""Decoding one record: from Kafka's bytes to the event or command that the rules take.

A record that cannot be decoded is quarantined with the reason and its bytes; it never stops the others. This is on the
hot path, so it uses one prepared validator and no framework.
"""

from base64 import b64encode
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import from_json

from services.allocation.records.batch_bounds import LARGEST_VALUE_BYTES
from services.allocation.records.cloudevents import (
    STRUCTURED,
    Headers,
    ReadJson,
    all_data,
    data_of,
    is_cloud_event,
    is_structured,
    may_be_structured,
    plain_form,
    read_loosely,
)
from shared.contracts.commands import FINANCE_COMMAND, SentCommand, command_content, sent_command
from shared.contracts.fields import parse_time, parse_uuid
from shared.contracts.signatures import NO_KEYS, CommandKeys
from shared.contracts.spend import SPEND_EVENT, Reversal, Spend
from shared.contracts.strict_json import (
    LONE_SURROGATE,
    OTHER_MARK,
    MalformedError,
    read,
    read_around_lone_surrogates,
    refusal,
    validated,
    without_lone_surrogates,
    worded,
)
from shared.rules.events import Event
from shared.rules.money import parse_amount
from shared.rules.ways import API, TOPIC

_LONGEST_DETAIL: Final = 500


RecordId = tuple[int, int]


@dataclass(slots=True)
class Fault:
    """Why a record is quarantined: a reason of the contract and a sentence. `error` is set if it was unexpected."""

    reason: str
    detail: str
    error: Exception | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Cut:
    """Why a record or a whole batch is not decided, with the part that is kept: first bytes, size and SHA-256.

    `first_offset` is the first offset of a batch; its last one is the offset of the `Raw` that stands for it.
    """

    fault: Fault
    first_offset: int
    whole_bytes: int
    whole_sha256: bytes
    kept: bytes | None
    is_batch: bool = False


@dataclass(slots=True)
class Raw:
    """A record as it came, from Kafka or from the table of forwarded records.

    `forwarded_id` is set if another shard or a replay has passed it on. A record that is too large has a `cut` in place
    of its value. `replay_of` names the quarantined record of which it is a replay, by shard and sequence.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    forwarded_id: int | None = None
    cut: Cut | None = None
    replay_of: RecordId | None = None

    def headers_json(self) -> list[list[str | None]] | None:
        """Return the headers as `[[name, Base64 of the value or null], …]`; None if there are none."""
        if not self.headers:
            return None
        return [[printable(name), None if value is None else b64encode(value).decode()] for name, value in self.headers]


_validate_event = SPEND_EVENT.validator.validate_json
_validate_plain_form = SPEND_EVENT.validator.validate_python
# A shorter event has no room for its eight fields and for nesting beyond the bound.
_ROOM_FOR_NESTING_BYTES: Final = 448
NO_VALUE: Final = Fault("malformed", "the record has no value")


def decode_event(value: bytes | None, headers: Headers, read_json: ReadJson = read) -> Event | Fault:
    """Return a spend or reversal, plain or as a CloudEvent, or the fault of the record. Raises nothing.

    `read_json` reads a CloudEvent and its data.
    """
    try:
        if value is None:
            return NO_VALUE
        size = len(value)
        if size > LARGEST_VALUE_BYTES:
            return _too_large(size)
        if headers and is_cloud_event(headers):
            event = _validate_plain_form(plain_form(value, headers, read_json))
        else:
            event = _validate_event(value)
            # NaN and Infinity need the letter N or I, and a ninth member to hold them, because the eight of a spend
            # are texts without commas. So almost no event is read twice.
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
        return _refused_event(error, value or b"", headers, read_json)


def decode_command(value: bytes | None, headers: Headers = (), keys: CommandKeys = NO_KEYS) -> SentCommand | Fault:
    """Return a finance command, or the fault of the record. Raises nothing for any bytes.

    A command came by the API if one of these keys has signed it. A record with a wrong signature goes to quarantine, so
    that a sender that pretends to be the API is noticed.
    """
    try:
        if value is None:
            return NO_VALUE
        if len(value) > LARGEST_VALUE_BYTES:
            return _too_large(len(value))
        command = validated(FINANCE_COMMAND.validate_json, value)
        refused = refusal(value)
        if refused is not None:
            return Fault("malformed", f"Invalid JSON: {refused}")
        content = command_content(command)
        via = API if keys.have_signed(value, headers) else TOPIC
        return sent_command(content, via)
    except Exception as error:
        return _refused(error, value)


def business_center_of(value: bytes | None, headers: Headers) -> str | None:
    """Return the Business Center that a quarantined event names in the places where events have their data.

    None if it names several there.
    """
    try:
        named = {_named_center(data) for data in all_data(value or b"", headers)} - {None}
    except ValueError:
        return None
    return named.pop() if len(named) == 1 else None


def business_center_of_command(value: bytes | None) -> str | None:
    """Return the Business Center that a quarantined command names."""
    try:
        return _named_center(read_loosely(value or b""))
    except ValueError:
        return None


def center_of_event(record: Any) -> str | None:
    """Return the Business Center that a quarantined event names, as far as its bytes were kept."""
    cut = record.cut if isinstance(record, Raw) else None
    return _center_of_start(cut, record.headers) if cut else business_center_of(record.value, record.headers)


def center_of_command(raw: Raw) -> str | None:
    """Return the Business Center that a quarantined command names, as far as its bytes were kept."""
    return _center_of_start(raw.cut, ()) if raw.cut else business_center_of_command(raw.value)


def _center_of_start(cut: Cut, headers: Headers) -> str | None:
    """Return the center that the first bytes name; None for a CloudEvent, because its data may name another."""
    try:
        document = from_json(without_lone_surrogates(cut.kept or b""), allow_partial=True)
    except ValueError:
        return None
    return None if cut.is_batch or may_be_structured(document, headers) else _named_center(document)


def _named_center(document: Any) -> str | None:
    named = document.get("business_center_id") if isinstance(document, dict) else None
    return printable(named)[:64] if isinstance(named, str) else None


def _too_large(size: int) -> Fault:
    return Fault("too_large", f"the record has {size} bytes, {LARGEST_VALUE_BYTES} are allowed")


def _refused_event(error: Exception, value: bytes, headers: Headers, read_json: ReadJson) -> Event | Fault:
    """Return the fault of a record, or its event if it can be read in another way.

    A record that is no plain event may be a CloudEvent. One with a lone surrogate is read without it, unless a field of
    the contract holds it.
    """
    fault = _refused(error, value)
    if fault.reason == "invalid" and not is_cloud_event(headers) and is_structured(value):
        return decode_event(value, STRUCTURED, read_json)
    is_about_surrogate = fault.reason == "malformed" and LONE_SURROGATE in fault.detail
    if is_about_surrogate and read_json is read and not _is_in_known_field(value, headers):
        return decode_event(without_lone_surrogates(value), headers, read_around_lone_surrogates)
    return fault


def _is_in_known_field(value: bytes, headers: Headers) -> bool:
    """Return whether a field of the event's type holds a lone surrogate, so that two readings of it differ."""
    try:
        data, elsewise = data_of(value, headers), data_of(value, headers, OTHER_MARK)
    except ValueError:
        return False
    if not isinstance(data, dict) or not isinstance(elsewise, dict):
        return False
    known = (Spend if data.get("type") == "spend" else Reversal).__annotations__
    texts = ((data.get(name), elsewise.get(name)) for name in known)
    return any(isinstance(one, str) and one != other for one, other in texts)


def _refused(error: Exception, value: bytes | None) -> Fault:
    """Return the fault for an error of decoding; `internal_error` if the error is unexpected."""
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
        return _fault("malformed", worded(first["msg"]))
    refused = refusal(value)
    if refused is not None:
        return Fault("malformed", f"Invalid JSON: {refused}")
    place = ".".join(str(part) for part in first["loc"])
    return _fault("invalid", f"{place}: {first['msg']}" if place else first["msg"])


def _fault(reason: str, text: str) -> Fault:
    return Fault(reason, printable(text)[:_LONGEST_DETAIL])


def printable(text: str) -> str:
    """Return the text without characters that PostgreSQL refuses: NUL and lone surrogates become escapes."""
    if text.isascii() and "\0" not in text:  # nearly every text, and a batch may hold millions
        return text
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()
