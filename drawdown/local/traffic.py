"""A generator of realistic ad spend, for `make run`. It uses what producers may use: HTTP commands and `spend.events`.

It opens a cast of Business Centers, with and without automatic allocation, and funds them so that some balances run out
within seconds; it tops those up from time to time. Like ad delivery, it stops spending on paused entities a little
late. A few events are late, repeated, reversed, sent to the wrong partition, or broken.
"""

import asyncio
import itertools
import json
import random
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

from aiokafka import AIOKafkaProducer

from drawdown.api_client import ApiClient
from drawdown.local.subscriber import Subscriber
from shared.runtime.clock import Clock
from shared.runtime.kafka import SPEND_EVENTS, create_producer, stop_client
from shared.runtime.settings import Settings

Command = dict[str, Any]
Event = dict[str, Any]
Say = Callable[[str], None]

SEED = 20_261_122
_USUAL_RATE = 500
_TICK_SECONDS = 0.05
# Each fetch that finds a record makes the embedded broker scan all batches of the partition. Few and large batches keep
# `make run` fast for hours; 20 batches a second filled the broker's core after some minutes.
_LINGER_MS = 250
_LARGEST_BATCH_BYTES = 256 * 1024
_TOP_UP_SECONDS = 3
# How many draws to make for a campaign that still delivers.
_DRAWS = 20
# After a pause, spend from auctions already won still arrives for this long.
_IN_FLIGHT_SECONDS = 2.0
_MEAN_AMOUNT = 0.02
_NAMESPACE = uuid.UUID("6f1f5a0e-6b0e-4a55-9d0a-3f0f6c1a7b11")
_MICROS = 1_000_000

# How many of a thousand events are of each kind.
_DUPLICATES = 10
_REVERSALS = 5
_BAD = 2
_LATE = 20
_OUT_OF_ORDER = 50
_MISDIRECTED = 5


@dataclass(frozen=True)
class Account:
    """An ad account of the cast."""

    id: str
    billing: str = "monthly_invoicing"
    buying_type: str = "auction"
    cash: str | None = None
    budget: tuple[str, str | None] | None = None
    campaigns: tuple[str, ...] = ("brand", "search", "retargeting")


@dataclass(frozen=True)
class BusinessCenter:
    """A Business Center of the cast.

    `share` is its percentage of all spend, and `scale` a factor for its amounts. `automatic` says whether automatic
    allocation is enabled before its accounts are opened, after that, or never.
    """

    id: str
    currency: str
    time_zone: str
    share: int
    accounts: tuple[Account, ...]
    scale: float = 1.0
    cash: str | None = None
    credit_line: str | None = None
    voucher: str | None = None
    automatic: Literal["first", "last", "never"] = "never"
    campaign_budgets: tuple[tuple[str, str, str, str], ...] = ()


# 500 spends a second of 0.02 on average make 10 units a second in total, so a share of 30 is 3 units a second.
CAST = (
    BusinessCenter(
        "northwind",  # Automatic allocation is enabled last, so balances move and set the budgets.
        "USD",
        "America/New_York",
        share=30,
        credit_line="15.00",
        automatic="last",
        accounts=(
            Account("northwind-us", cash="40.00"),
            Account("northwind-ca", cash="10.00", budget=("daily", "5000.00")),
            Account("northwind-outlet", cash="10.00"),
        ),
    ),
    BusinessCenter(
        "sakura",
        "JPY",
        "Asia/Tokyo",
        share=20,
        scale=100.0,
        voucher="2500.00",
        cash="1500.00",
        automatic="first",
        accounts=(Account("sakura-tokyo"), Account("sakura-osaka", budget=("custom", "900.00"))),
    ),
    BusinessCenter(
        "blue-harbor",
        "EUR",
        "Europe/Berlin",
        share=20,
        accounts=(
            Account("blue-harbor-shop", billing="prepay", cash="25.00"),
            Account("blue-harbor-app", billing="prepay", cash="5000.00", budget=("custom", "20.00")),
        ),
    ),
    BusinessCenter(
        "andes-travel",
        "USD",
        "America/Bogota",
        share=15,
        credit_line="100000.00",
        automatic="first",
        campaign_budgets=(("andes-travel-main", "brand", "lifetime", "1.00"),),
        accounts=(
            Account("andes-travel-main"),
            Account("andes-travel-agency", buying_type="reservation", cash="3000.00"),
        ),
    ),
    BusinessCenter(
        "outback-gear",
        "AUD",
        "Australia/Sydney",
        share=15,
        cash="1000000.00",
        automatic="first",
        accounts=(Account("outback-gear-main"), Account("outback-gear-clearance")),
    ),
)


def set_up_commands(cast: tuple[BusinessCenter, ...], issued_at: str) -> Iterator[Command]:
    """Yield the commands that open and fund the cast. Idempotent, because they and their ids are always the same."""
    for center in cast:
        for index, command in enumerate(_opening(center)):
            yield _command(center.id, issued_at, f"set-up/{index}", **command)


def _opening(center: BusinessCenter) -> Iterator[Command]:
    yield {"type": "open_business_center", "currency": center.currency, "time_zone": center.time_zone}
    if center.cash:
        yield {"type": "deposit_cash", "amount": center.cash}
    if center.credit_line:
        yield {"type": "set_credit_line", "limit": center.credit_line}
    if center.voucher:
        yield {"type": "grant_voucher", "voucher_id": "welcome", "amount": center.voucher}
    if center.automatic == "first":
        yield {"type": "enable_automatic_allocation"}
    for account in center.accounts:
        yield {
            "type": "open_ad_account",
            "ad_account_id": account.id,
            "billing": account.billing,
            "buying_type": account.buying_type,
            "time_zone": center.time_zone,
        }
        if account.cash:
            yield {"type": "deposit_cash", "ad_account_id": account.id, "amount": account.cash}
        if account.budget:
            mode, amount = account.budget
            yield {"type": "set_budget", "ad_account_id": account.id, "mode": mode, "amount": amount}
    for account_id, campaign_id, mode, amount in center.campaign_budgets:
        campaign = {"ad_account_id": account_id, "campaign_id": campaign_id}
        yield {"type": "set_campaign_budget", **campaign, "mode": mode, "amount": amount}
    if center.automatic == "last":
        yield {"type": "enable_automatic_allocation"}


def _command(business_center_id: str, issued_at: str, key: str, **fields: Any) -> Command:
    return {
        "command_id": str(uuid.uuid5(_NAMESPACE, f"{business_center_id}/{key}")),
        "business_center_id": business_center_id,
        "issued_at": issued_at,
        "actor": {"id": "traffic-generator", "role": "admin"},
        **fields,
    }


@dataclass
class Spends:
    """Generates events from a seed. Their ids are random, so that a second run does not repeat the first."""

    now: Callable[[], datetime]
    subscriber: Subscriber = field(default_factory=Subscriber)
    cast: tuple[BusinessCenter, ...] = CAST
    seed: int = SEED

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._numbers = itertools.count()
        self._recent: deque[Event] = deque(maxlen=2000)
        self._places = [
            (center, account, campaign)
            for center in self.cast
            for account in center.accounts
            for campaign in account.campaigns
        ]
        self._weights = [
            center.share / len(center.accounts) / len(account.campaigns) for center, account, _ in self._places
        ]
        self._stopped_at: dict[tuple[str, str], float] = {}

    def next(self) -> tuple[bytes, bytes, bool] | None:
        """Return the next record: its key, its value, and whether to send it to a random partition.

        Returns None if hardly any campaign delivers any longer.
        """
        drawn = self._random.randrange(1000)
        if drawn < _DUPLICATES and self._recent:
            return self._record(self._random.choice(self._recent))
        if drawn < _DUPLICATES + _REVERSALS and self._recent:
            return self._record(self._reversal(self._random.choice(self._recent)))
        spend = self._spend()
        if spend is None:
            return None
        if drawn >= 1000 - _BAD:
            return self._broken(spend)
        self._recent.append(spend)
        return self._record(spend)

    def _record(self, event: Event) -> tuple[bytes, bytes, bool]:
        misdirected = self._random.randrange(1000) < _MISDIRECTED
        return event["business_center_id"].encode(), json.dumps(event).encode(), misdirected

    def _spend(self) -> Event | None:
        for _ in range(_DRAWS):
            center, account, campaign = self._random.choices(self._places, self._weights)[0]
            if self._serves(account.id, campaign):
                return self._spend_of(center, account, campaign)
        return None

    def _spend_of(self, center: BusinessCenter, account: Account, campaign: str) -> Event:
        micros = min(self._random.lognormvariate(-0.5, 1.0), 20) * _MEAN_AMOUNT * center.scale * _MICROS
        return {
            "type": "spend",
            "event_id": self._id(),
            "business_center_id": center.id,
            "ad_account_id": account.id,
            "campaign_id": campaign,
            "amount": _decimal(max(1, round(micros))),
            "currency": center.currency,
            "occurred_at": _rfc3339(self.now() - self._delay()),
        }

    def _serves(self, account_id: str, campaign_id: str) -> bool:
        place = (account_id, campaign_id)
        if self.subscriber.is_delivering(*place):
            self._stopped_at.pop(place, None)
            return True
        return time.monotonic() - self._stopped_at.setdefault(place, time.monotonic()) < _IN_FLIGHT_SECONDS

    def _delay(self) -> timedelta:
        drawn = self._random.randrange(1000)
        if drawn < _LATE:
            return timedelta(seconds=self._random.uniform(60, 2 * 86_400))
        if drawn < _LATE + _OUT_OF_ORDER:
            return timedelta(seconds=self._random.uniform(0.5, 5))
        return timedelta(seconds=self._random.uniform(0, 0.2))

    def _reversal(self, spend: Event) -> Event:
        return {
            **spend,
            "type": "reversal",
            "event_id": self._id(),
            "reverses": spend["event_id"],
            "occurred_at": _rfc3339(self.now()),
            "reason": "invalid_traffic",
        }

    def _broken(self, spend: Event) -> tuple[bytes, bytes, bool]:
        value = json.dumps(spend).encode()
        key = spend["business_center_id"].encode()
        changes: list[Event] = [
            {"amount": "-1.00"},
            {"amount": 0.25},
            {"currency": "XTS"},
            {"ad_account_id": "nobody"},
            {"occurred_at": _rfc3339(self.now() - timedelta(days=400))},
            {"occurred_at": "yesterday"},
        ]
        kind = self._random.randrange(len(changes) + 1)
        broken = value[: len(value) // 2] if kind == len(changes) else json.dumps({**spend, **changes[kind]}).encode()
        return key, broken, False

    def _id(self) -> str:
        """Return a time-ordered UUID (version 7, RFC 9562): milliseconds, a counter, and random bits."""
        milliseconds = time.time_ns() // 1_000_000
        value = milliseconds << 80 | 0x7 << 76 | (next(self._numbers) & 0xFFF) << 64 | 0b10 << 62
        return str(uuid.UUID(int=value | uuid.uuid4().int >> 66))


class Traffic:
    """Opens the cast, publishes its spend, and tops up balances and budgets that run out."""

    def __init__(self, settings: Settings, client: ApiClient, subscriber: Subscriber, *, rate: int, say: Say) -> None:
        """Prepare a generator that sends nothing yet. `rate` is in spends a second."""
        self.sent = 0
        self._is_shut_out = False
        self._settings = settings
        self._client = client
        self._subscriber = subscriber
        self._rate = rate
        self._say = say
        self._clock = Clock(settings)

    async def run(self) -> None:
        """Send until cancelled, and then wait until the broker has acknowledged all records."""
        await self._set_up()
        producer = await create_producer(self._settings, linger_ms=_LINGER_MS, max_batch_size=_LARGEST_BATCH_BYTES)
        top_ups = asyncio.create_task(self._top_up_for_ever())
        try:
            await self._publish(producer)
        finally:
            top_ups.cancel()
            await asyncio.gather(top_ups, return_exceptions=True)
            await stop_client(producer)

    async def _set_up(self) -> None:
        by_center: dict[str, list[Command]] = {}
        for command in set_up_commands(CAST, _rfc3339(self._clock.now())):
            by_center.setdefault(command["business_center_id"], []).append(command)
        await asyncio.gather(*(self.send_in_order(commands) for commands in by_center.values()))
        self._say(f"{len(CAST)} Business Centers, {self._rate} spends a second from the traffic generator")

    async def send_in_order(self, commands: list[Command]) -> None:
        """Send commands one after the other, and report those that were refused."""
        for command in commands:
            outcome = await self._client.command(command)
            if outcome.get("code") == "unauthenticated":
                self._tell_that_shut_out(outcome["message"])
                return
            self._is_shut_out = False
            # A conflict means that an earlier release sent this command with a token of another role.
            if outcome.get("status") != "accepted" and outcome.get("code") != "conflict":
                self._say(f"{command['business_center_id']}: {command['type']}: {outcome.get('message', outcome)}")

    def _tell_that_shut_out(self, why: str) -> None:
        """Report it once instead of every few seconds. Spend continues from the remaining balances."""
        if not self._is_shut_out:
            self._is_shut_out = True
            self._say(f"{why}; nothing is opened or topped up until `make up` issues a new token")

    async def _publish(self, producer: AIOKafkaProducer) -> None:
        spends = Spends(self._clock.now, self._subscriber)
        self._subscriber.spending_since = self._clock.now()
        chance = random.Random(SEED)
        began = time.monotonic()
        drawn = 0
        while True:
            due = int((time.monotonic() - began) * self._rate) - drawn
            for _ in range(min(due, self._rate)):
                record = spends.next()
                if record is not None:
                    key, value, misdirected = record
                    partition = chance.randrange(self._settings.shards) if misdirected else None
                    await producer.send(SPEND_EVENTS, value, key=key, partition=partition)
                    self.sent += 1
            drawn += due
            await asyncio.sleep(_TICK_SECONDS)

    async def _top_up_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_TOP_UP_SECONDS)
            number = int(self._clock.now_us() // (_TOP_UP_SECONDS * _MICROS))
            center, fields = await self._top_up(number)
            command = _command(center, _rfc3339(self._clock.now()), f"top-up/{number}", **fields)
            await self.send_in_order([command])

    async def _top_up(self, number: int) -> tuple[str, Command]:
        """Return the Business Center and the fields of a top-up. The kinds take turns; amounts last a few seconds."""

        def amount(units: int) -> str:
            return _decimal(units * _MICROS * self._rate // _USUAL_RATE)

        match number % 7:
            case 0:
                return "northwind", {"type": "deposit_cash", "amount": amount(60)}
            case 1:
                campaign = await self._client.read("/v1/ad-accounts/andes-travel-main/campaigns/brand")
                spent = Decimal(campaign["budget"]["spent"] or 0) if campaign else Decimal(0)
                names = {"ad_account_id": "andes-travel-main", "campaign_id": "brand", "mode": "lifetime"}
                total = _decimal(round((spent + Decimal(amount(3))) * _MICROS))
                return "andes-travel", {"type": "set_campaign_budget", **names, "amount": total}
            case 2:
                shop = {"ad_account_id": "blue-harbor-shop", "amount": amount(20)}
                return "blue-harbor", {"type": "deposit_cash", **shop}
            case 3:
                soon = _rfc3339(self._clock.now() + timedelta(seconds=60))
                voucher = {"voucher_id": f"weekly-{number}", "expires_at": soon, "amount": amount(3000)}
                return "sakura", {"type": "grant_voucher", **voucher}
            case 4:
                return "sakura", {"type": "reset_budget", "ad_account_id": "sakura-osaka"}
            case 5:
                return "northwind", {"type": "reset_budget", "ad_account_id": "northwind-outlet"}
            case _:
                return "blue-harbor", {"type": "reset_budget", "ad_account_id": "blue-harbor-app"}


def _decimal(micros: int) -> str:
    return f"{micros // _MICROS}.{micros % _MICROS:06d}"


def _rfc3339(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
