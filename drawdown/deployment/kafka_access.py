"""Kafka's users: their passwords, rights and quotas.

A deployment runs this over a listener that allows everything.
"""

from collections.abc import Iterator
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest, DescribeAclsRequest

from drawdown.deployment.kafka_quotas import BUSY_RATE, PRODUCER_RATE, Quotas, quotas_of, raise_for, set_quotas
from drawdown.deployment.kafka_users import remove_users, set_passwords, users_of
from shared.runtime.kafka import (
    DELIVERY_SIGNALS,
    FINANCE_COMMANDS,
    FINANCE_OUTCOMES,
    SPEND_EVENTS,
    TOPICS,
    start_client,
    stop_client,
)
from shared.runtime.settings import BadSettingError, Settings

# The numbers in Kafka's protocol.
_READ, _WRITE, _CREATE, _DESCRIBE, _DESCRIBE_CONFIGS = 3, 4, 5, 8, 10
_TOPIC, _GROUP, _TRANSACTIONAL_ID = 2, 3, 5
_LITERAL, _PREFIXED = 3, 4
_ALLOW = 3
_ANY = 1

# A resource's type, name and pattern type; the principal, its host, the operation, and whether it is allowed.
Right = tuple[int, str, int, str, str, int, int]
_OF_SERVICES = "drawdown-"  # The prefix of the services' users; no other user may have it.

# Our services; and the clients outside: ad delivery, and a back office that sends commands without the API.
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
# Percent of one broker thread's time, because a client that only sends requests slows others down too.
_BUSY_CLIENT = 200
# Several times the most that each ever sends: they only publish what others have sent or decided.
_SERVICE_RATES = {
    "drawdown-migrate": 1_000_000,
    "drawdown-allocation": 20_000_000,
    "drawdown-signals": 20_000_000,
    "drawdown-api": 20_000_000,
}


async def allow(settings: Settings, passwords: Path) -> None:
    """Set the password, rights and quotas of each principal. Idempotent.

    Rights and quotas that the table above no longer has are removed, and so are users of former services. Other users
    of the cluster are left alone, and their names are printed.

    Args:
        settings: the address of the cluster.
        passwords: a folder with a file for each principal, named like it.

    Raises:
        BadSettingError: the file of a password is missing.
        KafkaError: the cluster refuses.

    """
    said = {name: _password_of(passwords / name) for name in PRINCIPALS}
    admin = await start_client(settings, AIOKafkaAdminClient)
    try:
        await set_passwords(admin, said)
        await set_rights(admin)
        await set_quotas(admin, quotas(settings))
        others = await _remove_leftovers(admin)
    finally:
        await stop_client(admin)
    print(f"{len(PRINCIPALS)} users of Kafka have their passwords, rights and quotas")
    if others:
        print(f"other users, left alone: {', '.join(sorted(others))}")


async def set_rights(admin: AIOKafkaAdminClient) -> None:
    """Give the principals in the table their rights. Remove all their other rights, and those of former services."""
    wanted, held = set(_rights()), await rights_of(admin)
    for right in sorted(wanted - held):
        answer = await admin._send_request(CreateAclsRequest(*right))
        for code, message in answer.creation_responses:
            raise_for(code, message)
    for right in sorted(each for each in held - wanted if _is_ours(each[3].removeprefix("User:"))):
        answer = await admin._send_request(DeleteAclsRequest(*right))
        for code, message, _ in answer.filter_responses:
            raise_for(code, message)


async def rights_of(admin: AIOKafkaAdminClient) -> set[Right]:
    """Return every right on the cluster. Raises KafkaError."""
    answer = await admin._send_request(DescribeAclsRequest(_ANY, None, _ANY, None, None, _ANY, _ANY))
    raise_for(answer.error_code, answer.error_message)
    return {(*resource, *right) for *resource, rights in answer.resources for right in rights}


async def _remove_leftovers(admin: AIOKafkaAdminClient) -> set[str]:
    """Remove users of former services; return the names of all other users with a password, a right or a quota."""
    quotas_held, users = await quotas_of(admin), await users_of(admin)
    rights = {right[3].removeprefix("User:") for right in await rights_of(admin)}
    others = {*quotas_held, *users, *rights} - set(PRINCIPALS)
    former = {name for name in others if _is_ours(name)}
    await remove_users(admin, sorted(former))
    await set_quotas(admin, {name: {} for name in former})
    return others - former


def _is_ours(name: str) -> bool:
    return name in PRINCIPALS or name.startswith(_OF_SERVICES)


def quotas(settings: Settings) -> dict[str, Quotas]:
    """Return each principal's quotas: bytes a second at each broker, and for clients a share of its threads' time."""
    rates = {
        "ad-delivery": settings.kafka_ad_delivery_bytes_per_second,
        "back-office": settings.kafka_back_office_bytes_per_second,
    }
    return {
        **{name: {PRODUCER_RATE: float(rate)} for name, rate in _SERVICE_RATES.items()},
        **{name: {PRODUCER_RATE: float(rate), BUSY_RATE: float(_BUSY_CLIENT)} for name, rate in rates.items()},
    }


def _rights() -> Iterator[Right]:
    for name, grants in (*_SERVICES.items(), *_CLIENTS.items()):
        for topic, operations in grants.items():
            for operation in operations:
                yield _right(name, _TOPIC, topic, _LITERAL, operation)
    for name in _SERVICES:  # Each checks at its start whether the topics are configured right.
        for topic in TOPICS:
            yield _right(name, _TOPIC, topic, _LITERAL, _DESCRIBE)
            yield _right(name, _TOPIC, topic, _LITERAL, _DESCRIBE_CONFIGS)
    for name in _CLIENTS:  # Their consumer groups and transactional ids begin with their name.
        yield _right(name, _GROUP, name, _PREFIXED, _READ)
        yield _right(name, _TRANSACTIONAL_ID, name, _PREFIXED, _WRITE)  # This includes the right to describe.


def _right(name: str, kind: int, resource: str, pattern: int, operation: int) -> Right:
    return kind, resource, pattern, f"User:{name}", "*", operation, _ALLOW


def _password_of(file: Path) -> str:
    try:
        return file.read_text("utf-8").strip()
    except OSError as error:
        raise BadSettingError(f"{file}: the password of a Kafka user cannot be read: {error.strerror}") from None
