"""Kafka: the topics, which partition a key belongs to, and a producer that loses nothing."""

from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code
from aiokafka.partitioner import murmur2

from shared.runtime.retries import with_retries
from shared.runtime.settings import Settings

__all__ = [
    "DELIVERY_SIGNALS",
    "FINANCE_COMMANDS",
    "FINANCE_OUTCOMES",
    "SPEND_EVENTS",
    "TOPICS",
    "cluster_id",
    "create_producer",
    "ensure_topics",
    "murmur2_partition",
    "with_retries",
]

SPEND_EVENTS = "spend.events"
FINANCE_COMMANDS = "finance.commands"
FINANCE_OUTCOMES = "finance.outcomes"
DELIVERY_SIGNALS = "delivery.signals"
TOPICS = (SPEND_EVENTS, FINANCE_COMMANDS, FINANCE_OUTCOMES, DELIVERY_SIGNALS)

_TOPIC_CONFIGS: dict[str, dict[str, str]] = {DELIVERY_SIGNALS: {"cleanup.policy": "compact"}}
_REPLICAS = 3  # or as many as there are brokers
_AWAY = (KafkaError, OSError, TimeoutError)


class TopicsDoNotFitError(Exception):
    """A topic is there and has another number of partitions than the ledger has shards."""


def murmur2_partition(key: bytes, partitions: int) -> int:
    """The partition that Kafka's Java client gives a key: `toPositive(murmur2(key)) % partitions`."""
    positive: int = murmur2(key) & 0x7FFFFFFF
    return positive % partitions


async def cluster_id(bootstrap_servers: str) -> str:
    """The id of the cluster: offsets mean nothing without it. Waits for a broker that is away."""
    admin = await _admin(bootstrap_servers)
    try:
        cluster = await admin.describe_cluster()
    finally:
        await admin.close()
    return str(cluster["cluster_id"])


async def ensure_topics(settings: Settings) -> None:
    """Create the topics that are missing, each with a partition for every shard.

    Raises:
        TopicsDoNotFitError: a topic has another number of partitions.

    """
    admin = await _admin(settings.kafka_bootstrap_servers)
    try:
        present = set(await admin.list_topics())
        missing = [topic for topic in TOPICS if topic not in present]
        if missing:
            await _create(admin, missing, settings.shards)
        described = await admin.describe_topics(list(TOPICS))
    finally:
        await admin.close()
    for topic in described:
        partitions = len(topic["partitions"])
        if partitions != settings.shards:
            raise TopicsDoNotFitError(
                f"topic {topic['topic']} has {partitions} partitions, and DRAWDOWN_SHARDS is {settings.shards}: "
                "they must be the same, and a ledger keeps the number it began with"
            )


async def create_producer(settings: Settings, **overrides: Any) -> AIOKafkaProducer:
    """Start a producer that is acknowledged by all replicas, and idempotent where the broker can be.

    The embedded broker cannot; `kafka_idempotence` says it of others.

    Args:
        settings: where the broker is; one that is away is waited for (60 s).
        overrides: any argument of `AIOKafkaProducer`.

    """
    arguments: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_bootstrap_servers,
        "acks": "all",
        "enable_idempotence": settings.kafka_idempotence and not settings.kafka_is_embedded,
        **overrides,
    }

    async def attempt() -> AIOKafkaProducer:
        producer = AIOKafkaProducer(**arguments)
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        return producer

    return await with_retries(attempt, what=_where(settings.kafka_bootstrap_servers), errors=_AWAY)


async def _admin(bootstrap_servers: str) -> AIOKafkaAdminClient:
    async def attempt() -> AIOKafkaAdminClient:
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
        try:
            await admin.start()
        except BaseException:
            await admin.close()
            raise
        return admin

    return await with_retries(attempt, what=_where(bootstrap_servers), errors=_AWAY)


async def _create(admin: AIOKafkaAdminClient, topics: list[str], partitions: int) -> None:
    cluster = await admin.describe_cluster()
    replicas = min(_REPLICAS, len(cluster["brokers"]))
    response = await admin.create_topics(
        [NewTopic(topic, partitions, replicas, topic_configs=_TOPIC_CONFIGS.get(topic)) for topic in topics]
    )
    for topic, code, *_ in response.topic_errors:
        error = for_code(code)
        if code and error is not TopicAlreadyExistsError:  # Another process may have been quicker.
            raise error(f"topic {topic}")


def _where(bootstrap_servers: str) -> str:
    return f"Kafka at {bootstrap_servers}"
