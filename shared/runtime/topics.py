"""Our topics: created as the ledger needs them, and checked at every start, because a wrong one loses money."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import TopicAlreadyExistsError, TopicAuthorizationFailedError, for_code

from shared.runtime.errors import CannotGoOnError
from shared.runtime.kafka import (
    CONSUMED,
    DELIVERY_SIGNALS,
    TOPICS,
    start_client,
    stop_client,
    until_kafka_answers,
)
from shared.runtime.settings import Settings

__all__ = ["TopicsDoNotFitError", "ensure_topics"]

_REPLICAS = 3  # or as many as there are brokers
_DAY_MS = 86_400_000
# Records above 64 KiB are quarantined with their bytes, so the topic must accept them; a producer's batch may hold many
# records. This is Kafka's own default, and less than what our consumers fetch (2 MiB).
_LARGEST_BATCH_BYTES = 1_048_588


class TopicsDoNotFitError(CannotGoOnError):
    """A topic is not configured as the ledger needs it; continuing would lose records or state."""


@dataclass(frozen=True)
class _Topic:
    """A topic as the broker describes it. `configs` is empty if the broker returns none."""

    name: str
    partitions: int
    replicas: int
    configs: dict[str, str]


async def ensure_topics(settings: Settings) -> None:
    """Create missing topics, each with a partition for every shard, and check the existing ones.

    Raises:
        TopicsDoNotFitError: a topic is misconfigured; the message says how, and which command corrects it.
        BadSettingError, CannotGoOnError: like `start_client`.

    """

    async def attempt() -> list[_Topic]:
        admin = await start_client(settings, AIOKafkaAdminClient)
        try:
            present = set(await admin.list_topics())
            missing = [topic for topic in TOPICS if topic not in present]
            if missing:
                await _create(admin, missing, settings)
            return await _describe(admin)
        finally:
            await stop_client(admin)

    for topic in await until_kafka_answers(settings, attempt):
        for problem in _problems(topic, settings):
            raise TopicsDoNotFitError(f"topic {topic.name}: {problem}")


async def _create(admin: AIOKafkaAdminClient, topics: list[str], settings: Settings) -> None:
    cluster = await admin.describe_cluster()
    replicas = min(_REPLICAS, len(cluster["brokers"]))
    response = await admin.create_topics(
        [NewTopic(name, settings.shards, replicas, topic_configs=_configs(name, replicas, settings)) for name in topics]
    )
    for name, code, *_ in response.topic_errors:
        error = for_code(code)
        if error is TopicAuthorizationFailedError:
            raise TopicsDoNotFitError(
                f"topic {name} is missing, or hidden from this user: 'drawdown migrate' creates it"
            )
        if code and error is not TopicAlreadyExistsError:  # Another process may have been faster.
            raise error(f"topic {name}")


def _configs(name: str, replicas: int, settings: Settings) -> dict[str, str]:
    """Return the configuration with which a topic is created."""
    configs = {
        # One broker may be down; losing another one then loses no acknowledged record.
        "min.insync.replicas": str(max(1, replicas - 1)),
        "unclean.leader.election.enable": "false",
        "max.message.bytes": str(_LARGEST_BATCH_BYTES),
    }
    if name == DELIVERY_SIGNALS:
        # A new subscriber reads one day of signals and the last one of every entity, not those of years.
        return {**configs, "cleanup.policy": "compact", "max.compaction.lag.ms": str(_DAY_MS)}
    return {
        **configs,
        "cleanup.policy": "delete",
        "retention.ms": str(_retention_ms(settings)),
        "retention.bytes": "-1",
        # Retention counts from a record's arrival, whatever its producer's clock says.
        "message.timestamp.type": "LogAppendTime",
    }


def _retention_ms(settings: Settings) -> int:
    """Return how long an event can still be charged. Losing an older one is harmless, because it would be refused."""
    return settings.deduplication_days * _DAY_MS


async def _describe(admin: AIOKafkaAdminClient) -> list[_Topic]:
    configs = await _describe_configs(admin)
    described = await admin.describe_topics(list(TOPICS))
    return [
        _Topic(
            topic["topic"],
            len(topic["partitions"]),
            min((len(partition["replicas"]) for partition in topic["partitions"]), default=0),
            configs.get(topic["topic"], {}),
        )
        for topic in described
    ]


async def _describe_configs(admin: AIOKafkaAdminClient) -> dict[str, dict[str, str]]:
    """Return the topics' configurations by name. The embedded broker returns only some."""
    asked = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in TOPICS]
    responses = await admin.describe_configs(asked)
    configs: dict[str, dict[str, str]] = {}
    for code, _, _, name, entries in (resource for response in responses for resource in response.resources):
        error = for_code(code)
        if error is TopicAuthorizationFailedError:
            raise TopicsDoNotFitError(f"topic {name}: this user needs the right to read its configuration")
        if code:
            raise error(f"the configuration of topic {name}")
        configs[name] = {entry[0]: entry[1] for entry in entries}
    return configs


def _problems(topic: _Topic, settings: Settings) -> Iterator[str]:
    if topic.partitions != settings.shards:
        yield (
            f"has {topic.partitions} partitions, but DRAWDOWN_SHARDS is {settings.shards}: they must be equal, "
            "and a ledger keeps the number it began with"
        )
    for demand in _demands(topic, settings):
        value = topic.configs.get(demand.config)
        if value is not None and not demand.is_met(value):
            yield (
                f"{demand.config} is {value}, so {demand.danger}; 'kafka-configs.sh --bootstrap-server "
                f"{settings.kafka_bootstrap_servers} --alter --topic {topic.name} --add-config "
                f"{demand.config}={demand.right}' corrects it"
            )


@dataclass(frozen=True)
class _Demand:
    config: str
    is_met: Callable[[str], bool]
    right: str
    danger: str


def _demands(topic: _Topic, settings: Settings) -> Iterator[_Demand]:
    right = _configs(topic.name, topic.replicas, settings)
    fewest = 2 if topic.replicas >= _REPLICAS else 1

    def demand(config: str, is_met: Callable[[str], bool], danger: str) -> _Demand:
        return _Demand(config, is_met, right[config], danger)

    yield demand(
        "min.insync.replicas",
        lambda value: fewest <= int(value) <= topic.replicas,
        f"with {topic.replicas} replicas, records are lost with one broker, or none is accepted",
    )
    yield demand(
        "unclean.leader.election.enable",
        lambda value: value == "false",
        "a lagging replica may become leader, and acknowledged records are lost",
    )
    if topic.name == DELIVERY_SIGNALS:
        yield demand("cleanup.policy", lambda value: value == "compact", "new subscribers would miss older pauses")
    else:
        yield demand("cleanup.policy", lambda value: value == "delete", "records of the same key would be lost")
    if topic.name in CONSUMED:
        yield demand(
            "retention.ms",
            lambda value: int(value) == -1 or int(value) >= _retention_ms(settings),
            f"records are deleted before the {settings.deduplication_days} days in which they can be charged are over",
        )
        yield demand(
            "retention.bytes", lambda value: value == "-1", "a busy day's records are deleted before they are read"
        )
