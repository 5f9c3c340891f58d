"""Constant load: spends, repetitions, reversals, invalid records and finance commands, all of them in the journal.

Each record is valid or invalid by construction, so that the journal alone determines the right result.
"""

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable
from uuid import UUID

import httpx
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from tests.chaos.journal import Commanded, Journal, Published, Record
from tests.model.forms import micros, money, rfc3339
from tests.model.shards import shard_of

SPENDS = "spend.events"
CENTERS, ACCOUNTS_OF_CENTER = 8, 3
CAMPAIGNS = ("spring", "summer", "autumn")
TICK_SECONDS = 0.05
EVENTS_A_TICK = 6
TREASURERS = 3
_PAUSE_SECONDS = 0.1
_DEADLINE_SECONDS = 300.0


class Load:
    """Sends until it is paused. Sends unacknowledged records again, and notes that in the journal."""

    def __init__(
        self, seed: int, *, shards: int, bootstrap_servers: str, idempotent: bool, api: httpx.AsyncClient
    ) -> None:
        self.journal = Journal()
        self.generation = 0  # Of the topics. Offsets in a recreated topic cannot be compared with earlier ones.
        self.ends: dict[int, int] = {}
        self._random = random.Random(seed)
        self._shards = shards
        self._servers = bootstrap_servers
        self._idempotent = idempotent
        self._api = api
        self._running = asyncio.Event()
        self._centers = [f"center-{seed}-{number}" for number in range(CENTERS)]
        self._charged: list[Published] = []
        self._sending: set[asyncio.Task[None]] = set()
        self._commanding: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Open Business Centers and accounts, with and without automatic allocation and budgets."""
        self._producer = await self._new_producer()
        await asyncio.gather(*(self._open_center(number, center) for number, center in enumerate(self._centers)))

    async def _open_center(self, number: int, center: str) -> None:
        await self._command(center, "open_business_center", currency="USD", time_zone="UTC")
        if number % 2:
            await self._command(center, "enable_automatic_allocation")
        for each in range(ACCOUNTS_OF_CENTER):
            account = f"{center}-account-{each}"
            kind = {"billing": "prepay" if each == 2 else "monthly_invoicing", "buying_type": "auction"}
            await self._command(center, "open_ad_account", ad_account_id=account, time_zone="UTC", **kind)
            self.journal.accounts[account] = center
        await self._command(center, "deposit_cash", amount="1")

    async def _new_producer(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            bootstrap_servers=self._servers, acks="all", enable_idempotence=self._idempotent, request_timeout_ms=10_000
        )
        await producer.start()
        return producer

    async def run(self) -> None:
        """Publish and command until cancelled, while not paused."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._publish())
                for _ in range(TREASURERS):
                    tasks.create_task(self._treasurer())
        finally:
            await self._producer.stop()

    def resume(self) -> None:
        """Start or continue sending."""
        self._running.set()

    async def pause(self) -> None:
        """Send nothing new; return when everything sent is acknowledged and answered."""
        self._running.clear()
        while under_way := [*self._sending, *self._commanding]:
            await asyncio.wait(under_way)

    async def topics_are_new(self) -> None:
        """Note that the topics were recreated, so that the producer looks for them again."""
        await self._producer.stop()
        self._producer = await self._new_producer()
        self.generation += 1
        self.ends = {}

    def sent(self) -> dict[str, int]:
        """Return the number of sent records of each kind."""
        journal = self.journal
        types = Counter(published.event["type"] for published in journal.events.values())
        return {
            **types,
            "records that cannot be charged": sum(journal.bad.values()),
            "copies": sum(len(published.places) for published in journal.events.values()),
            "commands": len(journal.commands),
        }

    # Events

    async def _publish(self) -> None:
        while True:
            await self._running.wait()
            for _ in range(EVENTS_A_TICK):
                await self._send_something()
            await asyncio.sleep(TICK_SECONDS)

    async def _send_something(self) -> None:
        chance = self._random.random()
        if chance < 0.80 or len(self._charged) < 50:
            await self._send_new(self._spend())
        elif chance < 0.87:
            await self._send_reversal()
        elif chance < 0.96:
            await self._send_again(self._random.choice(self._charged))
        elif chance < 0.98:
            await self._send_bad(*self._nonsense())
        else:
            await self._send_conflict(self._random.choice(self._charged))

    def _spend(self) -> Record:
        account = self._random.choice(list(self.journal.accounts))
        return {
            "type": "spend",
            "event_id": str(UUID(int=self._random.getrandbits(128), version=4)),
            "business_center_id": self.journal.accounts[account],
            "ad_account_id": account,
            "campaign_id": self._random.choice(CAMPAIGNS),
            "amount": money(self._random.randrange(1, 40_000)),
            "currency": "USD",
            "occurred_at": rfc3339(_now_us() - self._random.randrange(3_600_000_000)),
        }

    async def _send_new(self, event: Record) -> None:
        shard = shard_of(event["business_center_id"], self._shards)
        published = Published(event, micros(event["amount"]), shard)
        self.journal.events[event["event_id"]] = published
        await self._send(published, elsewhere=event["type"] == "spend" and self._random.random() < 0.03)

    async def _send_reversal(self) -> None:
        """Send a reversal of a whole spend, once, after the spend."""
        spend = self._charged.pop(self._random.randrange(len(self._charged)))
        event = {**spend.event, "type": "reversal", "reverses": spend.event["event_id"], "reason": "invalid_traffic"}
        event["event_id"] = str(UUID(int=self._random.getrandbits(128), version=4))
        await self._send_new({**event, "occurred_at": rfc3339(_now_us())})

    async def _send_again(self, published: Published) -> None:
        await self._send(published, elsewhere=self._random.random() < 0.3)

    async def _send(self, published: Published, *, elsewhere: bool) -> None:
        partition = published.shard
        if elsewhere:
            partition = (partition + 1 + self._random.randrange(self._shards - 1)) % self._shards
            published.is_ordered = False
        value = json.dumps(published.event).encode()
        first = await self._hand_over(partition, value)
        self._look_after(self._until_acknowledged(published, partition, value, first))

    async def _until_acknowledged(
        self, published: Published, partition: int, value: bytes, first: Awaitable[int | None]
    ) -> None:
        offset = await first
        while offset is None:
            published.is_ordered = False
            offset = await (await self._hand_over(partition, value))
        if partition == published.shard:
            published.places.append((self.generation, offset))
            if len(published.places) == 1 and published.event["type"] == "spend" and published.is_ordered:
                self._charged.append(published)

    def _nonsense(self) -> tuple[str, bytes, int]:
        spend = self._spend()
        partition = shard_of(spend["business_center_id"], self._shards)
        return self._random.choice(
            (
                ("malformed", b"{" + spend["event_id"].encode(), partition),
                ("invalid", json.dumps({**spend, "amount": "-1"}).encode(), partition),
                ("unknown_ad_account", json.dumps({**spend, "ad_account_id": "nobody"}).encode(), partition),
                ("currency_mismatch", json.dumps({**spend, "currency": "EUR"}).encode(), partition),
            )
        )

    async def _send_conflict(self, published: Published) -> None:
        """Send a charged spend's id with another amount. It is not repeated, so that each value is sent once."""
        changed = {**published.event, "amount": money(published.amount + self._random.randrange(1, 10**9))}
        await self._send_bad("content_conflict", json.dumps(changed).encode(), published.shard)

    async def _send_bad(self, reason: str, value: bytes, partition: int) -> None:
        first = await self._hand_over(partition, value)

        async def until_acknowledged() -> None:
            key, offset = (reason, value), await first
            while offset is None:
                self.journal.doubtful[key] = self.journal.doubtful.get(key, 0) + 1
                offset = await (await self._hand_over(partition, value))
            self.journal.bad[key] = self.journal.bad.get(key, 0) + 1

        self._look_after(until_acknowledged())

    async def _hand_over(self, partition: int, value: bytes) -> Awaitable[int | None]:
        """Give a record to the producer; the result, when awaited, is its offset, or None if that is unknown."""
        generation = self.generation
        try:
            sent = await self._producer.send(SPENDS, value, key=b"chaos", partition=partition)
        except KafkaError:
            await asyncio.sleep(_PAUSE_SECONDS)
            return _nothing()

        async def offset() -> int | None:
            try:
                found: int = (await sent).offset
            except KafkaError:
                return None
            if found < 0:  # The broker dropped a repetition, so the record is there, but its offset is unknown.
                return None
            if generation == self.generation:
                self.ends[partition] = max(self.ends.get(partition, 0), found + 1)
            return found

        return offset()

    def _look_after(self, sending: "Awaitable[None]") -> None:
        task = asyncio.ensure_future(sending)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    # Commands

    async def _treasurer(self) -> None:
        while True:
            await self._running.wait()
            task = asyncio.create_task(self._some_command())
            self._commanding.add(task)
            task.add_done_callback(self._commanding.discard)
            await task
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _some_command(self) -> None:
        account = self._random.choice(list(self.journal.accounts))
        center, chance = self.journal.accounts[account], self._random.random()
        amount = money(self._random.randrange(1, 1_500_000))
        if chance < 0.1 and self.journal.commands:
            await self._until_answered(self._random.choice(list(self.journal.commands.values())))
        elif chance < 0.5:
            await self._command(center, "deposit_cash", amount=amount)
        elif chance < 0.65:
            await self._command(center, "deposit_cash", amount=amount, ad_account_id=account)
        elif chance < 0.75:
            voucher = f"voucher-{self._random.getrandbits(64):x}"
            await self._command(center, "grant_voucher", voucher_id=voucher, amount=amount, ad_account_id=account)
        elif chance < 0.85:
            await self._command(center, "set_credit_line", limit=amount)
        elif chance < 0.93:
            await self._command(center, "set_budget", ad_account_id=account, mode="daily", amount=amount)
        else:
            campaign = {"ad_account_id": account, "campaign_id": self._random.choice(CAMPAIGNS)}
            await self._command(center, "set_campaign_budget", mode="daily", amount=amount, **campaign)

    async def _command(self, center: str, type_: str, **fields: str) -> None:
        command: Record = {
            "command_id": str(UUID(int=self._random.getrandbits(128), version=4)),
            "type": type_,
            "business_center_id": center,
            "issued_at": rfc3339(_now_us()),
            "actor": {"id": "chaos", "role": "admin"},
            **fields,
        }
        commanded = Commanded(command)
        self.journal.commands[command["command_id"]] = commanded
        await self._until_answered(commanded)

    async def _until_answered(self, commanded: Commanded) -> None:
        """Send a command again with the same id until there is an outcome, like a careful client."""
        give_up_at = time.monotonic() + _DEADLINE_SECONDS
        while time.monotonic() < give_up_at:
            with contextlib.suppress(httpx.TransportError):
                answer = await self._api.post("/v1/commands", json=commanded.command)
                if answer.status_code in (200, 422):
                    commanded.answers.append(answer.json())
                    return
                assert answer.status_code in (500, 503, 504), answer.text
            await asyncio.sleep(_PAUSE_SECONDS)
        raise TimeoutError(f"no answer to {commanded.command}")


async def _nothing() -> None:
    return None


def _now_us() -> int:
    return time.time_ns() // 1000
