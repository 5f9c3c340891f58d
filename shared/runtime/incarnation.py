"""The identity of a cluster and its topics, without which an offset means nothing.

A topic that is deleted and created again starts at offset 0, under the same name in the same cluster. Since Kafka 2.8
brokers give each created topic a new id (KIP-516). aiokafka does not know that response yet, so it is described here.
"""

import asyncio
from base64 import urlsafe_b64encode
from contextlib import suppress
from typing import Any
from uuid import UUID

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import NoError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest_v5
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Schema, TaggedFields

from shared.runtime.kafka import UNAVAILABLE, start_client, stop_client, until_kafka_answers
from shared.runtime.settings import Settings

__all__ = ["incarnation", "is_same_incarnation", "wait_for_another_incarnation"]

WATCH_SECONDS = 2.0
_NO_ID = UUID(int=0)


async def incarnation(settings: Settings, *topics: str) -> str:
    """Return the cluster's id, followed by the topics' ids if the broker has any: `cluster topic=id topic=id`.

    Waits for a broker or a topic that is unavailable; raises like `start_client`.
    """

    async def attempt() -> str:
        admin = await start_client(settings, AIOKafkaAdminClient)
        try:
            return await _ask(admin, topics)
        finally:
            await stop_client(admin)

    return await until_kafka_answers(settings, attempt)


async def wait_for_another_incarnation(settings: Settings, known: str, *topics: str) -> str:
    """Send one request every two seconds; return the new incarnation once it differs from the known one.

    Raises like `start_client` if a broker or a topic stays unavailable.
    """
    now = known
    while now == known:
        admin = await start_client(settings, AIOKafkaAdminClient)
        try:
            with suppress(*UNAVAILABLE):
                while now == known:
                    await asyncio.sleep(WATCH_SECONDS)
                    now = await _ask(admin, topics)
        finally:
            await stop_client(admin)
        if now == known:
            now = await incarnation(settings, *topics)
    return now


def is_same_incarnation(known: str, present: str) -> bool:
    """Return whether offsets of the known incarnation are valid in the present one.

    A known incarnation may be the cluster's id alone, written when its topics had no ids.
    """
    return present == known or present.startswith(f"{known} ")


async def _ask(admin: AIOKafkaAdminClient, topics: tuple[str, ...]) -> str:
    answer = (await admin._send_request(_MetadataRequest(topics))).to_object()
    for topic in answer["topics"]:
        if (error := for_code(topic["error_code"])) is not NoError:
            raise error(f"topic {topic['topic']}")
    ids = {topic["topic"]: topic.get("topic_id", _NO_ID) for topic in answer["topics"]}
    return " ".join(
        [str(answer["cluster_id"]), *(f"{topic}={_as_kafka_writes(ids[topic])}" for topic in topics if ids[topic].int)]
    )


def _as_kafka_writes(topic_id: UUID) -> str:
    return urlsafe_b64encode(topic_id.bytes).rstrip(b"=").decode()


class _Uuid:
    @classmethod
    def encode(cls, value: UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: Any) -> UUID:
        return UUID(bytes=data.read(16))


class _MetadataResponse_v10(Response):  # type: ignore[misc]  # noqa: N801
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _MetadataRequest_v10(RequestStruct):  # type: ignore[misc]  # noqa: N801
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _MetadataResponse_v10
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("topic", CompactString("utf-8")), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _MetadataRequest(Request[MetadataRequest_v5 | _MetadataRequest_v10]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topics: tuple[str, ...]) -> None:
        self._topics = topics

    def build(self, struct: type[RequestStruct]) -> RequestStruct:
        if struct is MetadataRequest_v5:
            return struct(list(self._topics), False)
        return struct([(_NO_ID, topic, {}) for topic in self._topics], False, False, False, {})
