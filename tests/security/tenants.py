"""Tenants of the checks: their Business Centers, commands and spends, and whether the system still serves them."""

import asyncio
import itertools
import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx

from shared.runtime.kafka import SPEND_EVENTS, murmur2_partition
from tests.security.check import UnfitError, require
from tests.security.records import Header, batch
from tests.security.target import Target
from tests.security.wire import wire

Fields = dict[str, Any]
# A spend behind an attack must be charged within the first time. After the second, the system counts as stopped.
CHARGED_SECONDS = 15.0
GIVEN_UP_SECONDS = 90.0
_POLL_SECONDS = 0.2
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Tenant:
    """A Business Center with one ad account, and cash."""

    id: str
    account: str
    shard: int

    @property
    def key(self) -> bytes:
        """The key of the tenant's records."""
        return self.id.encode()

    def spend(self, amount: str = "0.000001", campaign: str = "brand", **fields: Any) -> Fields:
        """Return a valid spend at the present time."""
        return {
            "type": "spend",
            "event_id": str(uuid.uuid4()),
            "business_center_id": self.id,
            "ad_account_id": self.account,
            "campaign_id": campaign,
            "amount": amount,
            "currency": "USD",
            "occurred_at": datetime.now(UTC).isoformat(),
            **fields,
        }


def a_command(center: str, type: str, **fields: Any) -> Fields:
    """Return a finance command at the present time."""
    return {
        "command_id": str(uuid.uuid4()),
        "type": type,
        "business_center_id": center,
        "issued_at": datetime.now(UTC).isoformat(),
        **fields,
    }


def an_account(id: str) -> Fields:
    """Return the fields that open an ordinary ad account."""
    return {
        "ad_account_id": id,
        "billing": "monthly_invoicing",
        "buying_type": "auction",
        "time_zone": "UTC",
    }


async def give(target: Target, token: str, command: Fields) -> httpx.Response:
    """Send a command through the API."""
    return await target.ask("POST", "/v1/commands", token, json=command)


async def open_tenant(target: Target, shard: int | None = None) -> Tenant:
    """Open a tenant, in the given shard if there is one. Raises UnfitError if the system refuses."""
    id = _new_id(target, shard)
    tenant = Tenant(id, f"{id}-acct", murmur2_partition(id.encode(), target.shards))
    token = target.token()
    for command in (
        a_command(id, "open_business_center", currency="USD", time_zone="UTC"),
        a_command(id, "deposit_cash", amount="1000000"),
        a_command(id, "enable_automatic_allocation"),
        a_command(id, "open_ad_account", **an_account(tenant.account)),
    ):
        answer = await give(target, token, command)
        if answer.status_code != httpx.codes.OK:
            raise UnfitError(f"no Business Center can be opened: {answer.status_code} {answer.text[:200]}")
    return tenant


def _new_id(target: Target, shard: int | None) -> str:
    while True:
        id = f"{target.prefix}-{next(_numbers)}"
        if shard is None or murmur2_partition(id.encode(), target.shards) == shard:
            return id


async def publish(target: Target, tenant: Tenant, events: Sequence[Fields], headers: Sequence[Header] = ()) -> int:
    """Publish events to the Business Center's partition as ad delivery; return the offset of the first."""
    written = batch([(tenant.key, json.dumps(event).encode(), headers) for event in events])
    async with wire(target, "ad-delivery") as kafka:
        code, offset = await kafka.send(SPEND_EVENTS, tenant.shard, written)
    require(code == 0, f"Kafka refuses a good spend: {code}")
    return offset


async def still_charges(target: Target, tenant: Tenant) -> str:
    """Publish a spend, and wait until it is charged.

    Raises BreachError if that takes too long, and UnfitError if it does not happen."""
    spend = tenant.spend()
    began = time.monotonic()
    await publish(target, tenant, [spend])
    if not await is_charged(target, spend["event_id"], GIVEN_UP_SECONDS):
        raise UnfitError(
            f"a spend of {tenant.id} behind it is not charged after {GIVEN_UP_SECONDS:.0f} s: the shard stands. "
            "`drawdown offsets skip` passes the record, see docs/runbook.md"
        )
    took = time.monotonic() - began
    require(took < CHARGED_SECONDS, f"a spend behind it was charged after {took:.0f} s only")
    return f"a spend behind it was charged after {1000 * took:.0f} ms"


async def is_charged(target: Target, event_id: str, seconds: float = CHARGED_SECONDS) -> bool:
    """Return whether a spend's entries are in the ledger within that time."""
    token = target.token()
    return await becomes_true(lambda: _has_entries(target, token, event_id), seconds)


async def _has_entries(target: Target, token: str, event_id: str) -> bool:
    try:
        answer = await target.ask("GET", f"/v1/ledger?source_event_id={event_id}", token)
    except httpx.HTTPError:
        return False
    return answer.status_code == httpx.codes.OK and bool(answer.json()["entries"])


async def becomes_true(condition: Any, seconds: float = CHARGED_SECONDS) -> bool:
    """Return whether a condition becomes true within that time."""
    give_up_at = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > give_up_at:
            return False
        await asyncio.sleep(_POLL_SECONDS)
    return True


async def quarantined(target: Target, topic: str, partition: int, first: int, last: int | None = None) -> list[Fields]:
    """Return quarantine's rows for these offsets: reason, offset, number of stored bytes, Business Center."""
    rows = await target.rows(
        'SELECT reason, "offset", coalesce(octet_length(raw), 0) + coalesce(octet_length(key), 0)'
        " + coalesce(octet_length(headers::text), 0), business_center_id FROM ledger.quarantine "
        f"WHERE topic = '{topic}' AND partition = {partition}"
        f' AND "offset" BETWEEN {first} AND {first if last is None else last}'
    )
    return [
        {"reason": reason, "offset": int(offset), "bytes": int(size), "business_center_id": center}
        for reason, offset, size, center in rows
    ]


class Watched:
    """A service's container, and whether it was restarted meanwhile."""

    def __init__(self, target: Target, service: str) -> None:
        self._target = target
        self._service = service
        self._before: tuple[Any, ...] = ()

    async def __aenter__(self) -> "Watched":
        self._before = await self._state()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, _trace: object) -> None:
        after = await self._state()
        if after != self._before and not issubclass(kind or Exception, UnfitError):
            require(held=False, came=f"{self._service} was started again: {self._before} became {after}{_said(error)}")

    async def _state(self) -> tuple[Any, ...]:
        found = await self._target.inspect(self._service)
        return found["RestartCount"], found["State"]["StartedAt"], found["State"]["OOMKilled"]


def _said(error: object) -> str:
    return "" if error is None else f": {type(error).__name__} {error}".rstrip()
