"""The front door of a running system: what ad delivery, the back office and subscribers can do, and no more.

Nothing here waits for a fixed time. A *fence* is published after the records of a partition: a spend of a Business
Center of its own in the same shard. Once the fence is in the ledger, all records before it are decided.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar
from uuid import uuid4

import httpx
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from shared.runtime.kafka import connection_arguments
from tests import any_headers
from tests.acceptance.platform import Record
from tests.model.forms import rfc3339
from tests.model.shards import shard_of
from tests.servers import RunningSystem

SPENDS, SIGNALS = "spend.events", "delivery.signals"
DEADLINE_SECONDS = 60.0
POLL_SECONDS = 0.01
T = TypeVar("T")


class Place(NamedTuple):
    """The place of a record in Kafka."""

    partition: int
    offset: int


async def until(what: str, ask: Callable[[], Awaitable[T | None]], seconds: float = DEADLINE_SECONDS) -> T:
    """Ask until the answer is neither None nor False, and return it. Raise AssertionError if that takes too long."""
    give_up_at = time.monotonic() + seconds
    while (answer := await ask()) is None or answer is False:
        assert time.monotonic() < give_up_at, f"not in time: {what}"
        await asyncio.sleep(POLL_SECONDS)
    return answer


class FrontDoor:
    """The front door: commands and answers by HTTP, spends and signals by Kafka."""

    def __init__(self, system: RunningSystem) -> None:
        self.system = system
        self.shards = system.settings.shards
        self.signals: defaultdict[str, list[Record]] = defaultdict(list)
        self._fences: dict[int, Record] = {}
        self._run = uuid4().hex[:8]
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        connection = connection_arguments(self.system.settings)
        self._client = self.system.client()
        self._producer = AIOKafkaProducer(**connection, acks="all", max_request_size=4 << 20)
        self._consumer = AIOKafkaConsumer(**connection, fetch_max_wait_ms=10)
        await self._producer.start()
        await self._consumer.start()
        partitions = [TopicPartition(SIGNALS, number) for number in range(self.shards)]
        self._consumer.assign(partitions)
        await self._consumer.seek_to_beginning(*partitions)
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._listening
        await self._consumer.stop()
        await self._producer.stop()
        await self._client.aclose()

    def now_us(self) -> int:
        """Return what the system's clock shows, in µs since the Unix epoch."""
        return time.time_ns() // 1000 + round(self.system.settings.clock_offset_seconds * 1_000_000)

    # Kafka

    async def publish(self, event: Record, partition: int | None = None) -> Place:
        """Publish a spend or reversal, keyed by its Business Center. Return once the broker has it."""
        key = str(event.get("business_center_id", "")).encode()
        return await self.publish_raw(json.dumps(event).encode(), key, partition)

    async def publish_raw(
        self,
        value: bytes | None,
        key: bytes | None = None,
        partition: int | None = None,
        headers: list[tuple[str, bytes]] | None = None,
        topic: str = SPENDS,
    ) -> Place:
        """Publish any bytes."""
        sent = await self._producer.send_and_wait(topic, value, key, partition, headers=headers)
        return Place(sent.partition, sent.offset)

    async def publish_any(self, topic: str, partition: int, headers: any_headers.Headers, value: bytes | None) -> Place:
        """Publish a record without a key, whose headers have any bytes."""
        return Place(partition, await any_headers.publish(self._producer, topic, partition, None, value, headers))

    async def publish_soon(self, event: Record) -> Awaitable[Place]:
        """Hand a spend to the producer. Awaiting the result waits for the broker."""
        key = event["business_center_id"].encode()
        sent = await self._producer.send(SPENDS, json.dumps(event).encode(), key)

        async def place() -> Place:
            record = await sent
            return Place(record.partition, record.offset)

        return place()

    async def _listen(self) -> None:
        async for record in self._consumer:
            signal = json.loads(record.value)
            seen = self.signals[record.key.decode()]
            if not seen or signal["position"] > seen[-1]["position"]:  # signals come at least once: drop repetitions
                seen.append(signal)

    # Fences

    async def fence(self, *partitions: int) -> None:
        """Return once all that was published to these partitions (none: to any) is decided and readable."""
        await asyncio.gather(*(self._fence(each) for each in partitions or range(self.shards)))

    async def _fence(self, partition: int) -> None:
        fence = {**await self._fence_of(partition), "event_id": str(uuid4()), "occurred_at": rfc3339(self.now_us())}
        await self.publish(fence, partition)
        entries = await until(f"a fence of partition {partition}", lambda: self._found(fence["event_id"]))
        await self.caught_up(fence["business_center_id"], partition, entries[-1]["position"])

    async def _found(self, source_event_id: str) -> list[Record] | None:
        return await self.entries(source_event_id) or None

    async def _fence_of(self, partition: int) -> Record:
        async with self._lock:
            if partition not in self._fences:
                self._fences[partition] = await self._build_fence(partition)
        return self._fences[partition]

    async def _build_fence(self, partition: int) -> Record:
        names = (f"fence-{self._run}-{number}" for number in itertools.count())
        center = next(name for name in names if shard_of(name, self.shards) == partition)
        await self.accepted(center, "open_business_center", currency="USD", time_zone="UTC")
        account = {"ad_account_id": center, "billing": "prepay", "buying_type": "auction", "time_zone": "UTC"}
        await self.accepted(center, "open_ad_account", **account)
        await self.accepted(center, "deposit_cash", ad_account_id=center, amount="1000000")
        return {
            "type": "spend",
            "business_center_id": center,
            "ad_account_id": center,
            "campaign_id": "fence",
            "amount": "0.000001",
            "currency": "USD",
        }

    async def caught_up(self, business_center_id: str, shard: int, position: int) -> None:
        """Return once the read model has reached this position."""

        async def ask() -> bool | None:
            as_of = (await self.get(f"business-centers/{business_center_id}"))["as_of"]
            read = {each["shard"]: each["position"] for each in as_of["shards"]}
            return True if read.get(shard, 0) >= position else None

        await until(f"position {position} of shard {shard} can be read", ask)

    # HTTP

    async def accepted(self, business_center_id: str, type_: str, **fields: Any) -> Record:
        """Send a command of an administrator, and assert that it is accepted."""
        outcome = await self.command(self.admin_command(business_center_id, type_, **fields))
        assert outcome["status"] == "accepted", outcome
        return outcome

    def admin_command(self, business_center_id: str, type_: str, **fields: Any) -> Record:
        """Return a command in the form in which an administrator sends it."""
        return {
            "command_id": str(uuid4()),
            "type": type_,
            "business_center_id": business_center_id,
            "issued_at": rfc3339(self.now_us()),
            "actor": {"id": "administrator", "role": "admin"},
            **fields,
        }

    async def command(self, command: Record) -> Record:
        """Send a command until it is decided, and return its outcome."""

        async def ask() -> Record | None:
            with contextlib.suppress(httpx.TransportError):
                answer = await self._client.post("/v1/commands", json=command)
                if answer.status_code in (200, 422):
                    outcome: Record = answer.json()
                    assert (answer.status_code == 200) == (outcome["status"] == "accepted"), outcome
                    return outcome
                assert answer.status_code in (503, 504), answer.text
            return None

        return await until(f"the outcome of {command}", ask)

    async def get(self, path: str, **parameters: Any) -> Record:
        """Return the answer of `/v1/{path}`, which must exist."""
        answer = await self.ask(path, **parameters)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        content: Record = answer.json()
        return content

    async def ask(self, path: str, **parameters: Any) -> httpx.Response:
        """Return the response of `/v1/{path}`, whatever its status."""
        return await self._client.get(f"/v1/{path}", params=parameters)

    async def register_deal(self, deal_id: str, ad_account_ids: list[str], currency: str = "USD") -> None:
        """Register a deal that covers the accounts for years."""
        deal = {
            "client": "acme",
            "ad_account_ids": ad_account_ids,
            "starts_on": "2025-01-01",
            "ends_on": "2028-12-31",
            "time_zone": "UTC",
            "currency": currency,
            "method": "whole_spend",
            "slabs": [{"from": "1000", "rate": "0.03"}],
        }
        answer = await self._client.put(f"/v1/deals/{deal_id}", json=deal)
        assert answer.status_code in (200, 201), answer.text

    async def cash_spend(self, deal_id: str) -> str:
        """Return the cash spend of a deal, once it covers everything that is in the ledger now."""
        heads = [entry async for entry in self._heads()]

        async def ask() -> str | None:
            pacing = await self.get(f"deals/{deal_id}/pacing")
            read = {each["shard"]: each["position"] for each in pacing["as_of"]["shards"]}
            covered = all(read[shard] >= position for shard, position in heads if shard in read)
            return str(pacing["cash_spend"]) if covered else None

        return await until(f"the pacing of {deal_id}", ask)

    async def _heads(self) -> AsyncIterator[tuple[int, int]]:
        """Return the position of the balance read model for each shard that has a fence."""
        for fence in list(self._fences.values()):
            as_of = (await self.get(f"business-centers/{fence['business_center_id']}"))["as_of"]
            for each in as_of["shards"]:
                yield each["shard"], each["position"]

    async def entries(self, source_event_id: str) -> list[Record]:
        """Return the ledger's entries with one source."""
        return [entry async for entry in self.pages("ledger", source_event_id=source_event_id)]

    async def ledger(self, business_center_id: str) -> list[Record]:
        """Return all entries of a Business Center."""
        return [entry async for entry in self.pages("ledger", business_center_id=business_center_id)]

    async def quarantine(self) -> dict[Place, Record]:
        """Return the quarantined records by place, with `raw` as bytes. Assert that no place occurs twice."""
        found: dict[Place, Record] = {}
        async for entry in self.pages("quarantine"):
            place = Place(entry["partition"], entry["offset"])
            if entry["topic"] == SPENDS:
                assert place not in found, f"quarantined twice: {entry}"
                found[place] = {**entry, "raw": _bytes(entry["raw"])}
        return found

    async def pages(self, path: str, **parameters: Any) -> AsyncIterator[Record]:
        """Return all items of a list that comes in pages."""
        while True:
            page = await self.get(path, limit=1000, **parameters)
            for entry in page["entries"]:
                yield entry
            if page["next"] is None:
                return
            parameters["after"] = page["next"]


def _bytes(raw: str | None) -> bytes | None:
    return None if raw is None else base64.b64decode(raw)
