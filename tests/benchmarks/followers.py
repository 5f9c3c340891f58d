"""The speed at which each follower alone folds the ledger from its beginning.

All followers are stopped. Then, one at a time, each loses its read model and its checkpoint, is started, and is held at
the checkpoint by a row lock of ours. The clock starts when the lock is released, and ends when the follower has folded
everything. Meanwhile `signals` publishes all pauses and resumes again.
"""

import asyncio
import time

import asyncpg

from shared.runtime.read_models import READ_MODELS
from tests.benchmarks.bench import FOLLOWERS, Bench
from tests.benchmarks.watch import PATIENCE_SECONDS, SAMPLE_SECONDS

_HELD = "SELECT true FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock' LIMIT 1"


async def measure_followers(bench: Bench) -> dict[str, float]:
    """Measure the entries a second of each follower."""
    await bench.followers_settle()
    await bench.stop(*FOLLOWERS)
    rates = {}
    for follower in FOLLOWERS:
        rates[follower] = await _from_the_beginning(bench, follower)
        bench.say(f"{follower} folds {rates[follower]:,.0f} entries a second")
        await bench.stop(follower)
    await bench.start(*FOLLOWERS)
    return rates


async def _from_the_beginning(bench: Bench, follower: str) -> float:
    entries = sum((await bench.ledger.positions()).values())
    await _forget(bench.ledger.connection, follower)
    holder = await asyncpg.connect(bench.system.database_url)
    try:
        async with holder.transaction():
            await holder.fetch("SELECT FROM ledger.checkpoints WHERE follower = $1 FOR UPDATE", follower)
            bench.system.services[follower].start()
            await _until_held(bench, follower)
        released = time.perf_counter()
        return entries / (await bench.ledger.wait_for_follower(follower) - released)
    finally:
        await holder.close()


async def _forget(connection: asyncpg.Connection, follower: str) -> None:
    """Empty what a follower makes of the ledger, and reset its checkpoints."""
    async with connection.transaction():
        await connection.execute(next(model.forgetting for model in READ_MODELS if model.name == follower))


async def _until_held(bench: Bench, follower: str) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            if await bench.ledger.connection.fetchval(_HELD, follower):
                return
            await asyncio.sleep(SAMPLE_SECONDS)
