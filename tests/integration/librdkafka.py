"""A client that is not ours: librdkafka, as `confluent-kafka` wraps it."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from shared.runtime.settings import Settings

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
_SECONDS = 60.0


def configuration(settings: Settings) -> dict[str, str]:
    """Return the options with which librdkafka connects to the broker of these settings."""
    found = {
        "bootstrap.servers": settings.kafka_bootstrap_servers,
        "security.protocol": settings.kafka_security,
    }
    if settings.kafka_ca_file:
        found["ssl.ca.location"] = str(settings.kafka_ca_file)
    if settings.kafka_username and settings.kafka_password_file:
        found["sasl.mechanism"] = settings.kafka_sasl_mechanism
        found["sasl.username"] = settings.kafka_username
        found["sasl.password"] = settings.kafka_password_file.read_text().strip()
    return found


def make_producer(settings: Settings, **options: Any) -> Producer:
    """Return a producer. A dot in an option's name is written as `_`."""
    return Producer({**configuration(settings), **{name.replace("_", "."): each for name, each in options.items()}})


def produce(producer: Producer, topic: str, records: Iterable[tuple[bytes, bytes]]) -> None:
    """Send keys and values and wait until all are acknowledged. Raise AssertionError if one is not."""
    failures: list[str] = []

    def told(error: object, _message: object) -> None:
        if error is not None:
            failures.append(str(error))

    for key, value in records:
        producer.produce(topic, value, key, on_delivery=told)
    left = producer.flush(_SECONDS)
    assert (left, failures) == (0, [])


async def compress_in_the_topic(settings: Settings, topic: str, codec: str) -> None:
    """Let the broker itself compress the topic's batches (`compression.type`)."""
    await asyncio.to_thread(_alter, configuration(settings), topic, {"compression.type": codec})


def _alter(reached: Mapping[str, str], topic: str, values: Mapping[str, str]) -> None:
    entries = [ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in values.items()]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    admin = AdminClient(dict(reached))
    for future in admin.incremental_alter_configs([resource]).values():
        future.result(_SECONDS)
