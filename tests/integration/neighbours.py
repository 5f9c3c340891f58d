"""Two subjects of one API: a loud one that requests the most expensive answers as fast as it can, and a quiet one,
which is measured.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from drawdown.local.system import environment_of
from shared.runtime.settings import Settings
from tests.integration import loudly
from tests.integration.api import SHARDS, shard_of
from tests.integration.loudly import exchange

LOUD, QUIET = "loud", "quiet"
CONNECTIONS = 40
ENTRIES, ACCOUNTS, DEALS, BUCKETS = 20_000, 1_000, 100, 100


@dataclass(frozen=True)
class Latencies:
    """The sorted latencies of the requests of one measurement, in milliseconds."""

    sorted_ms: list[float]

    def at(self, quantile: float) -> float:
        """Return the latency that this share of the requests does not exceed."""
        return self.sorted_ms[min(int(len(self.sorted_ms) * quantile), len(self.sorted_ms) - 1)]

    def __str__(self) -> str:
        return f"p50 {self.at(0.5):.1f} ms, p99 {self.at(0.99):.1f} ms of {len(self.sorted_ms)}"


def request(token: str, path: str, body: Any = None) -> bytes:
    """Return a request as it goes over the wire."""
    text = b"" if body is None else json.dumps(body).encode()
    head = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {token}"]
    head += [] if body is None else [f"Content-Length: {len(text)}"]
    return "\r\n".join([*head, "", ""]).encode() + text


async def measure(port: int, requests: Iterator[bytes], count: int, pause_seconds: float = 0.012) -> Latencies:
    """Measure a client that sends one request after the other, below its rate limit. All of them must be answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    latencies = []
    for _ in range(count):
        sent = next(requests)
        began = time.perf_counter()
        status = await exchange(reader, writer, sent)
        latencies.append((time.perf_counter() - began) * 1000)
        assert status in (200, 422), status
        await asyncio.sleep(pause_seconds)
    writer.close()
    return Latencies(sorted(latencies))


@contextlib.asynccontextmanager
async def loud(port: int, connections: int, requests: list[bytes]) -> AsyncIterator[None]:
    """While the block runs, let the loud subject send these requests again and again, over this many connections."""
    command = [sys.executable, str(Path(loudly.__file__)), str(port), str(connections)]
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps([each.decode() for each in requests]).encode())
        process.stdin.close()
        await process.stdout.readline()  # It prints this line when it has begun.
        yield
    finally:
        process.kill()
        await process.wait()


def dear_requests(token: str) -> list[bytes]:
    """Return the most expensive requests to each route with long answers."""
    days = "from=2025-11-01&to=2026-11-30"
    paths = [
        f"/v1/ledger?business_center_id={LOUD}&limit=1000",
        "/v1/ledger?limit=1000",
        f"/v1/business-centers/{LOUD}/ad-accounts?limit=1000",
        f"/v1/business-centers/{LOUD}/series?{days}",
        f"/v1/ad-accounts/{LOUD}-1/series?{days}",
        "/v1/business-centers?limit=1000",
        "/v1/deals?limit=1000",
        "/v1/deals/deal-1/spend-detail?format=csv",
        "/v1/deals/deal-1/spend-detail?limit=1000",
        "/v1/quarantine?limit=1000",
        "/v1/nothing",
        "/docs/swagger-ui-bundle.js",
        "/nothing",
    ]
    events = [
        {"event_id": "0193b0a5-7c00-7000-8000-000000000001", "partition": 0, "offset": each} for each in range(500)
    ]
    lookup = request(token, "/v1/events/lookup", {"events": events, "after": ".".join(["0"] * SHARDS)})
    return [*(request(token, path) for path in paths), lookup]


async def compare(port: int, quiet: Iterator[bytes], dear: list[bytes], *, rounds: int, count: int) -> list[Latencies]:
    """Compare the quiet subject's latencies while the loud one is silent and while it sends. Measure in turns, because
    the machine changes.
    """
    silent: list[float] = []
    noisy: list[float] = []
    for _ in range(rounds):
        silent += (await measure(port, quiet, count)).sorted_ms
        async with loud(port, CONNECTIONS, dear):
            await measure(port, quiet, count // 2)  # By then the loud subject has used up its burst.
            noisy += (await measure(port, quiet, count)).sorted_ms
    return [Latencies(sorted(silent)), Latencies(sorted(noisy))]


@contextlib.asynccontextmanager
async def serving_apart(settings: Settings) -> AsyncIterator[None]:
    """Run the API as a separate process."""
    environment = {**os.environ, **environment_of(settings)}
    log = (settings.data_dir / "api.log").open("wb")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "drawdown", "api"), env=environment, stdout=log, stderr=log
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.http_port}", trust_env=False) as client:
            while not await _answers(client):  # noqa: ASYNC110 - another process's state, seen through HTTP
                await asyncio.sleep(0.05)
        yield
    finally:
        process.terminate()
        await process.wait()
        log.close()


async def _answers(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/healthz")).is_success
    except httpx.TransportError:
        return False


async def fill(database: asyncpg.Connection) -> None:
    """Write both subjects' Business Centers into the database, with rows that make the loud subject's answers large."""
    loud_shard, quiet_shard = shard_of(LOUD), shard_of(QUIET)
    for name, shard in ((LOUD, loud_shard), (QUIET, quiet_shard)):
        await database.execute(
            "INSERT INTO balance.business_centers VALUES ($1, $2, 'USD', 'UTC', true, '2025-01-01')", name, shard
        )
    await database.execute(
        "INSERT INTO balance.ad_accounts SELECT $1 || '-' || n, $1, $2, 'prepay', 'auction', 'UTC', true, '2025-01-01'"
        " FROM generate_series(1, $3) n",
        *(LOUD, loud_shard, ACCOUNTS),
    )
    await database.execute(
        "INSERT INTO balance.business_center_days"
        " SELECT $1, '2025-11-01'::date + n, 1000000, 1 FROM generate_series(0, 390) n",
        LOUD,
    )
    await database.execute(
        "INSERT INTO ledger.entries SELECT $1, n, -1000000, now(), now(), gen_random_uuid(), 0, '2026-01-01',"
        " '2026-01-01', 'cash_debit', 'ad_account', 'cash', NULL, $2, $2 || '-' || n % $3, 'campaign', NULL, NULL, NULL"
        " FROM generate_series(1, $4) n",
        *(loud_shard, LOUD, ACCOUNTS, ENTRIES),
    )
    await database.execute("UPDATE ledger.shards SET position = $2 WHERE shard = $1", loud_shard, ENTRIES)
    await database.execute("INSERT INTO balance.entry_blocks VALUES ($1, '', $2, 0)", LOUD, loud_shard)
    await database.execute(
        "INSERT INTO ledger.checkpoints SELECT f, shard, position, now() FROM ledger.shards,"
        " unnest(ARRAY['balance', 'incentives']) f"
    )
    await database.execute(
        "INSERT INTO incentives.cash_spend SELECT $1 || '-' || a, '2026-01-01'::timestamptz + d * interval '1 day', 1"
        " FROM generate_series(1, $2) a, generate_series(1, $3) d",
        *(LOUD, ACCOUNTS, BUCKETS),
    )
    await database.execute(
        "INSERT INTO incentives.deals SELECT 'deal-' || n, 'loud', (SELECT array_agg(ad_account_id) FROM"
        " balance.ad_accounts), '2026-01-01', '2026-12-31', 'UTC', 'USD', 'whole_spend',"
        """ '[{"from": "1", "rate": "0.03"}]', now(), now() FROM generate_series(1, $1) n""",
        DEALS,
    )
    await database.execute(
        "INSERT INTO ledger.quarantine SELECT $1, n, 'malformed', 'why', 'spend.events', 0, n, NULL,"
        " convert_to(repeat('x', 200), 'UTF8'), NULL, $2, now() FROM generate_series(1, 500) n",
        *(loud_shard, LOUD),
    )
    await database.execute("ANALYZE")
