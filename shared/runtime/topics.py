"""Our topics: made as the ledger needs them, and checked at every start, for a wrong one loses money in silence."""

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
# Records above 64 KiB are quarantined with their bytes, so the topic takes them; a producer's batch may hold many
# records. This is Kafka's own default, and below what a fetch of ours asks for (2 MiB).
_LARGEST_BATCH_BYTES = 1_048_588


class TopicsDoNotFitError(CannotGoOnError):
    """A topic is not as the ledger needs it: going on would lose records or state."""


@dataclass(frozen=True)
class _Topic:
    """A topic as it is: what the broker says of it. `configs` is empty where it says nothing."""

    name: str
    partitions: int
    replicas: int
    configs: dict[str, str]


async def ensure_topics(settings: Settings) -> None:
    """Create the topics that are missing, each with a partition for every shard, and check those that are there.

    Raises:
        TopicsDoNotFitError: one is not as it must be; the message says what it is, what it must be, and how to do that.
        BadSettingError, CannotGoOnError: as `start_client`.

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
            raise TopicsDoNotFitError(f"topic {name} is missing, or hidden from this user: 'drawdown migrate' makes it")
        if code and error is not TopicAlreadyExistsError:  # Another process may have been quicker.
            raise error(f"topic {name}")


def _configs(name: str, replicas: int, settings: Settings) -> dict[str, str]:
    """How a topic is made."""
    configs = {
        # One broker may be away and no acknowledged record is lost with another.
        "min.insync.replicas": str(max(1, replicas - 1)),
        "unclean.leader.election.enable": "false",
        "max.message.bytes": str(_LARGEST_BATCH_BYTES),
    }
    if name == DELIVERY_SIGNALS:
        # A new subscriber reads a day of signals and the last one of every entity, not the signals of years.
        return {**configs, "cleanup.policy": "compact", "max.compaction.lag.ms": str(_DAY_MS)}
    return {
        **configs,
        "cleanup.policy": "delete",
        "retention.ms": str(_retention_ms(settings)),
        "retention.bytes": "-1",
        # Counted from when a record came, whatever its producer's clock says.
        "message.timestamp.type": "LogAppendTime",
    }


def _retention_ms(settings: Settings) -> int:
    """As long as events are young enough to be charged: after a longer outage what is gone would be refused anyway."""
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
    """The topics' configurations by name; the embedded broker gives some of them and refuses none."""
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
            f"has {topic.partitions} partitions, and DRAWDOWN_SHARDS is {settings.shards}: they must be the same, "
            "and a ledger keeps the number it began with"
        )
    for demand in _demands(topic, settings):
        value = topic.configs.get(demand.config)
        if value is not None and not demand.is_met(value):
            yield (
                f"{demand.config} is {value}, so {demand.danger}; 'kafka-configs.sh --bootstrap-server "
                f"{settings.kafka_bootstrap_servers} --alter --topic {topic.name} --add-config "
                f"{demand.config}={demand.right}' sets it right"
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
        f"with {topic.replicas} replicas records are lost with one broker, or none is taken",
    )
    yield demand(
        "unclean.leader.election.enable",
        lambda value: value == "false",
        "a replica that lags may lead, and what was acknowledged is gone",
    )
    if topic.name == DELIVERY_SIGNALS:
        yield demand("cleanup.policy", lambda value: value == "compact", "new subscribers would miss older pauses")
    else:
        yield demand("cleanup.policy", lambda value: value == "delete", "records of the same key would be lost")
    if topic.name in CONSUMED:
        yield demand(
            "retention.ms",
            lambda value: int(value) == -1 or int(value) >= _retention_ms(settings),
            f"records go before the {settings.deduplication_days} days in which they can be charged have passed",
        )
        yield demand("retention.bytes", lambda value: value == "-1", "a busy day's records go before they are read")
