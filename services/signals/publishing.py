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
    # All of them first: where one cannot be made, none is sent again at each try.
    signals = [(signal_key(entry), signal(entry).model_dump_json().encode()) for entry in entries]
    acknowledgements = [await producer.send(DELIVERY_SIGNALS, value, key=key) for key, value in signals]
    return asyncio.gather(*acknowledgements)
