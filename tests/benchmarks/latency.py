"""The latency from a spend's publication to its pause signal, under steady traffic.

Another process publishes the traffic. Every 20 ms this one publishes a probe: a spend of exactly the remaining cash of
an ad account, which pauses it. The clock starts just before the call of the producer, and ends when a consumer of
`delivery.signals` has the `paused` signal that names the probe. Probes are sent by the clock, even if earlier ones have
no answer yet. Each uses another account, which was opened and funded beforehand.
"""

import asyncio
import contextlib
import json
import math
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
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
class Probe:
    """A spend that pauses, the time of its publication (`sent_at`, and `wall` since the epoch), and its latency."""

    sent_at: float
    wall: float
    milliseconds: float = math.inf
    to_decision_ms: float = math.inf

    @property
    def answered(self) -> bool:
        """Whether the signal has arrived."""
        return self.milliseconds < math.inf

    def answer(self, now: float, recorded_at: datetime) -> None:
        """Record that the signal has arrived."""
        self.milliseconds = (now - self.sent_at) * 1000
        self.to_decision_ms = (recorded_at.timestamp() - self.wall) * 1000


@dataclass
class Latencies:
    """The sorted latencies of a level's probes, in ms. A probe without an answer counts as infinite.

    `to_decision_ms` is the median of the part until the ledger time of the batch that decided a probe.
    """

    milliseconds: list[float]
    to_decision_ms: float
    offered_per_second: float

    def percentile(self, share: float) -> float:
        """Return the smallest latency that at least this share of the probes did not exceed (nearest rank)."""
        ranked = self.milliseconds
        return ranked[max(0, math.ceil(share * len(ranked)) - 1)]

    @property
    def unanswered(self) -> int:
        """The number of probes without an answer."""
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
        probes = await _probe(bench, producer, consumer, accounts)
        sent = await background.answer()
    bench.published_spends += int(sent["spends"]) + len(accounts)
    await bench.settle()
    latencies = sorted(probe.milliseconds for probe in probes)
    decided = statistics.median(probe.to_decision_ms for probe in probes)
    return Latencies(latencies, decided, sent["spends"] / sent["seconds"])


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
) -> list[Probe]:
    sent: dict[str, Probe] = {}
    listening = asyncio.create_task(_listen(consumer, sent, len(accounts)))
    try:
        await _send(producer, accounts, sent, bench.plan.probe_interval_ms / 1000)
        async with asyncio.timeout(ANSWER_SECONDS):
            await listening
    except TimeoutError:
        bench.say(f"some probes have no answer after {ANSWER_SECONDS:.0f} s")
    finally:
        listening.cancel()
    return list(sent.values())


async def _send(producer: AIOKafkaProducer, accounts: list[Account], sent: dict[str, Probe], interval: float) -> None:
    acknowledgements = []
    started = time.perf_counter()
    for number, (where, account) in enumerate(accounts):
        await asyncio.sleep(max(0.0, started + number * interval - time.perf_counter()))
        probe = event_id()
        partition, key, value = spend(where, account, f"{account}-cmp", PROBE_CASH, now_text(), probe)
        sent[probe] = Probe(time.perf_counter(), time.time())
        acknowledgements.append(await producer.send(SPEND_EVENTS, value, key=key, partition=partition))
    await asyncio.gather(*acknowledgements)


async def _listen(consumer: AIOKafkaConsumer, sent: dict[str, Probe], expected: int) -> None:
    answered = 0
    while answered < expected:
        for records in (await consumer.getmany(timeout_ms=1000)).values():
            now = time.perf_counter()
            for record in records:
                message: dict[str, Any] = json.loads(record.value)
                probe = sent.get(message["source_event_id"])
                if message["change"] == "paused" and probe is not None and not probe.answered:
                    answered += 1
                    probe.answer(now, datetime.fromisoformat(message["recorded_at"]))
