"""Quotas of Kafka's users on bytes a second and on a broker's time (KIP-13, KIP-124; set with KIP-546).

Kafka delays a user above its quota, and refuses nothing. aiokafka has neither of the requests.
"""

from collections.abc import Mapping
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, NoError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Float64,
    Int8,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

Quotas = Mapping[str, float]  # by the quota's name
PRODUCER_RATE = "producer_byte_rate"  # bytes a second, at each broker
BUSY_RATE = "request_percentage"  # of the time of one of a broker's threads
_USER = "user"
_ANY_NAME = 2


async def quotas_of(admin: AIOKafkaAdminClient) -> dict[str, dict[str, float]]:
    """Return the quotas of every user that has any. Raises KafkaError."""
    answer = await admin._send_request(_DescribeClientQuotasRequest())
    raise_for(answer.error_code, answer.error_message)
    return {
        entity[0][1]: {name: value for name, value, _ in values}
        for entity, values, _ in answer.entries or ()
        if len(entity) == 1 and entity[0][1] is not None
    }


async def set_quotas(admin: AIOKafkaAdminClient, wanted: Mapping[str, Quotas]) -> None:
    """Set each user's quotas, and remove its other ones. Idempotent. Raises KafkaError."""
    held = await quotas_of(admin)
    changes = {user: change for user, quotas in wanted.items() if (change := _change(held.get(user, {}), quotas))}
    if not changes:
        return
    answer = await admin._send_request(_AlterClientQuotasRequest(changes))
    for code, message, entity, _ in answer.entries:
        raise_for(code, f"quota of {entity[0][1]}: {message}")


def _change(held: Quotas, wanted: Quotas) -> dict[str, float | None]:
    """Return the quotas to set, and those to remove, whose value is None."""
    surplus: dict[str, float | None] = dict.fromkeys(held.keys() - wanted.keys())
    return surplus | {name: value for name, value in wanted.items() if held.get(name) != value}


def raise_for(code: int, message: str | None) -> None:
    """Raise the KafkaError for a response's code, unless the code means success."""
    error: type[KafkaError] = for_code(code)
    if error is not NoError:
        raise error(message)


_ENTITY = CompactArray(
    ("entity_type", CompactString("utf-8")), ("entity_name", CompactString("utf-8")), ("tags", TaggedFields)
)


class _DescribeClientQuotasResponse_v1(Response):  # type: ignore[misc]  # noqa: N801
    API_KEY = 48
    API_VERSION = 1
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("error_message", CompactString("utf-8")),
        (
            "entries",
            CompactArray(
                ("entity", _ENTITY),
                ("values", CompactArray(("key", CompactString("utf-8")), ("value", Float64), ("tags", TaggedFields))),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _DescribeClientQuotasRequest_v1(RequestStruct):  # type: ignore[misc]  # noqa: N801
    API_KEY = 48
    API_VERSION = 1
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _DescribeClientQuotasResponse_v1
    SCHEMA = Schema(
        (
            "components",
            CompactArray(
                ("entity_type", CompactString("utf-8")),
                ("match_type", Int8),
                ("match", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("strict", Boolean),
        ("tags", TaggedFields),
    )


class _DescribeClientQuotasRequest(Request[_DescribeClientQuotasRequest_v1]):  # type: ignore[misc]
    """Asks for the quotas of all named users, with any client id."""

    API_KEY = 48

    def build(self, struct: type[RequestStruct]) -> RequestStruct:
        return struct([(_USER, _ANY_NAME, None, {})], True, {})


class _AlterClientQuotasResponse_v1(Response):  # type: ignore[misc]  # noqa: N801
    API_KEY = 49
    API_VERSION = 1
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "entries",
            CompactArray(
                ("error_code", Int16),
                ("error_message", CompactString("utf-8")),
                ("entity", _ENTITY),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _AlterClientQuotasRequest_v1(RequestStruct):  # type: ignore[misc]  # noqa: N801
    API_KEY = 49
    API_VERSION = 1
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _AlterClientQuotasResponse_v1
    SCHEMA = Schema(
        (
            "entries",
            CompactArray(
                ("entity", _ENTITY),
                (
                    "ops",
                    CompactArray(
                        ("key", CompactString("utf-8")), ("value", Float64), ("remove", Boolean), ("tags", TaggedFields)
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("validate_only", Boolean),
        ("tags", TaggedFields),
    )


class _AlterClientQuotasRequest(Request[_AlterClientQuotasRequest_v1]):  # type: ignore[misc]
    API_KEY = 49

    def __init__(self, changes: Mapping[str, Mapping[str, float | None]]) -> None:
        self._changes = changes

    def build(self, struct: type[RequestStruct]) -> RequestStruct:
        entries: list[Any] = [
            ([(_USER, user, {})], [(name, value or 0.0, value is None, {}) for name, value in change.items()], {})
            for user, change in self._changes.items()
        ]
        return struct(entries, False, {})
