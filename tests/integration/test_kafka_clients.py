"""Clients of Kafka leave no connection open, whenever they are stopped."""

import asyncio
import contextlib
import gc
import json
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaError
from aiokafka.protocol.metadata import MetadataRequest_v5

from drawdown.local.subscriber import Subscriber
from services.allocation import service
from services.allocation.worker import Worker
from shared.runtime.kafka import DELIVERY_SIGNALS, SPEND_EVENTS, start_client, stop_client
from shared.runtime.settings import Settings
from shared.runtime.stopping import CLOSE_SECONDS, close_within
from shared.runtime.topics import ensure_topics
from tests.acceptance.front_door import until
from tests.integration.writing import writing
from tests.raw_batches import batch, publish_batch, record
from tests.unit.test_subscriber import SIGNAL


def left_open() -> list[AIOKafkaConnection]:
    """Return the connections that are still open, and close them for the sake of later tests."""
    found = [each for each in gc.get_objects() if isinstance(each, AIOKafkaConnection) and each.connected()]
    for connection in found:
        connection.close()
    return found


@pytest.mark.parametrize("make", [AIOKafkaAdminClient, AIOKafkaConsumer, AIOKafkaProducer])
async def test_a_start_that_is_cancelled_leaves_no_connection_open(
    settings: Settings, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start is cancelled while it waits for its first answer, for its second, and so on."""
    await ensure_topics(settings)
    send = AIOKafkaConnection.send
    answers, has_started = 0, False
    while not has_started:
        answers += 1
        asked, reached = 0, asyncio.Event()

        def sending(self: AIOKafkaConnection, *args: Any, last: int = answers, reached: Any = reached) -> Any:
            nonlocal asked
            asked += 1
            if asked == last:
                reached.set()
            return send(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(AIOKafkaConnection, "send", sending)
            starting = asyncio.create_task(start_client(settings, make))
            waiting = asyncio.create_task(reached.wait())
            await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        has_started = starting.done()
        waiting.cancel()
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await stop_client(await starting)
        assert not left_open(), f"cancelled at answer {answers}"
    assert answers > 2


async def test_a_consumer_that_is_stopped_at_once_ends_cleanly(settings: Settings) -> None:
    await ensure_topics(settings)
    consumer = await start_client(settings, AIOKafkaConsumer, enable_auto_commit=False)
    consumer.assign([TopicPartition(SPEND_EVENTS, 0)])
    await stop_client(consumer)
    assert not left_open()


async def test_a_producer_whose_broker_does_not_answer_is_disconnected(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it would send its remaining records over a new connection as soon as the broker answers."""
    await ensure_topics(settings)
    producer = await start_client(settings, AIOKafkaProducer, acks="all")
    sending = producer._sender.sender_task
    handle = AIOKafkaConnection._handle_frame

    def hear_nothing_of_what_was_sent(self: AIOKafkaConnection, frame: bytes) -> None:
        if not any("Produce" in type(request).__name__ for _, request, _ in self._requests):
            handle(self, frame)

    monkeypatch.setattr(AIOKafkaConnection, "_handle_frame", hear_nothing_of_what_was_sent)
    pending = await producer.send(SPEND_EVENTS, b"{}", partition=0)
    await close_within(stop_client(producer), seconds=0.5)
    await asyncio.wait({sending}, timeout=CLOSE_SECONDS)
    assert sending.done()
    assert not left_open()
    assert not pending.done() or pending.exception() is not None


async def test_a_request_through_a_stopped_consumer_leaves_no_connection_open(settings: Settings) -> None:
    await ensure_topics(settings)
    consumer = await start_client(settings, AIOKafkaConsumer, enable_auto_commit=False)
    await stop_client(consumer)
    with pytest.raises(KafkaError):
        await consumer._client.send(next(iter(consumer._client.cluster.brokers())).nodeId, MetadataRequest_v5([], True))
    assert not left_open()


async def test_a_subscriber_skips_unreadable_records(settings: Settings) -> None:
    """aiokafka refuses a header whose name is not UTF-8, and would never continue."""
    await ensure_topics(settings)
    producer = await start_client(settings, AIOKafkaProducer)
    odd = batch(record(b"{}", key=b"odd", headers=[(b"n\xffme", b"x")]), 1)
    await publish_batch(producer, odd, DELIVERY_SIGNALS, 1)
    subscriber = Subscriber()
    following = asyncio.create_task(subscriber.follow(settings))
    try:
        for shard in (0, 1):
            value = json.dumps({**SIGNAL, "ad_account_id": f"acct-{shard}", "shard": shard}).encode()
            await producer.send_and_wait(DELIVERY_SIGNALS, value, key=b"%d" % shard, partition=shard)

        async def both_are_known() -> bool:
            assert not following.done(), following.exception()
            return subscriber.pauses == 2

        await until("both signals are taken", both_are_known)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await stop_client(producer)


async def test_no_client_sends_requests_through_a_consumer_that_is_being_stopped(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that sends another request connects again, and nothing would close that connection."""
    asking: set[AIOKafkaConsumer] = set()
    stopped_while_asked: list[bool] = []
    looking = asyncio.Event()

    async def ends(self: Worker) -> tuple[int, ...]:
        asking.add(self._consumer)
        looking.set()
        try:
            return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]
        finally:
            asking.discard(self._consumer)

    async def stop(client: Any) -> None:
        if isinstance(client, AIOKafkaConsumer):
            stopped_while_asked.append(client in asking)
        await stop_client(client)

    monkeypatch.setattr(Worker, "ends", ends)
    monkeypatch.setattr(service, "stop_client", stop)
    async with writing(settings) as writer:
        await looking.wait()
        await writer.stop()
        assert stopped_while_asked == [False] * settings.shards
        writer.start()
