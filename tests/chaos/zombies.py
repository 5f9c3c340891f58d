"""A writer that has lost its lease tries to append a batch it has decided; it is refused, and the ledger is unchanged.

This runs the product's own code on a real PostgreSQL. Half of the writers have a working connection; the other half
are within their transaction, just before COMMIT, when they are overtaken.
"""

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import asyncpg

from drawdown.deployment.migrate import migrate
from services.allocation.deciding import Decider
from services.allocation.lease import Lease, LeaseLostError, announce, claim, end_sessions
from services.allocation.memory import snapshots
from services.allocation.memory.looking_up import look_up
from services.allocation.records.batch_decoding import decode
from services.allocation.records.record_decoding import Raw
from services.allocation.writing.append import BatchWrite, append
from shared.contracts.zones import installed_zones
from shared.ledger.lookup import plain_types
from shared.rules.policy import STANDARD
from shared.rules.shard import Shard
from shared.runtime.kafka import FINANCE_COMMANDS, SPEND_EVENTS
from shared.runtime.postgres import connect, is_lost
from shared.runtime.roles import ALLOCATION_ROLE
from shared.runtime.settings import Settings
from tests.chaos.machine import audit
from tests.model.forms import instant, rfc3339

CENTER, ACCOUNT = "chaos", "chaos-account"
SPENDS_OF_BATCH = 3
_TRIES_SECONDS = 20.0
_START_US = instant("2027-01-01T00:00:00Z")


class Held:
    """A connection that waits just before COMMIT until it is released."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self.is_held = asyncio.Event()
        self.let_go = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def execute(self, statement: str, *arguments: Any) -> str:
        if statement.endswith("COMMIT"):
            self.is_held.set()
            await self.let_go.wait()
        status: str = await self._connection.execute(statement, *arguments)
        return status


@dataclass
class Writer:
    """One owner of the shard, with its own connections."""

    stack: AsyncExitStack
    writing: asyncpg.Connection
    lease: Lease
    rules: Shard

    async def decided(self) -> BatchWrite:
        """Return a batch of spends that is decided in memory."""
        return await _decide(self.writing, self.lease, self.rules, [], [_spend() for _ in range(SPENDS_OF_BATCH)])


async def overtake_writers(settings: Settings, times: int, say: Callable[[str], None]) -> list[str]:
    """Overtake `count` writers of a new ledger; return a sentence for each defect."""
    settings = settings.model_copy(update={"shards": 1})
    await migrate(settings)
    admin = await asyncpg.connect(settings.database_url)
    problems: list[str] = []
    writer = await _take_over(settings)
    await _open(writer)
    for number in range(times):
        zombie, in_transaction = writer, number % 2 == 1
        try:
            writer = await _overtake(settings, admin, zombie, in_transaction, problems)
        finally:
            await zombie.stack.aclose()
        if number % 100 == 99:
            say(f"  {number + 1} writers overtaken, not refused: {len(problems)}")
    await writer.stack.aclose()
    await admin.close()
    return problems + await audit(settings)


async def _overtake(
    settings: Settings, admin: asyncpg.Connection, zombie: Writer, in_transaction: bool, problems: list[str]
) -> Writer:
    """Let another writer take the shard and write, then let the zombie try; return the other writer."""
    write = await zombie.decided()
    held = Held(zombie.writing)
    attempt: Awaitable[None] = append(held, zombie.lease, write)
    if in_transaction:
        attempt = asyncio.ensure_future(attempt)
        await held.is_held.wait()
    # The owner counts as dead at once, because waiting three seconds a thousand times would take too long.
    writer = await _take_over(settings, await admin.fetch("SELECT owner FROM ledger.shards WHERE owner IS NOT NULL"))
    await append(writer.writing, writer.lease, await writer.decided())
    before = await _ledger(admin)
    held.let_go.set()
    try:
        await attempt
        problems.append(f"a writer of epoch {zombie.lease.epoch} wrote after {writer.lease.epoch} had begun")
    except LeaseLostError:
        pass
    except Exception as error:
        if is_lost(error) and in_transaction:
            return writer
        problems.append(f"a writer of epoch {zombie.lease.epoch} was stopped by chance alone: {error!r}")
    if await _ledger(admin) != before:
        problems.append(f"the ledger changed as a writer of epoch {zombie.lease.epoch} tried")
    return writer


async def _take_over(settings: Settings, stale: Sequence[Any] = ()) -> Writer:
    """End the sessions of an owner without a heartbeat, and take the shard, like a starting process."""
    owner = f"chaos:{uuid.uuid4().hex[:8]}"
    stack = AsyncExitStack()
    keeper, writing = [
        await connect(settings, ALLOCATION_ROLE, f"drawdown allocation {what} {owner[-8:]}")
        for what in ("lease", "writes 0")
    ]
    for connection in (keeper, writing):
        stack.push_async_callback(connection.close, timeout=5)
        await plain_types(connection)
    await announce(keeper, owner)
    async with asyncio.timeout(_TRIES_SECONDS):
        owners = [row["owner"] for row in stale]
        while not (leases := await claim(keeper, owner, 1, owners)):
            await end_sessions(keeper, owners)
    (lease,) = leases
    rules, _ = await snapshots.load(writing, lease, STANDARD, 7)
    return Writer(stack, writing, lease, rules)


async def _open(writer: Writer) -> None:
    await writer.writing.execute(
        "INSERT INTO ledger.policies VALUES ($1, $2) ON CONFLICT DO NOTHING", STANDARD.version, STANDARD.content()
    )
    account = {"billing": "monthly_invoicing", "buying_type": "auction", "time_zone": "UTC"}
    commands = [
        _command("open_business_center", currency="USD", time_zone="UTC"),
        _command("open_ad_account", ad_account_id=ACCOUNT, **account),
        _command("deposit_cash", amount="1000", ad_account_id=ACCOUNT),
    ]
    await append(writer.writing, writer.lease, await _decide(writer.writing, writer.lease, writer.rules, commands, []))


async def _decide(
    connection: asyncpg.Connection, lease: Lease, rules: Shard, commands: list[Raw], events: list[Raw]
) -> BatchWrite:
    decoded = await decode(commands, events)
    known = await look_up(connection, lease.shard, rules, decoded)
    write = BatchWrite(0, STANDARD.version, lease.spend_offset + len(events), lease.command_offset + len(commands))
    await Decider(lease.shard, 1, rules, STANDARD, installed_zones()).decide(
        decoded, known, max(_START_US, lease.ledger_time), write
    )
    return write


def _spend() -> Raw:
    content = {"campaign_id": "spring", "amount": "0.01", "currency": "USD", "occurred_at": rfc3339(_START_US)}
    return _raw(SPEND_EVENTS, {**content, "type": "spend", "event_id": str(uuid.uuid4()), "ad_account_id": ACCOUNT})


def _command(type_: str, **fields: str) -> Raw:
    actor = {"id": "chaos", "role": "admin"}
    identity = {"command_id": str(uuid.uuid4()), "issued_at": rfc3339(_START_US), "actor": actor}
    return _raw(FINANCE_COMMANDS, {**identity, "type": type_, **fields})


def _raw(topic: str, message: dict[str, Any]) -> Raw:
    return Raw(topic, 0, 0, None, json.dumps({**message, "business_center_id": CENTER}).encode(), ())


async def _ledger(admin: asyncpg.Connection) -> tuple[Any, ...]:
    """Return what a writer can change: the ends of its tables, and the lease without its renewal."""
    row = await admin.fetchrow(
        """
        SELECT (SELECT count(*) FROM ledger.entries), (SELECT count(*) FROM ledger.batches),
            (SELECT count(*) FROM ledger.outcomes), (SELECT sum(hashtextextended(e::text, 0)) FROM ledger.entries e
             WHERE position > s.position - 20), epoch, owner, position, frontier, spend_offset, command_offset
        FROM ledger.shards s WHERE shard = 0
        """
    )
    return tuple(row)
