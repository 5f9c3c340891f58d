"""Kafka's users and their SCRAM passwords (KIP-554). aiokafka has none of the requests."""

import hashlib
import secrets
from collections.abc import Collection, Mapping
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import CompactArray, CompactBytes, CompactString, Int8, Int16, Int32, Schema, TaggedFields

from drawdown.deployment.kafka_quotas import raise_for

_SCRAM_SHA_512 = 2
_ITERATIONS = 8192


async def users_of(admin: AIOKafkaAdminClient) -> dict[str, list[int]]:
    """Return every user that has a password, with its mechanisms. Raises KafkaError."""
    answer = await admin._send_request(_DescribeUserScramCredentialsRequest())
    raise_for(answer.error_code, answer.error_message)
    return {user: [mechanism for mechanism, _, _ in infos] for user, _, _, infos, _ in answer.results}


async def set_passwords(admin: AIOKafkaAdminClient, passwords: Mapping[str, str]) -> None:
    """Set the passwords of these users. Raises KafkaError."""
    await _alter(admin, [], [_user(name, password) for name, password in passwords.items()])


async def remove_users(admin: AIOKafkaAdminClient, names: Collection[str]) -> None:
    """Remove the passwords of these users, so that they can no longer log in. Raises KafkaError."""
    held = await users_of(admin)
    await _alter(admin, [(name, mechanism, {}) for name in names for mechanism in held.get(name, ())], [])


async def _alter(admin: AIOKafkaAdminClient, deletions: list[Any], upsertions: list[Any]) -> None:
    if deletions or upsertions:
        answer = await admin._send_request(_AlterUserScramCredentialsRequest(deletions, upsertions))
        for user, code, message, _ in answer.results:
            raise_for(code, f"user {user}: {message}")


def _user(name: str, password: str) -> tuple[Any, ...]:
    """Return what the cluster stores instead of a password (RFC 5802): a salt and the salted hash."""
    salt = secrets.token_bytes(32)
    salted = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    return (name, _SCRAM_SHA_512, _ITERATIONS, salt, salted, {})


class _AlterUserScramCredentialsResponse_v0(Response):  # type: ignore[misc]  # noqa: N801
    API_KEY = 51
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "results",
            CompactArray(
                ("user", CompactString("utf-8")),
                ("error_code", Int16),
                ("error_message", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _AlterUserScramCredentialsRequest_v0(RequestStruct):  # type: ignore[misc]  # noqa: N801
    API_KEY = 51
    API_VERSION = 0
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _AlterUserScramCredentialsResponse_v0
    SCHEMA = Schema(
        (
            "deletions",
            CompactArray(("name", CompactString("utf-8")), ("mechanism", Int8), ("tags", TaggedFields)),
        ),
        (
            "upsertions",
            CompactArray(
                ("name", CompactString("utf-8")),
                ("mechanism", Int8),
                ("iterations", Int32),
                ("salt", CompactBytes),
                ("salted_password", CompactBytes),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _AlterUserScramCredentialsRequest(Request[_AlterUserScramCredentialsRequest_v0]):  # type: ignore[misc]
    API_KEY = 51

    def __init__(self, deletions: list[Any], upsertions: list[Any]) -> None:
        self._deletions = deletions
        self._upsertions = upsertions

    def build(self, struct: type[RequestStruct]) -> RequestStruct:
        return struct(self._deletions, self._upsertions, {})


class _DescribeUserScramCredentialsResponse_v0(Response):  # type: ignore[misc]  # noqa: N801
    API_KEY = 50
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("error_message", CompactString("utf-8")),
        (
            "results",
            CompactArray(
                ("user", CompactString("utf-8")),
                ("error_code", Int16),
                ("error_message", CompactString("utf-8")),
                (
                    "credential_infos",
                    CompactArray(("mechanism", Int8), ("iterations", Int32), ("tags", TaggedFields)),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _DescribeUserScramCredentialsRequest_v0(RequestStruct):  # type: ignore[misc]  # noqa: N801
    API_KEY = 50
    API_VERSION = 0
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _DescribeUserScramCredentialsResponse_v0
    SCHEMA = Schema(
        ("users", CompactArray(("name", CompactString("utf-8")), ("tags", TaggedFields))), ("tags", TaggedFields)
    )


class _DescribeUserScramCredentialsRequest(Request[_DescribeUserScramCredentialsRequest_v0]):  # type: ignore[misc]
    """Asks for the credentials of all users."""

    API_KEY = 50

    def build(self, struct: type[RequestStruct]) -> RequestStruct:
        return struct(None, {})
