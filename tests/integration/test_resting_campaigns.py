"""Campaigns at rest in the real ledger: the writer, the next owner without a snapshot, and the auditor agree."""

import json
from collections.abc import AsyncIterator

import asyncpg
import pytest

from services.allocation.lease import Lease, claim
from services.allocation.memory import snapshots
from services.auditor.cli import replay, verify
from shared.ledger.decoding import copy_entries, split_rows
from shared.ledger.encoding import encode_entries
from shared.ledger.lookup import plain_types
from shared.runtime.settings import Settings
from tests.integration.audit_ledger import SHARDS
from tests.integration.test_forgotten_grants import SHARD, BusyWriter, commands_first
from tests.unit.pure_ledger import PureLedger
from tests.unit.tied_work import POLICIES, TiedWork

MOST = 8


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database_url, server_settings={"timezone": "UTC"})
    await plain_types(connection)
    for policy in set(POLICIES):
        await connection.execute("INSERT INTO ledger.policies VALUES ($1, $2)", policy.version, policy.content())
    yield connection
    await connection.close()


async def written(connection: asyncpg.Connection, seed: int) -> tuple[BusyWriter, Lease, list[bytes]]:
    """Return a writer that keeps few campaigns in memory, its lease, and the bytes of one that keeps all."""
    [lease] = [lease for lease in await claim(connection, "test", SHARDS) if lease.shard == SHARD]
    writer, staying = BusyWriter(connection, lease), PureLedger()
    writer.rules.campaigns.most = MOST
    for batch in map(commands_first, TiedWork(seed, campaigns=30).history(200)):
        staying.policy, now, messages = batch
        staying.batch(messages, now)
        await writer.write(batch)
    await writer.finish()
    decided = zip(staying.entries, staying.recorded, strict=True)
    expected = [encode_entries([entry], SHARD, at, time)[0] for at, (entry, time) in enumerate(decided, 1)]
    return writer, lease, expected


@pytest.mark.parametrize(("seed", "heirs_most"), [(1, MOST), (2, MOST), (1, MOST // 2), (2, MOST + 2)])
async def test_the_ledger_equals_that_of_rules_whose_campaigns_stay_in_memory(
    seed: int, heirs_most: int, connection: asyncpg.Connection, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    writer, lease, expected = await written(connection, seed)
    assert split_rows(await copy_entries(connection, SHARD, 1, len(expected))) == expected
    kept = await connection.fetchval("SELECT count(*) FROM ledger.resting_campaigns")
    assert kept > 30

    for audit in (replay, verify):
        assert await audit(Settings(database_url=database_url), as_json=True) == 0
        assert json.loads(capsys.readouterr().out)["checked"]["resting_campaigns"] == kept

    heir, _ = await snapshots.load(connection, lease, POLICIES[0], deduplication_days=7, most_campaigns=heirs_most)
    ever = {id: account.campaigns_ever for id, account in heir.accounts.items()}
    assert ever == {id: account.campaigns_ever for id, account in writer.rules.accounts.items()}
    assert heir.campaigns.count < sum(ever.values())
    capsys.readouterr()  # the log of the next owner
    more = await connection.fetchval("SELECT count(*) FROM ledger.resting_campaigns")
    assert await replay(Settings(database_url=database_url), as_json=True) == 0, "what the heir let rest is right too"
    assert json.loads(capsys.readouterr().out)["checked"]["resting_campaigns"] == more


@pytest.mark.parametrize(
    ("forged", "told"),
    [
        ("state = jsonb_set(state::jsonb, '{budget,total}', '77')::json", "the entries give"),
        ("campaign_id = 'nobody'", "is not in memory according to the entries"),
    ],
)
async def test_a_forged_resting_campaign_is_found(
    forged: str, told: str, connection: asyncpg.Connection, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await written(connection, 1)
    await connection.execute(
        f"""
        ALTER TABLE ledger.resting_campaigns DISABLE TRIGGER append_only;
        UPDATE ledger.resting_campaigns SET {forged} WHERE (shard, ad_account_id, campaign_id, position) IN (
            SELECT shard, ad_account_id, campaign_id, position FROM ledger.resting_campaigns
            ORDER BY position DESC LIMIT 1);
        ALTER TABLE ledger.resting_campaigns ENABLE ALWAYS TRIGGER append_only;
        """
    )
    assert await replay(Settings(database_url=database_url), as_json=False) == 1
    assert told in capsys.readouterr().out
