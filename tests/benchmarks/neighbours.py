"""`python -m tests.benchmarks.neighbours`: how long a subject waits while another does its worst."""

import asyncio
import itertools

import asyncpg

from drawdown.deployment.migrate import migrate
from shared.runtime.settings import Settings
from tests import servers
from tests.integration.neighbours import LOUD, QUIET, compare, dear_requests, fill, request, serving_apart
from tests.integration.tokens import issuer
from tests.servers import fresh_database, reachable_directory, settings_with

ROUNDS, COUNT = 5, 200


async def _main() -> None:
    with reachable_directory() as directory:
        postgres = servers.chosen.postgres(directory)
        await postgres.start()
        async with servers.chosen.broker(directory) as broker, fresh_database(postgres.url) as url:
            await migrate(Settings(database_url=url))
            issues = issuer(directory / "keys")
            tokens = {"api_authentication": "tokens", "api_keys_file": issues.keys_file}
            settings = settings_with(url, broker, directory, **tokens)
            database = await asyncpg.connect(url)
            await fill(database)
            await database.close()
            quiet = request(issues.token(sub=QUIET, business_centers=[QUIET]), f"/v1/business-centers/{QUIET}")
            dear = dear_requests(issues.token(sub=LOUD, business_centers=[LOUD]))
            async with serving_apart(settings):
                silent, meanwhile = await compare(
                    settings.http_port, itertools.repeat(quiet), dear, rounds=ROUNDS, count=COUNT
                )
            ratios = ", ".join(f"p{100 * at:g} {meanwhile.at(at) / silent.at(at):.1f}" for at in (0.5, 0.9, 0.99))
            print(f"alone: {silent}; beside the loud one: {meanwhile}; times: {ratios}")
        await postgres.stop()


if __name__ == "__main__":
    asyncio.run(_main())
