"""Writes batches to Kafka that no client library would write, byte for byte, as one of its users."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from aiokafka.conn import AIOKafkaConnection, create_conn
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.produce import ProduceRequest

from shared.runtime.kafka import connection_arguments
from tests.security.target import Target

_TIMEOUT_MS = 60_000


class Wire:
    """A user's connection. `held_back_ms` is how long Kafka's quotas delayed it."""

    def __init__(self, connection: AIOKafkaConnection) -> None:
        self._connection = connection
        self.held_back_ms = 0

    async def send(self, topic: str, partition: int, batch: bytes) -> tuple[int, int]:
        """Write one batch; return Kafka's error code, and the offset of its first record."""
        request = ProduceRequest(None, -1, _TIMEOUT_MS, [(topic, [(partition, batch)])])
        answer = await self._connection.send(request)
        self.held_back_ms += answer.throttle_time_ms
        ((_, ((_, code, offset, *_rest),)),) = answer.topics
        return int(code), int(offset)

    async def fetch(self, topic: str, partition: int) -> int:
        """Fetch the partition's first records; return Kafka's error code."""
        request = FetchRequest(100, 0, 4_096, 0, [(topic, [(partition, 0, 4_096)])])
        answer = await self._connection.send(request)
        ((_, ((_, code, *_rest),)),) = answer.topics
        return int(code)


@contextlib.asynccontextmanager
async def wire(target: Target, user: str) -> AsyncIterator[Wire]:
    """Open a connection as this user, and close it at the end."""
    arguments: dict[str, Any] = connection_arguments(target.kafka(user))
    host, _, port = arguments.pop("bootstrap_servers").rpartition(":")
    connection = await create_conn(host, int(port), request_timeout_ms=_TIMEOUT_MS, **arguments)
    try:
        yield Wire(connection)
    finally:
        connection.close()
