"""Objects of other tenants leave no trace in cursors, positions or counts, and cost no work."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from services.api.past import ledger
from services.api.past.moments import BLOCK_POSITIONS
from tests.integration.api import Api, running_api, shard_of
from tests.integration.test_api_reads import append, open_ad_account, open_business_center
from tests.integration.tokens import Issuer, issuer
from tests.servers import Postgres

BLOCKS = 3 * ledger.BLOCKS_AT_MOST
EVENT = "0193aaaa-0000-7000-8000-00000000{:04}"


@dataclass
class Asking:
    """An API, and tokens for it."""

    api: Api
    issuer: Issuer

    async def get(self, path: str, *business_centers: str, **query: Any) -> dict[str, Any]:
        """Return the answer to a GET by the holder of these Business Centers."""
        headers = {"authorization": f"Bearer {self.issuer.token(business_centers=list(business_centers))}"}
        answer = await self.api.client.get(path, params=query, headers=headers)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


@pytest.fixture(scope="module")
async def asking(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Asking]:
    """Give `busy` an account, and entries in more blocks than a page searches."""
    issues = issuer(tmp_path_factory.mktemp("keys"))
    options = {"api_authentication": "tokens", "api_keys_file": issues.keys_file}
    async with running_api(postgres.url, tmp_path_factory.mktemp("api"), **options) as api:
        for name in ("busy", "mine"):
            await open_business_center(api, name)
            await open_ad_account(api, name, f"{name}-1")
        await append(api, "busy", 7, "busy-1", source_event_id=EVENT.format(1))
        shard, end = shard_of("busy"), BLOCKS * BLOCK_POSITIONS
        for account in ("", "busy-1"):
            await api.database.execute(
                "INSERT INTO balance.entry_blocks SELECT 'busy', $1, $2, n FROM generate_series(0, $3) n"
                " ON CONFLICT DO NOTHING",
                *(account, shard, BLOCKS),
            )
        await api.database.execute("UPDATE ledger.shards SET position = $2 WHERE shard = $1", shard, end)
        await api.checkpoint("balance", shard, end)
        await api.database.execute(
            'INSERT INTO ledger.quarantine (shard, sequence, reason, detail, topic, partition, "offset",'
            " business_center_id, recorded_at) VALUES ($1, 5, 'r', 'd', 'spend.events', 0, 5, 'busy', now()),"
            " ($2, 3, 'r', 'd', 'spend.events', 0, 6, 'mine', now())",
            *(shard, shard_of("mine")),
        )
        await api.database.execute("UPDATE ledger.shards SET quarantine_sequence = 9")
        yield Asking(api, issues)


OTHERS = (
    {"business_center_id": "busy"},
    {"ad_account_id": "busy-1"},
    {"business_center_id": "busy", "ad_account_id": "busy-1"},
    {"business_center_id": "mine", "ad_account_id": "busy-1"},
    {"source_event_id": EVENT.format(1)},
    {"business_center_id": "busy", "source_event_id": EVENT.format(1)},
)


@pytest.mark.parametrize("query", OTHERS)
async def test_the_ledger_of_another_tenant_ends_at_once(
    asking: Asking, query: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[ledger.Span] = []
    search_span = ledger._search_span

    async def noting(
        connection: asyncpg.Connection, search: ledger.Search, span: ledger.Span, limit: int
    ) -> list[asyncpg.Record]:
        searched.append(span)
        return await search_span(connection, search, span, limit)

    monkeypatch.setattr(ledger, "_search_span", noting)
    for after in ("", "0", f"{shard_of('busy')}-70000"):
        assert await asking.get("/v1/ledger", "mine", after=after, **query) == {"entries": [], "next": None}
    assert searched == []
    assert (await asking.get("/v1/ledger", "busy", **{**query, "business_center_id": "busy"}))["entries"]
    assert searched


async def test_the_ledger_of_the_own_tenant_continues(asking: Asking) -> None:
    page = await asking.get("/v1/ledger", "busy", business_center_id="busy")
    assert page["next"] == f"{shard_of('busy')}-{ledger.BLOCKS_AT_MOST * BLOCK_POSITIONS - 1}"


async def test_a_list_reveals_no_progress_of_other_shards(asking: Asking) -> None:
    assert shard_of("busy") != shard_of("mine")
    for name in ("busy", "mine"):
        as_of = (await asking.get("/v1/business-centers", name))["as_of"]
        assert [each["shard"] for each in as_of["shards"]] == [shard_of(name)]
    assert (await asking.get("/v1/business-centers", "mine", "busy"))["as_of"]["shards"] != []
    assert (await asking.get("/v1/business-centers"))["as_of"]["shards"] == []


async def test_the_cursor_of_a_lookup_counts_no_records_of_other_tenants(asking: Asking) -> None:
    async def following(business_centers: Any) -> str:
        headers = {"authorization": f"Bearer {asking.issuer.token(business_centers=business_centers)}"}
        body = {"events": [{"event_id": EVENT.format(1)}]}
        answer = await asking.api.client.post("/v1/events/lookup", json=body, headers=headers)
        return str(answer.json()["next"])

    def only(name: str, sequence: int) -> str:
        return ".".join(str(sequence if shard == shard_of(name) else 0) for shard in range(4))

    assert await following("*") == "9.9.9.9"
    assert await following(["mine"]) == only("mine", 3)
    assert await following(["busy"]) == only("busy", 5)
    assert await following([]) == "0.0.0.0"


async def test_no_figures_of_another_tenant_are_read(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    read = "services.api.present.business_centers.read_business_centers"

    async def noting(_connection: asyncpg.Connection, ids: list[str]) -> dict[str, Any]:
        asked.append(ids)
        return {}

    monkeypatch.setattr(read, noting)
    for name in ("busy", "nobody"):
        headers = {"authorization": f"Bearer {asking.issuer.token(business_centers=['mine'])}"}
        answer = await asking.api.client.get(f"/v1/business-centers/{name}", headers=headers)
        assert answer.status_code == 404
    assert asked == [[], []]
