"""Who may do what on a Kafka cluster: its users with their passwords, and the rights of each, the least it needs.

Run by a deployment against a listener on which we may do everything.
"""

import hashlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, NoError, for_code
from aiokafka.protocol.admin import CreateAclsRequest
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import CompactArray, CompactBytes, CompactString, Int8, Int16, Int32, Schema, TaggedFields

from shared.runtime.kafka import (
    DELIVERY_SIGNALS,
    FINANCE_COMMANDS,
    FINANCE_OUTCOMES,
    SPEND_EVENTS,
    TOPICS,
    start_client,
)
from shared.runtime.settings import BadSettingError, Settings

# As Kafka's protocol numbers them.
_READ, _WRITE, _CREATE, _DESCRIBE, _DESCRIBE_CONFIGS = 3, 4, 5, 8, 10
_TOPIC, _GROUP, _TRANSACTIONAL_ID = 2, 3, 5
_LITERAL, _PREFIXED = 3, 4
_ALLOW = 3
_SCRAM_SHA_512 = 2
_ITERATIONS = 8192

# Ours; and those who stand at either end: ad delivery, and what sends commands without the API.
_SERVICES: dict[str, dict[str, tuple[int, ...]]] = {
    "drawdown-migrate": dict.fromkeys(TOPICS, (_CREATE,)),
    "drawdown-allocation": {SPEND_EVENTS: (_READ,), FINANCE_COMMANDS: (_READ,), FINANCE_OUTCOMES: (_WRITE,)},
    "drawdown-signals": {DELIVERY_SIGNALS: (_WRITE, _READ)},  # It reads back what it publishes.
    "drawdown-api": {FINANCE_COMMANDS: (_WRITE,)},
}
_CLIENTS: dict[str, dict[str, tuple[int, ...]]] = {
    "ad-delivery": {SPEND_EVENTS: (_WRITE,), DELIVERY_SIGNALS: (_READ,)},
    "back-office": {FINANCE_COMMANDS: (_WRITE,), FINANCE_OUTCOMES: (_READ,)},
}
PRINCIPALS = (*_SERVICES, *_CLIENTS)


async def allow(settings: Settings, passwords: Path) -> None:
    """Let each principal in with the password in the file of its name, and give it its rights. Twice is as once.

    Raises:
        BadSettingError: a file of a password is missing.
        KafkaError: the cluster refuses.

    """
    users = [_user(name, _password_of(passwords / name)) for name in PRINCIPALS]
    admin = await start_client(settings, AIOKafkaAdminClient)
    try:
        answer = await admin._send_request(_AlterUserScramCredentialsRequest(users))
        for user, code, message, _ in answer.results:
            _raise_for(code, f"user {user}: {message}")
        for request in _rights():
            answer = await admin._send_request(request)
            for code, message in answer.creation_responses:
                _raise_for(code, message)
    finally:
        await admin.close()
    print(f"{len(PRINCIPALS)} users of Kafka have their passwords and rights")


def _rights() -> Iterator[CreateAclsRequest]:
    for name, grants in (*_SERVICES.items(), *_CLIENTS.items()):
        for topic, operations in grants.items():
            for operation in operations:
                yield _right(name, _TOPIC, topic, _LITERAL, operation)
    for name in _SERVICES:  # Each looks at its start whether the topics are as they must be.
        for topic in TOPICS:
            yield _right(name, _TOPIC, topic, _LITERAL, _DESCRIBE)
            yield _right(name, _TOPIC, topic, _LITERAL, _DESCRIBE_CONFIGS)
    for name in _CLIENTS:  # In consumer groups, and in transactions, whose ids begin with their name.
        yield _right(name, _GROUP, name, _PREFIXED, _READ)
        yield _right(name, _TRANSACTIONAL_ID, name, _PREFIXED, _WRITE)  # Kafka takes it for the right to describe too.


def _right(name: str, kind: int, resource: str, pattern: int, operation: int) -> CreateAclsRequest:
    return CreateAclsRequest(kind, resource, pattern, f"User:{name}", "*", operation, _ALLOW)


def _user(name: str, password: str) -> tuple[Any, ...]:
    """What the cluster keeps of a password (RFC 5802): a salt and the salted hash."""
    salt = secrets.token_bytes(32)
    salted = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    return (name, _SCRAM_SHA_512, _ITERATIONS, salt, salted, {})


def _password_of(file: Path) -> str:
    try:
        return file.read_text("utf-8").strip()
    except OSError as error:
        raise BadSettingError(f"{file}: the password of a Kafka user cannot be read: {error.strerror}") from None


def _raise_for(code: int, message: str | None) -> None:
    error: type[KafkaError] = for_code(code)
    if error is not NoError:
        raise error(message)


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
    """KIP-554: aiokafka does not know it."""

    API_KEY = 51

    def __init__(self, users: list[tuple[Any, ...]]) -> None:
        self._users = users

    def build(self, struct: type[RequestStruct]) -> RequestStruct:
        return struct([], self._users, {})
