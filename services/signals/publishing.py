"""Publishing signals: the lock that is held meanwhile, and the order."""

import asyncio
from collections.abc import Sequence
from typing import Any

import asyncpg
from aiokafka import AIOKafkaProducer

from services.signals.messages import signal, signal_key
from shared.runtime.kafka import DELIVERY_SIGNALS

NAME = "signals"
# Locks a shard's checkpoint. A publisher holds this lock until the broker has acknowledged.
LOCK = "SELECT FROM ledger.checkpoints_signals WHERE follower = $1 AND shard = $2 FOR UPDATE"


async def send(producer: AIOKafkaProducer, entries: Sequence[asyncpg.Record]) -> asyncio.Future[list[Any]]:
    """Send the signals of these entries in their order.

    Returns a future that is done once the broker has acknowledged all of them. It raises aiokafka.errors.KafkaError if
    one was not acknowledged.
    """
    # All messages are made before the first is sent. Otherwise, if one cannot be made, each retry would send others.
    signals = [(signal_key(entry), signal(entry).model_dump_json().encode()) for entry in entries]
    acknowledgements = [await producer.send(DELIVERY_SIGNALS, value, key=key) for key, value in signals]
    return asyncio.gather(*acknowledgements)
