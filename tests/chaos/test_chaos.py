"""The machinery of `make chaos` in short: one kill at every step, some overtaken writers, a cut connection.

The whole suite is `make chaos` (docs/faults.md).
"""

from pathlib import Path

import asyncpg
import pytest

from drawdown.deployment.migrate import migrate
from drawdown.local.system import prepare
from shared.runtime.settings import Settings
from tests.chaos.faults import connections_reset, hurt, rig
from tests.chaos.kills import Killer, Tally, never_reached
from tests.chaos.machine import Machine, audit, check, under_load
from tests.chaos.steps import STEPS, find
from tests.chaos.zombies import overtake_writers

# The faults are those of production's servers.
pytestmark = pytest.mark.containers

SEED = 7


@pytest.mark.timeout(600)  # Seconds on an idle machine, minutes on a busy one.
async def test_kills_at_every_step_lose_and_double_nothing(settings: Settings, reachable_path: Path) -> None:
    await prepare(settings)
    machine, tally = Machine(settings, reachable_path), Tally()
    for name in machine.names:
        machine.start(name)
    try:
        await machine.all_ready()
        async with under_load(machine, SEED) as (load, api):
            load.resume()
            machine.kill()
            await Killer(machine, SEED, tally, print).kill_at_every_step()
            findings = await check(load, settings.database_url, settings.kafka_bootstrap_servers, api)
            assert not findings, findings.examples()
            assert await audit(settings) == []
            await lose_the_last_spend(settings.database_url)
            damaged = await check(load, settings.database_url, settings.kafka_bootstrap_servers, api)
            assert any("is not in the ledger" in each for each in damaged.lost), damaged
            assert any("its root is not that of the entries" in each for each in damaged.wrong), damaged
    finally:
        machine.kill()
    assert never_reached(tally) == []
    assert tally.other_ends == []


async def lose_the_last_spend(database_url: str) -> None:
    """Delete the last spend, as only a superuser can, so that the checker must find it."""
    database = await asyncpg.connect(database_url)
    shard, spend = await database.fetchrow(
        "SELECT shard, source_event_id FROM ledger.entries"
        " WHERE day IS NOT NULL AND reverses IS NULL AND part = 0 ORDER BY recorded_at DESC, position DESC LIMIT 1"
    )
    table = f"ledger.entries_{shard}"
    async with database.transaction():
        await database.execute(f"ALTER TABLE {table} DISABLE TRIGGER append_only")
        await database.execute(f"DELETE FROM {table} WHERE source_event_id = $1", spend)
    await database.close()


async def test_an_unknown_step_stops_the_process() -> None:
    with pytest.raises(AttributeError):
        find("services.allocation.worker:Worker.no_such_step")
    with pytest.raises(ImportError):
        find("services.allocation.no_such_module:step")


def test_every_step_has_a_unique_name() -> None:
    assert len({(step.service, step.name) for step in STEPS}) == len(STEPS)


async def test_overtaken_writers_cannot_write(empty_database_url: str) -> None:
    settings = Settings(database_url=empty_database_url)
    assert await overtake_writers(settings, 10, print) == []


async def test_a_missing_fence_in_the_ledger_is_detected(empty_database_url: str) -> None:
    settings = Settings(database_url=empty_database_url)
    await migrate(settings.model_copy(update={"shards": 1}))
    await remove_the_fence(empty_database_url)
    problems = await overtake_writers(settings, 1, print)
    assert "was stopped by chance alone" in problems[0]


async def remove_the_fence(database_url: str) -> None:
    """Remove the comparison of the epoch, and what depends on it."""
    database = await asyncpg.connect(database_url)
    function = await database.fetchval("SELECT pg_get_functiondef('ledger.move_lease'::regproc)")
    compared = function[function.index("AND epoch") : function.index("IF NOT FOUND")]
    await database.execute(function.replace(compared, ";\n"))
    await database.close()


@pytest.mark.containers
async def test_reset_connections_lose_nothing(tmp_path: Path) -> None:
    async with rig(SEED) as its_rig:
        result = await hurt(its_rig, connections_reset)
    assert not result.findings, result.findings.examples()
    assert result.lies == []
