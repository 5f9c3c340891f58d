"""The door of Kafka: logins, and the rights of each user."""

import asyncio
import contextlib
import secrets
import ssl
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiokafka.conn import create_conn
from aiokafka.protocol.metadata import MetadataRequest
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from shared.runtime.kafka import (
    DELIVERY_SIGNALS,
    FINANCE_COMMANDS,
    FINANCE_OUTCOMES,
    SPEND_EVENTS,
    connection_arguments,
)
from tests.integration.librdkafka import configuration
from tests.security.check import Check, require
from tests.security.records import batch
from tests.security.target import Target
from tests.security.wire import wire

_SECONDS = 15.0
_TIMEOUT_MS = 5_000
_FLOOD_BATCHES = 20
_TOPIC_REFUSED = 29  # TOPIC_AUTHORIZATION_FAILED
_API_VERSIONS = bytes.fromhex("0000000f0012000000000001000568656c6c6f")
_TOPICS = (SPEND_EVENTS, FINANCE_COMMANDS, FINANCE_OUTCOMES, DELIVERY_SIGNALS)
# The second is librdkafka's own error, because Kafka does not show it the topic.
_REFUSALS = ("AUTHORIZATION_FAILED", "_NOENT")
_WRITES = {"ad-delivery": {SPEND_EVENTS}, "back-office": {FINANCE_COMMANDS}}
_READS = {"ad-delivery": {DELIVERY_SIGNALS}, "back-office": {FINANCE_OUTCOMES}}


async def _gets_in(target: Target, user: str = "ad-delivery", **changes: Any) -> str | None:
    """Return Kafka's answer to a client that connects this way; None if it refuses or does not answer."""
    arguments = connection_arguments(target.kafka(user))
    host, _, port = arguments.pop("bootstrap_servers").rpartition(":")
    try:
        async with asyncio.timeout(_SECONDS):
            connection = await create_conn(host, int(port), request_timeout_ms=_TIMEOUT_MS, **{**arguments, **changes})
            try:
                answer = await connection.send(MetadataRequest([]))
            finally:
                connection.close()
    except Exception:
        return None
    return str(answer)[:80]


def _old_tls(target: Target) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=target.secrets / "tls" / "ca.pem")
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


async def strangers(target: Target) -> str:
    """Connect in every wrong way, and in the right way, to prove that the check works."""
    attempts: dict[str, dict[str, Any]] = {
        "without TLS": {"security_protocol": "SASL_PLAINTEXT", "ssl_context": None},
        "without TLS and name": {"security_protocol": "PLAINTEXT", "ssl_context": None},
        "with TLS and without a name": {"security_protocol": "SSL"},
        "with a wrong password": {"sasl_plain_password": "wrong"},
        "with an empty password": {"sasl_plain_password": ""},
        "as nobody": {"sasl_plain_username": "nobody"},
        "as the node itself": {"sasl_plain_username": "ANONYMOUS", "sasl_plain_password": ""},
        "by PLAIN": {"sasl_mechanism": "PLAIN"},
        "by SCRAM-SHA-256": {"sasl_mechanism": "SCRAM-SHA-256"},
        "with TLS of before 1.2": {"ssl_context": _old_tls(target)},
    }
    with _quiet():
        came = {what: await _gets_in(target, **changes) for what, changes in attempts.items()}
        right = await _gets_in(target)
    require(right is not None, "a correct login is refused as well, so the check proves nothing")
    let_in = {what: answer for what, answer in came.items() if answer is not None}
    require(not let_in, let_in)
    return f"{len(attempts)} ways lead nowhere"


@contextlib.contextmanager
def _quiet() -> Any:
    """Ignore Python's warnings about old versions of TLS, which are intended here."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        yield


async def writing(target: Target) -> str:
    """Write to every topic as each client; only writing to its own may succeed."""
    came, empty = [], batch([(b"nobody", b"{}", [])])
    for user, own in _WRITES.items():
        for topic in (*_TOPICS, "__consumer_offsets", f"{target.prefix}-nothing"):
            if topic in own:
                continue
            async with wire(target, user) as kafka:
                code, _ = await kafka.send(topic, 0, empty)
            came += [] if code == _TOPIC_REFUSED else [f"{user} writes {topic}: {code}"]
    require(not came, came)
    return "each writes to its own topic and to no other"


async def reading(target: Target) -> str:
    """Read every topic as each client; only reading its own may succeed."""
    came = []
    for user, own in _READS.items():
        for topic in (*_TOPICS, "__consumer_offsets"):
            async with wire(target, user) as kafka:
                code = await kafka.fetch(topic, 0)
            if (code == _TOPIC_REFUSED) is (topic in own):
                came.append(f"{user} and {topic}: {code}")
    require(not came, came)
    return "each reads its own topic and no other"


@dataclass(frozen=True)
class _Wish:
    """An administrative request, which is harmless even if it is granted."""

    what: str
    ask: Callable[[AdminClient, str], Mapping[Any, Any]]


def _configure(kind: ResourceType, name: str, admin: AdminClient, _prefix: str) -> Mapping[Any, Any]:
    entry = ConfigEntry("retention.ms", "604800000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(kind, name, incremental_configs=[entry])
    return admin.incremental_alter_configs([resource], validate_only=True)


def _right(prefix: str) -> AclBinding:
    return AclBinding(
        ResourceType.TOPIC, f"{prefix}-nothing", ResourcePatternType.LITERAL, f"User:{prefix}", "*",
        AclOperation.READ, AclPermissionType.ALLOW,
    )  # fmt: skip


def _password(prefix: str) -> UserScramCredentialUpsertion:
    return UserScramCredentialUpsertion(prefix, ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 8192), b"x" * 32)


_WISHES = (
    *(_Wish(f"configure {topic}", partial(_configure, ResourceType.TOPIC, topic)) for topic in _TOPICS),
    _Wish("configure the broker", partial(_configure, ResourceType.BROKER, "1")),
    _Wish(
        "make a topic", lambda admin, prefix: admin.create_topics([NewTopic(f"{prefix}-new", 1, 1)], validate_only=True)
    ),
    _Wish("delete a topic", lambda admin, prefix: admin.delete_topics([f"{prefix}-nothing"])),
    _Wish(
        "add partitions",
        lambda admin, _: admin.create_partitions([NewPartitions(SPEND_EVENTS, 64)], validate_only=True),
    ),
    _Wish("delete records", lambda admin, _: admin.delete_records([TopicPartition(SPEND_EVENTS, 0, 0)])),
    _Wish("give a right", lambda admin, prefix: admin.create_acls([_right(prefix)])),
    _Wish("set a password", lambda admin, prefix: admin.alter_user_scram_credentials([_password(prefix)])),
    _Wish("look at others' group", lambda admin, _: admin.describe_consumer_groups(["drawdown-allocation"])),
    _Wish("delete others' group", lambda admin, prefix: admin.delete_consumer_groups([f"drawdown-{prefix}"])),
    _Wish(
        "move others' offsets",
        lambda admin, prefix: admin.alter_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(f"drawdown-{prefix}", [TopicPartition(DELIVERY_SIGNALS, 0, 0)])]
        ),
    ),
)


async def administration(target: Target) -> str:
    """Send each administrative request as each client. They only validate, or concern things that do not exist."""
    granted = []
    for user in _WRITES:
        admin = AdminClient({**configuration(target.kafka(user))})
        for wish in _WISHES:
            came = await asyncio.to_thread(_answer, wish, admin, target.prefix)
            granted += [] if any(word in came for word in _REFUSALS) else [f"{user} may {wish.what}: {came}"]
    require(not granted, granted)
    return f"{len(_WISHES)} wishes of {len(_WRITES)} users, all refused"


def _answer(wish: _Wish, admin: AdminClient, prefix: str) -> str:
    try:
        for future in wish.ask(admin, prefix).values():
            future.result(_SECONDS)
    except KafkaException as error:
        return str(error.args[0].name())
    return "done"


async def quotas(target: Target) -> str:
    """As back-office, write as fast as possible."""
    written = batch([(b"nobody", secrets.token_bytes(900_000), ())])
    began = time.monotonic()
    async with wire(target, "back-office") as kafka:
        for _ in range(_FLOOD_BATCHES):
            code, _offset = await kafka.send(FINANCE_COMMANDS, 0, written)
            require(code == 0, f"Kafka refuses it: {code}")
    took, megabytes = time.monotonic() - began, _FLOOD_BATCHES * len(written) / 1e6
    require(kafka.held_back_ms > 0, f"{megabytes:.0f} MB in {took:.1f} s, and nobody holds it back")
    return f"{megabytes:.0f} MB in {took:.1f} s, and then it is held back for {kafka.held_back_ms / 1000:.1f} s"


async def plain_words(target: Target) -> str:
    """Speak Kafka's protocol without TLS to its TLS port."""
    reader, writer = await asyncio.open_connection("localhost", target.kafka_port)
    try:
        writer.write(_API_VERSIONS)
        async with asyncio.timeout(_SECONDS):
            answered = await reader.read(4_096)
    except (TimeoutError, ConnectionError):
        answered = b""
    finally:
        writer.close()
    require(not answered.startswith(b"\0\0"), f"it answers: {answered[:40]!r}")
    return "no answer in plain"


CHECKS = (
    Check("kafka", "plain", "Kafka's protocol without TLS", plain_words),
    Check("kafka", "strangers", "no name, a wrong one, a wrong password, other mechanisms, old TLS", strangers),
    Check("kafka", "writing", "writing to others' topics", writing),
    Check("kafka", "reading", "reading others' topics", reading),
    Check("kafka", "quotas", "more than a quota at once", quotas, is_quick=False),
    Check("kafka", "administration", "configurations, topics, records, rights, passwords, groups", administration),
)
