"""One subject at its worst, and how long another waits meanwhile: over real sockets, with the most expensive answers.

On an otherwise idle machine the goal is at most three times the usual 99th percentile, which `python -m
tests.benchmarks.neighbours` measures. This test shares its machine with other tests, and a short disturbance is not a
fault. So it compares medians.
"""

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import asyncpg
import httpx

from shared.runtime.settings import Settings
from tests.integration.loudly import exchange
from tests.integration.neighbours import LOUD, QUIET, compare, dear_requests, fill, loud, request, serving_apart
from tests.integration.tokens import issuer
from tests.servers import free_ports, reachable_directory, running_system

MOST_TIMES = 8
# Without turns, rests and a rate limit, the factor is about 40.
CALM_MS = 5.0


async def test_a_client_with_the_most_expensive_requests_does_not_make_others_wait(
    settings: Settings, tmp_path: Path
) -> None:
    issues = issuer(tmp_path / "keys")
    changes = {"api_authentication": "tokens", "api_keys_file": issues.keys_file, "health_port": free_ports(1)}
    settings = settings.model_copy(update=changes)
    database = await asyncpg.connect(settings.database_url)
    await fill(database)
    await database.close()
    noisy = issues.token(sub=LOUD, business_centers=[LOUD])
    calm = issues.token(sub=QUIET, business_centers=[QUIET])
    async with serving_apart(settings):
        dear = dear_requests(noisy)
        reader, writer = await asyncio.open_connection("127.0.0.1", settings.http_port)
        statuses = [await exchange(reader, writer, each) for each in dear]
        assert statuses.count(200) == len(dear) - 2, statuses
        writer.close()
        quiet = itertools.repeat(request(calm, f"/v1/business-centers/{QUIET}"))
        longest = dear[:5]  # The work that takes the API's own code the longest.
        silent, meanwhile = await compare(settings.http_port, quiet, longest, rounds=2, count=40)
        assert meanwhile.at(0.5) < MOST_TIMES * max(silent.at(0.5), CALM_MS), (str(silent), str(meanwhile))
        async with loud(settings.http_port, 250, dear), httpx.AsyncClient(trust_env=False, timeout=3) as client:
            for path in ("healthz", "readyz"):
                answer = await client.get(f"http://127.0.0.1:{settings.health_port}/{path}")
                assert "status" in answer.json()


def _deposits(token: str, business_center_id: str) -> Iterator[bytes]:
    while True:
        sent = {"command_id": str(uuid4()), "type": "deposit_cash", "business_center_id": business_center_id}
        yield request(token, "/v1/commands", {**sent, "amount": "0.01", "issued_at": "2026-03-12T09:00:00Z"})


async def test_a_client_with_endless_commands_does_not_delay_those_of_others() -> None:
    with reachable_directory() as directory:
        issues = issuer(directory)
        async with running_system(api_authentication="tokens", api_keys_file=issues.keys_file) as system:
            async with system.client() as client:
                headers = {"Authorization": f"Bearer {issues.token()}"}
                for name in (LOUD, QUIET):
                    sent = {"command_id": str(uuid4()), "type": "open_business_center", "business_center_id": name}
                    sent |= {"currency": "USD", "time_zone": "UTC", "issued_at": "2026-03-12T09:00:00Z"}
                    assert (await client.post("/v1/commands", json=sent, headers=headers)).status_code == 200
            noisy = issues.token(sub=LOUD, business_centers=[LOUD])
            calm = issues.token(sub=QUIET, business_centers=[QUIET])
            many = list(itertools.islice(_deposits(noisy, LOUD), 2_000))
            silent, meanwhile = await compare(
                system.settings.http_port, _deposits(calm, QUIET), many, rounds=1, count=40
            )
            assert meanwhile.at(0.5) < MOST_TIMES * max(silent.at(0.5), CALM_MS), (str(silent), str(meanwhile))
