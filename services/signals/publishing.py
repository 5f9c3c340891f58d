"""Publishing signals: under which lock, and in which order."""

import asyncio
from collections.abc import Sequence
from typing import Any

import asyncpg
from aiokafka import AIOKafkaProducer

from services.signals.messages import signal, signal_key
from shared.runtime.kafka import DELIVERY_SIGNALS

NAME = "signals"
# The lock of a shard's checkpoint: whoever publishes holds it until the broker has acknowledged.
LOCK = "SELECT FROM ledger.checkpoints_signals WHERE follower = $1 AND shard = $2 FOR UPDATE"


async def send(producer: AIOKafkaProducer, entries: Sequence[asyncpg.Record]) -> asyncio.Future[list[Any]]:
    """Send the signals of these entries in their order; what is answered is done when all are acknowledged.

    It raises aiokafka.errors.KafkaError when one is not.
    """
    acknowledgements = [
        await producer.send(DELIVERY_SIGNALS, signal(entry).model_dump_json().encode(), key=signal_key(entry))
        for entry in entries
    ]
    return asyncio.gather(*acknowledgements)
