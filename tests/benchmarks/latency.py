"""From a spend's publication to its pause signal, under steady traffic.

Another process publishes the traffic. Every 20 ms this one publishes a probe: a spend that takes exactly the last of
an ad account's cash, and so pauses it. The clock starts just before the producer is called, and ends when a consumer
of `delivery.signals` has the `paused` signal that names the probe. Probes are sent by the clock, whether or not those
before them have been answered. Each takes an account of its own, opened and funded beforehand.
"""

import asyncio
import contextlib
import json
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from shared.runtime.kafka import DELIVERY_SIGNALS, SPEND_EVENTS, create_producer
from tests.benchmarks.bench import Bench
from tests.benchmarks.children import child
from tests.benchmarks.load import (
    Center,
    Record,
    center,
    command,
    event_id,
    now_text,
    opened_account,
    opened_center,
    partitions,
    spend,
)
from tests.benchmarks.plan import SHARDS

PROBE_CASH = "1.00"
WARM_UP_SECONDS = 2.0
ANSWER_SECONDS = 30.0
FETCH_WAIT_MS = 2
_CENTERS = 100
_levels = count(1)

Account = tuple[Center, str]


@dataclass
class Latencies:
    """What the probes of a level took, in ms, sorted; those without an answer count as infinite."""

    milliseconds: list[float]
    offered_per_second: float

    def percentile(self, share: float) -> float:
        """The smallest latency that at least this share of the probes did not exceed (nearest rank)."""
        ranked = self.milliseconds
        return ranked[max(0, math.ceil(share * len(ranked)) - 1)]

    @property
    def unanswered(self) -> int:
        """Probes without an answer."""
        return sum(each == math.inf for each in self.milliseconds)


async def measure_latency(bench: Bench, rate: int) -> Latencies:
    """Probe the system at one level of traffic."""
    accounts = await _fund_probes(bench)
    seconds = WARM_UP_SECONDS + bench.plan.probes * bench.plan.probe_interval_ms / 1000
    plan = bench.plan
    arguments = (str(plan.centers), str(plan.campaigns_each), str(rate), str(seconds))
    traffic = child(bench, "background", *arguments)
    async with _probe_clients(bench) as (producer, consumer), traffic as background:
        await asyncio.sleep(WARM_UP_SECONDS)
        latencies = await _probe(bench, producer, consumer, accounts)
        sent = await background.answer()
    bench.published_spends += int(sent["spends"]) + len(accounts)
    await bench.settle()
    return Latencies(sorted(latencies), sent["spends"] / sent["seconds"])


async def _fund_probes(bench: Bench) -> list[Account]:
    level = next(_levels)
    centers = [center(f"probe-{level}-{n}", SHARDS, automatic=False, campaigns=1) for n in range(_CENTERS)]
    accounts = [(centers[n % _CENTERS], f"probe-{level}-acct-{n}") for n in range(bench.plan.probes)]

    def commands() -> list[Record]:
        records = [opened_center(each) for each in centers]
        for where, account in accounts:
            records.append(opened_account(where, account))
            records.append(command(where, "deposit_cash", amount=PROBE_CASH, ad_account_id=account))
        return records

    await bench.command(commands())
    await bench.followers_settle()
    return accounts


@contextlib.asynccontextmanager
async def _probe_clients(bench: Bench) -> AsyncIterator[tuple[AIOKafkaProducer, AIOKafkaConsumer]]:
    async with contextlib.AsyncExitStack() as stack:
        producer = await create_producer(bench.settings, linger_ms=0)
        stack.push_async_callback(producer.stop)
        await producer.partitions_for(SPEND_EVENTS)
        consumer = AIOKafkaConsumer(
            bootstrap_servers=bench.settings.kafka_bootstrap_servers,
            enable_auto_commit=False,
            fetch_max_wait_ms=FETCH_WAIT_MS,
        )
        await consumer.start()
        stack.push_async_callback(consumer.stop)
        consumer.assign(partitions(DELIVERY_SIGNALS, SHARDS))
        await consumer.seek_to_end()
        yield producer, consumer


async def _probe(
    bench: Bench, producer: AIOKafkaProducer, consumer: AIOKafkaConsumer, accounts: list[Account]
) -> list[float]:
    sent: dict[str, float] = {}
    taken: dict[str, float] = {}
    listening = asyncio.create_task(_listen(consumer, sent, taken, len(accounts)))
    try:
        await _send(producer, accounts, sent, bench.plan.probe_interval_ms / 1000)
        async with asyncio.timeout(ANSWER_SECONDS):
            await listening
    except TimeoutError:
        bench.say(f"{len(sent) - len(taken)} probes have no answer after {ANSWER_SECONDS:.0f} s")
    finally:
        listening.cancel()
    return [taken.get(probe, math.inf) for probe in sent]


async def _send(producer: AIOKafkaProducer, accounts: list[Account], sent: dict[str, float], interval: float) -> None:
    acknowledgements = []
    started = time.perf_counter()
    for number, (where, account) in enumerate(accounts):
        await asyncio.sleep(max(0.0, started + number * interval - time.perf_counter()))
        probe = event_id()
        partition, key, value = spend(where, account, f"{account}-cmp", PROBE_CASH, now_text(), probe)
        sent[probe] = time.perf_counter()
        acknowledgements.append(await producer.send(SPEND_EVENTS, value, key=key, partition=partition))
    await asyncio.gather(*acknowledgements)


async def _listen(consumer: AIOKafkaConsumer, sent: dict[str, float], taken: dict[str, float], expected: int) -> None:
    while len(taken) < expected:
        for records in (await consumer.getmany(timeout_ms=1000)).values():
            now = time.perf_counter()
            for record in records:
                message: dict[str, Any] = json.loads(record.value)
                probe = message["source_event_id"]
                if message["change"] == "paused" and probe in sent and probe not in taken:
                    taken[probe] = (now - sent[probe]) * 1000
