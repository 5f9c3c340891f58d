"""The declaration of a read model is true in the database, and its tables follow from the ledger alone."""

import asyncpg
import pytest

from services.balance.service import FOLLOWER as BALANCE
from services.incentives.service import FOLLOWER as INCENTIVES
from shared.ledger.follow import Follower
from shared.runtime.read_models import READ_MODELS, ReadModel
from tests.integration.audit_ledger import fold, write_random_ledger

# What the follower writes besides and does not know from the ledger: what it has told which broker.
BESIDES = {"signals.incarnations"}
_WRITTEN = """
    SELECT oid::regclass::text FROM pg_class
    WHERE relnamespace = $1::text::regnamespace AND relkind IN ('r', 'p') AND has_table_privilege($2, oid, 'INSERT')
"""


@pytest.mark.parametrize("model", READ_MODELS, ids=lambda model: model.name)
async def test_a_follower_writes_only_the_tables_that_it_declares(model: ReadModel, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    written = {row[0] for row in await connection.fetch(_WRITTEN, model.name, model.role)}
    await connection.close()
    assert written - BESIDES == set(model.qualified_tables)


@pytest.mark.parametrize("follower", [BALANCE, INCENTIVES], ids=lambda follower: follower.name)
async def test_a_deleted_read_model_is_rebuilt_from_the_ledger(follower: Follower, database_url: str) -> None:
    (model,) = [model for model in READ_MODELS if model.name == follower.name]
    await write_random_ledger(database_url, seed=12, steps=200)
    await fold(database_url, follower)
    connection = await asyncpg.connect(database_url)

    async def rows() -> dict[str, list[str]]:
        return {
            table: [row[0] for row in await connection.fetch(f"SELECT t::text FROM {table} AS t ORDER BY 1")]
            for table in model.qualified_tables
        }

    folded = await rows()
    assert any(folded.values())
    await connection.execute(model.forgetting)
    assert not any((await rows()).values())
    await fold(database_url, follower)
    assert await rows() == folded
    await connection.close()
