"""A ledger for the auditor's tests: random work, decided and appended as the writer does it, but without Kafka."""

import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Iterable
from typing import Any

import asyncpg

from services.allocation.deciding import Decider
from services.allocation.lease import Lease, claim
from services.allocation.memory.looking_up import look_up
from services.allocation.records.batch_decoding import decode
from services.allocation.records.record_decoding import Raw
from services.allocation.writing.append import BatchWrite, append
from services.balance import service as balance
from services.balance.service import FOLLOWER as BALANCE
from services.incentives.service import FOLLOWER as INCENTIVES
from shared.contracts.zones import installed_zones
from shared.ledger.follow import Follower, advance
from shared.ledger.lookup import plain_types
from shared.rules.policy import STANDARD, Policy
from shared.rules.shard import Shard
from shared.rules.versions import CURRENT
from shared.rules.ways import TopicTerms
from shared.runtime.kafka import FINANCE_COMMANDS, SPEND_EVENTS
from tests.model.shards import shard_of
from tests.model.workload import Work, Workload
from tests.unit.pure_ledger import KEYS, SIGNER

CLOSING_POSITIONS = 64
START_US = 1_795_000_000_000_000
SHARDS = 4


class LedgerWriter:
    """Writes all shards of an empty ledger."""

    def __init__(self, connection: asyncpg.Connection, leases: Iterable[Lease], policy: Policy = STANDARD) -> None:
        self.now = START_US
        self.policy = policy
        self._connection = connection
        self._leases = {lease.shard: lease for lease in leases}
        self.zones = installed_zones()
        self._rules = {shard: Shard(policy) for shard in self._leases}

    @property
    def leases(self) -> list[Lease]:
        """Return the leases of all shards."""
        return list(self._leases.values())

    def rules(self, shard: int) -> Shard:
        """Return a shard's rules as its last batch left them."""
        return self._rules[shard]

    async def write(self, works: Iterable[Work]) -> None:
        """Decide and append a batch in each shard to which some of the work belongs."""
        by_shard: dict[int, list[Work]] = {}
        for work in works:
            center = work.message.get("business_center_id")
            by_shard.setdefault(shard_of(str(center), SHARDS), []).append(work)
        for shard, own in sorted(by_shard.items()):
            await self._write(shard, own)

    async def _write(self, shard: int, works: list[Work]) -> None:
        raws = {
            kind: [
                _raw(topic, shard, offset, json.dumps(work.message).encode())
                for offset, work in enumerate(works)
                if work.kind == kind
            ]
            for kind, topic in (("command", FINANCE_COMMANDS), ("event", SPEND_EVENTS))
        }
        lease, rules = self._leases[shard], self._rules[shard]
        decoded = await decode(raws["command"], raws["event"], KEYS)
        takes_records = False
        while not takes_records:
            known = await look_up(self._connection, shard, rules, decoded)
            write = BatchWrite(0, "", lease.spend_offset, lease.command_offset)
            decider = Decider(shard, SHARDS, rules, self.policy, self.zones)
            await decider.decide(decoded, known, self.now, write)
            takes_records = not rules.has_due()
            write.spend_offset += len(works) if takes_records else 0
            await append(self._connection, lease, write)


def _raw(topic: str, shard: int, offset: int, value: bytes) -> Raw:
    """Return a raw record. The API has signed every second command."""
    is_signed = topic == FINANCE_COMMANDS and offset % 2
    return Raw(topic, shard, offset, None, value, [SIGNER.header(value)] if is_signed else ())


@contextlib.asynccontextmanager
async def ledger_writer(url: str, policies: Iterable[Policy] = (STANDARD,)) -> AsyncIterator[LedgerWriter]:
    """Yield a writer for the ledger of a new database, which begins under the first of these policies."""
    connection = await asyncpg.connect(url, server_settings={"timezone": "UTC"})
    try:
        await plain_types(connection)
        policies = list(policies)
        for policy in policies:
            await connection.execute("INSERT INTO ledger.policies VALUES ($1, $2)", policy.version, policy.content())
        yield LedgerWriter(connection, await claim(connection, "test", SHARDS), policies[0])
    finally:
        await connection.close()


async def write_random_ledger(url: str, seed: int, steps: int) -> None:
    """Write some days of everything that can happen, in batches of different sizes, under two policies.

    The second policy limits what the topic may name. Every second command came by the API.
    """
    pockets = (("ad_credit", "voucher", "cash", "credit"), ("cash", "credit_line"))
    other = Policy("other-order", *pockets, CURRENT, TopicTerms(largest_amount_micros=60_000_000))
    workload = Workload(seed)
    async with ledger_writer(url, (STANDARD, other)) as writer:
        await writer.write(workload.opening(writer.now))
        for step in range(steps):
            writer.now += 1_700_000_000 if step % 7 else 0
            writer.policy = other if step > steps * 2 // 3 else STANDARD
            await writer.write(workload.next(writer.now) for _ in range(1 + step % 6))


def bulk_ledger_works(accounts: int = 40) -> list[Work]:
    """Return the commands that open one Business Center with accounts that share a large balance."""
    center = {"business_center_id": "bulk", "issued_at": "2026-11-21T12:00:00Z", "actor": {"id": "a", "role": "admin"}}

    def command(type_: str, **fields: Any) -> Work:
        return Work("command", {**center, "type": type_, "command_id": str(uuid.uuid4()), **fields})

    opened = [
        command(
            "open_ad_account",
            ad_account_id=f"acct-{n}",
            billing="monthly_invoicing",
            buying_type="auction",
            time_zone="Asia/Tokyo",
        )
        for n in range(accounts)
    ]
    return [
        command("open_business_center", currency="USD", time_zone="UTC"),
        command("enable_automatic_allocation"),
        *opened,
        command("grant_voucher", voucher_id="v", amount="5000"),
        command("deposit_cash", amount="900000000"),
    ]


async def fold(url: str, *followers: Follower, steps: int = 100) -> None:
    """Let the followers of the read models fold, at most this many ranges of each shard. The books are closed often."""
    connection = await asyncpg.connect(url)
    usual, balance.CLOSING_POSITIONS = balance.CLOSING_POSITIONS, CLOSING_POSITIONS
    try:
        for follower in followers or (BALANCE, INCENTIVES):
            for shard in range(SHARDS):
                await connection.execute(
                    "INSERT INTO ledger.checkpoints VALUES ($1, $2) ON CONFLICT DO NOTHING", follower.name, shard
                )
                for _ in range(steps):
                    if not (await advance(connection, follower, shard)).behind:
                        break
    finally:
        balance.CLOSING_POSITIONS = usual
        await connection.close()
