"""Grants that left the writer's memory are found again in the real ledger: by the writer, the next owner and the
auditor.
"""

import json
from collections.abc import AsyncIterator
from uuid import UUID

import asyncpg
import pytest

from services.allocation.deciding import Decider
from services.allocation.lease import Lease, claim
from services.allocation.memory import snapshots
from services.allocation.memory.looking_up import look_up
from services.allocation.records.batch_decoding import decode
from services.allocation.records.record_decoding import Raw
from services.allocation.writing.append import BatchWrite, append
from services.auditor.cli import replay
from shared.ledger.decoding import copy_entries, split_rows
from shared.ledger.encoding import encode_entries
from shared.ledger.lookup import plain_types
from shared.rules.shard import Shard
from shared.runtime.kafka import FINANCE_COMMANDS, SPEND_EVENTS
from shared.runtime.settings import Settings
from tests.integration.audit_ledger import SHARDS
from tests.model.shards import shard_of
from tests.unit.test_rules_forget import Remembering
from tests.unit.tied_work import POLICIES, Batch, Message, TiedWork
from tests.zones import INSTALLED

SHARD = shard_of("b", SHARDS)


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url, server_settings={"timezone": "UTC"})
    await plain_types(connection)
    for policy in set(POLICIES):
        await connection.execute("INSERT INTO ledger.policies VALUES ($1, $2)", policy.version, policy.content())
    yield connection
    await connection.close()


class BusyWriter:
    """Decides each batch while the previous one is not in the ledger yet, like the worker."""

    def __init__(self, connection: asyncpg.Connection, lease: Lease) -> None:
        self.rules = Shard(zones=INSTALLED)
        self._connection = connection
        self._lease = lease
        self._pending: BatchWrite | None = None
        self._offset = lease.spend_offset

    async def write(self, batch: Batch) -> None:
        policy, now, messages = batch
        commands, events = ([_raw(each) for each in messages if each[0] == kind] for kind in ("command", "event"))
        decoded = await decode(commands, events)
        known = await look_up(self._connection, SHARD, self.rules, decoded)
        self._offset += len(messages)
        write = BatchWrite(0, policy.version, self._offset, self._lease.command_offset)
        await Decider(SHARD, SHARDS, self.rules, policy, INSTALLED).decide(decoded, known, now, write)
        await self.finish()
        self._pending = write

    async def finish(self) -> None:
        if self._pending is not None:
            await append(self._connection, self._lease, self._pending)
        self._pending = None


def _raw(message: Message) -> Raw:
    kind, value = message
    return Raw(FINANCE_COMMANDS if kind == "command" else SPEND_EVENTS, SHARD, 0, None, value, ())


def commands_first(batch: Batch) -> Batch:
    policy, now, messages = batch
    return policy, now, sorted(messages, key=lambda message: message[0] != "command")


def batch_with_only_a_refusal(ledger: Remembering, now: int) -> Batch:
    """Decide a batch in which only a voucher is granted, under the id of one that was used up long ago."""
    grants = ledger.rules.business_centers["b"].grants.values()
    used_up = next(grant.id for grant in grants if grant.kind == "voucher" and not grant.filled)
    again = {
        "type": "grant_voucher",
        "command_id": str(UUID(int=1)),
        "business_center_id": "b",
        "issued_at": "2027-03-10T12:00:00Z",
        "actor": {"id": "x", "role": "admin"},
        "voucher_id": used_up,
        "amount": "1",
    }
    message = json.dumps(again).encode()
    return POLICIES[0], now + 1, [("command", message)]


@pytest.mark.parametrize("seed", [1, 2])
async def test_the_ledger_equals_that_of_rules_that_forget_nothing(
    seed: int, connection: asyncpg.Connection, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    [lease] = [lease for lease in await claim(connection, "test", SHARDS) if lease.shard == SHARD]
    writer, remembering = BusyWriter(connection, lease), Remembering()
    for batch in map(commands_first, TiedWork(seed).history(250)):
        remembering.policy, now, messages = batch
        remembering.batch(messages, now)
        await writer.write(batch)
    await writer.write(batch_with_only_a_refusal(remembering, now))
    await writer.finish()

    decided = zip(remembering.entries, remembering.recorded, strict=True)
    expected = [encode_entries([entry], SHARD, at, time)[0] for at, (entry, time) in enumerate(decided, 1)]
    assert split_rows(await copy_entries(connection, SHARD, 1, len(expected))) == expected
    assert len(writer.rules.business_centers["b"].grants) < len(remembering.rules.business_centers["b"].grants) / 2

    assert await replay(Settings(database_url=database_url), as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["checked"]["commands_refused"] > 0
    heir, _ = await snapshots.load(connection, lease, POLICIES[0], deduplication_days=7)
    assert len(heir.business_centers["b"].grants) < len(remembering.rules.business_centers["b"].grants) / 2


async def test_a_grant_is_found_by_its_own_index(connection: asyncpg.Connection) -> None:
    await connection.execute("SET enable_seqscan = off")
    plan = await connection.fetch(
        f"EXPLAIN SELECT * FROM ledger.entries_{SHARD} WHERE kind IN ('grant', 'allocation_in')"
        " AND (business_center_id, grant_id) IN (SELECT * FROM unnest(ARRAY['b'], ARRAY['v']))"
    )
    assert any("business_center_id_grant_id" in row[0] for row in plan), plan
