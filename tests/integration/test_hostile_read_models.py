"""Whatever the read models hold, the API answers: the database refuses a hostile value, or the answer does not blame
the server.

A follower's login can write anything into its own tables. Each value of `VALUES` is put into each column of its type.
"""

import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import pytest
from structlog.testing import capture_logs

from shared.rules.vocabulary import CAUSES
from shared.runtime.read_models import READ_MODELS
from tests.integration import lawful
from tests.integration.api import RECORDED_AT, Api, api_at_noon, command, shard_of
from tests.servers import Postgres

# PostgreSQL refuses the same in a container, where hundreds of databases would take minutes.
pytestmark = pytest.mark.embedded
BC, ACCOUNT, CAMPAIGN, DEAL = "hostile", "hostile-a", "hostile-c", "hostile-d"
SHARD = shard_of(BC)
DAY, QUARTER = "2026-03-12", "2026-03-12T09:45:00Z"
CLOSED, LAST = 3, 5  # The positions of the closing, and of the only batch.

_OF_ACCOUNT = {"business_center_id": BC, "ad_account_id": ACCOUNT}
_OF_CAMPAIGN = {"ad_account_id": ACCOUNT, "campaign_id": CAMPAIGN}
_CLOSED = {"shard": SHARD, "closing": CLOSED}
_SPENT = {"billed": 7, "overdelivered": 1}
_PAUSED = {"causes": ["ad_account_budget", "campaign_budget"]}
_OPENED = {"shard": SHARD, "time_zone": "Asia/Tokyo", "opened_at": RECORDED_AT}
_CUSTOM = {"start_position": 1, "started_at": RECORDED_AT, "spent": 4}
_REGISTERED = {"registered_at": RECORDED_AT, "updated_at": RECORDED_AT}
_TERMS = {"client": "Acme", "time_zone": "Asia/Tokyo", "currency": "USD", "method": "marginal"}
# A row of each table from which the API answers, all of them about the same account.
ROWS: dict[str, dict[str, Any]] = {
    "balance.business_centers": {"business_center_id": BC, "currency": "USD", "finance_roles": True, **_OPENED},
    "balance.ad_accounts": {
        **_OF_ACCOUNT,
        **_OPENED,
        "billing": "monthly_invoicing",
        "buying_type": "auction",
        "owned": True,
    },
    "balance.automatic_allocation": {"business_center_id": BC, "enabled_at": RECORDED_AT},
    "balance.left_out": {**_OF_ACCOUNT, "reason": "not_owned"},
    "balance.largest_spends": {"business_center_id": BC, "position": 2, "amount": 9},
    "balance.budgets": {
        "ad_account_id": ACCOUNT,
        "mode": "daily",
        "amount": 5,
        "day": DAY,
        "changes_today": 1,
        "position": 2,
    },
    "balance.custom_budgets": {"ad_account_id": ACCOUNT, **_CUSTOM},
    "balance.campaigns": {**_OF_CAMPAIGN, "mode": "lifetime", "amount": 5, "position": 2},
    "balance.pauses": {"ad_account_id": ACCOUNT, "campaign_id": "", **_PAUSED, "position": 2},
    "balance.pockets": {**_OF_ACCOUNT, "pocket": "cash", "amount": 3},
    "balance.credit_limits": {"business_center_id": BC, "amount": 3},
    "balance.grants": {
        "business_center_id": BC,
        "ad_account_id": "",
        "pocket": "ad_credit",
        "grant_id": "g",
        "remaining": 3,
    },
    "balance.business_center_days": {"business_center_id": BC, "day": DAY, **_SPENT},
    "balance.ad_account_days": {"ad_account_id": ACCOUNT, "day": DAY, **_SPENT},
    "balance.campaign_days": {**_OF_CAMPAIGN, "day": DAY, **_SPENT},
    "balance.entry_blocks": {**_OF_ACCOUNT, "shard": SHARD, "block": 0},
    "balance.closings": {"shard": SHARD, "position": CLOSED},
    "balance.pocket_movements": {
        **_CLOSED,
        **_OF_ACCOUNT,
        "pocket": "cash",
        "quarter": QUARTER,
        "amount": 3,
        "limit_change": 0,
    },
    "balance.business_center_spend": {**_CLOSED, "business_center_id": BC, **_SPENT},
    "balance.ad_account_spend": {**_CLOSED, "ad_account_id": ACCOUNT, "day": DAY, **_SPENT},
    "balance.campaign_spend": {**_CLOSED, **_OF_CAMPAIGN, "day": DAY, **_SPENT},
    "balance.budget_closings": {
        **_CLOSED,
        "ad_account_id": ACCOUNT,
        "mode": "custom",
        "amount": 5,
        "day": DAY,
        "changes_today": 1,
        **_CUSTOM,
    },
    "balance.campaign_budget_closings": {**_CLOSED, **_OF_CAMPAIGN, "mode": "daily", "amount": 5},
    "balance.pause_closings": {**_CLOSED, "ad_account_id": ACCOUNT, "campaign_id": "", **_PAUSED},
    "incentives.cash_spend": {"ad_account_id": ACCOUNT, "bucket": QUARTER, "amount": 3},
    "incentives.deals": {
        "id": DEAL,
        "ad_account_ids": [ACCOUNT],
        "starts_on": "2026-03-01",
        "ends_on": "2026-03-31",
        **_TERMS,
        "slabs": '[{"from": "0.000001", "rate": "0.03"}]',
        **_REGISTERED,
    },
    "ledger.checkpoints_balance": {
        "follower": "balance",
        "shard": SHARD,
        "position": LAST,
        "recorded_at": RECORDED_AT,
    },
    "ledger.checkpoints_incentives": {
        "follower": "incentives",
        "shard": SHARD,
        "position": LAST,
        "recorded_at": RECORDED_AT,
    },
}

_BEGINNING, _END = "1960-01-01", "3000-12-31"
VALUES: dict[str, tuple[str, ...]] = {
    "text": ("''", "'Mars/Phobos'", "E'\\x01\\n'", "repeat('ü', 512)", "'unlimited'"),
    "text[]": (
        *("'{}'", "'{NULL}'", "'{NULL,x}'", "'{x}'", "'{{x,y},{z,w}}'", "'{{ad_account_budget}}'"),
        *("'{campaign_budget,ad_account_budget}'", "'{ad_account_budget,ad_account_budget}'"),
        *("'[3:3]={ad_account_budget}'", "ARRAY[repeat('x', 100000)]"),
    ),
    "numeric": ("0.5", "1e-1000", "-9.9e37", "9.9e37", "'NaN'", "'Infinity'"),
    "bigint": ("-9223372036854775808", "9223372036854775807"),
    "integer": ("-2147483648", "2147483647"),
    "smallint": ("-1", "32767"),
    "boolean": ("false",),
    "date": (f"'{_BEGINNING}'", f"'{_END}'", "'infinity'"),
    "timestamp with time zone": (f"'{_BEGINNING}Z'", "'1970-01-01Z'", "'2999-12-31T23:59Z'", f"'{_END}T23:45Z'"),
    "json": ("'null'", "'[]'", "'[{}]'", "'\"\\ud800\"'", '\'[{"from": "\\ud800", "rate": "1"}]\'', "'[1e999]'"),
}
# Times before and after the only batch.
MOMENTS = ("2026-03-12T09:00:00Z", "2026-03-12T11:00:00Z")
_SERIES = "series?from=2026-03-01&to=2026-03-31"
PAST = [
    f"{path}?at={moment}"
    for moment in MOMENTS
    for path in (
        f"/v1/business-centers/{BC}",
        f"/v1/ad-accounts/{ACCOUNT}",
        f"/v1/ad-accounts/{ACCOUNT}/campaigns/{CAMPAIGN}",
    )
]
COMMAND = "/v1/commands"
PATHS = [
    *PAST,
    COMMAND,
    "/v1/business-centers",
    f"/v1/business-centers/{BC}",
    f"/v1/business-centers/{BC}/{_SERIES}",
    f"/v1/business-centers/{BC}/ad-accounts",
    f"/v1/ad-accounts/{ACCOUNT}",
    f"/v1/ad-accounts/{ACCOUNT}/{_SERIES}",
    f"/v1/ad-accounts/{ACCOUNT}/campaigns/{CAMPAIGN}",
    f"/v1/ledger?business_center_id={BC}",
    f"/v1/ledger?ad_account_id={ACCOUNT}",
    "/v1/deals",
    f"/v1/deals/{DEAL}",
    f"/v1/deals/{DEAL}/pacing",
    f"/v1/deals/{DEAL}/spend-detail",
    f"/v1/deals/{DEAL}/spend-detail?format=csv",
]
REFUSALS = (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError)
# The columns of a table: name and type, in order.
_COLUMNS = """
    SELECT attname::text, format_type(atttypid, NULL) FROM pg_attribute
    WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""


@pytest.fixture(scope="module")
async def api(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    async with api_at_noon(postgres.url, tmp_path_factory.mktemp("api"), http_rate=1_000_000) as running:
        await _write_ledger(running)
        for table, row in ROWS.items():
            await running.insert(table, **row)
        yield running


async def _write_ledger(api: Api) -> None:
    await api.insert("ledger.ad_accounts", **_OF_ACCOUNT, shard=SHARD)
    await api.batch(SHARD, 1, LAST, "none")
    for position in range(1, LAST + 1):
        await api.insert(
            "ledger.entries",
            **{"shard": SHARD, "position": position, "amount": -1, "part": 0, "day": DAY, **_OF_ACCOUNT},
            campaign_id=CAMPAIGN,
            kind="cash_debit",
            holder="ad_account",
            pocket="cash",
            occurred_at=RECORDED_AT,
            recorded_at=RECORDED_AT,
        )
    await api.database.execute("UPDATE ledger.shards SET position = $2 WHERE shard = $1", SHARD, LAST)


async def _ask(api: Api, path: str) -> httpx.Response:
    if path != COMMAND:
        return await api.client.get(path)
    repay = command("repay_credit", BC, amount="1", actor={"id": "ann", "role": "standard"})
    return await api.client.post(path, json=repay)


async def _wrong_answers(api: Api, paths: list[str]) -> list[str]:
    """Return every answer that blames the server, or that no read should give."""
    answers = [await _ask(api, path) for path in paths]
    return [
        f"{answer.request.url}: {answer.status_code} {answer.text}"
        for answer in answers
        if answer.status_code not in (200, 404, 409, 422)
    ]


async def _readers(api: Api, table: str) -> list[str]:
    """Return the paths that read a table: those that fail while the API has no right to it."""
    await api.database.execute(f"REVOKE SELECT ON {table} FROM drawdown_api")
    try:
        with capture_logs():  # Logging tracebacks would take most of the time.
            return [path for path in PATHS if (await _ask(api, path)).status_code == 500]
    finally:
        await api.database.execute(f"GRANT SELECT ON {table} TO drawdown_api")


async def test_every_table_that_the_api_reads_is_tried(api: Api) -> None:
    rows = await api.database.fetch(
        """
        SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r'
            AND (relnamespace::regnamespace::text = ANY($1) OR relname = ANY($2))
            AND has_table_privilege('drawdown_api', oid, 'SELECT')
        """,
        [model.name for model in READ_MODELS],
        ["checkpoints_balance", "checkpoints_incentives"],
    )
    assert {row[0] for row in rows} == set(ROWS)


@pytest.mark.parametrize("table", ["balance.pauses", "balance.pause_closings"])
async def test_only_the_causes_of_the_vocabulary_can_be_written(api: Api, table: str) -> None:
    oid = await api.database.fetchval("SELECT $1::text::regclass::oid", table)
    subsets = [list(few) for count in range(len(CAUSES) + 1) for few in itertools.combinations(CAUSES, count)]
    for causes in subsets:
        assert await _takes_causes(api, oid, causes), causes
    for causes in (["weather"], [CAUSES[0], "weather"], [CAUSES[1], CAUSES[0]], [CAUSES[0], CAUSES[0]]):
        assert not await _takes_causes(api, oid, causes), causes


async def _takes_causes(api: Api, table: int, causes: list[str]) -> bool:
    return await lawful.takes(api.database, table, "causes", {"causes": f"'{{{','.join(causes)}}}'::text[]"})


async def test_valid_rows_are_answered(api: Api) -> None:
    statuses = {path: (await _ask(api, path)).status_code for path in PATHS}
    unusual = {path: status for path, status in statuses.items() if status != 200}
    assert unusual == {**{path: 404 for path in PAST if MOMENTS[0] in path}, COMMAND: 422}


async def test_an_ad_account_of_a_missing_shard_has_no_entries(api: Api) -> None:
    await api.insert("ledger.ad_accounts", ad_account_id="hostile-b", shard=77, business_center_id=BC)
    assert (await api.get("/v1/ledger", ad_account_id="hostile-b"))["entries"] == []


@pytest.mark.parametrize("table", ROWS)
async def test_the_api_survives_any_value_of_a_column(api: Api, table: str) -> None:
    wrong: list[str] = []
    readers = await _readers(api, table)
    assert readers
    for column, type_ in await api.database.fetch(_COLUMNS, table):
        for value in (*VALUES[type_], "NULL"):
            try:
                await api.database.execute(f'UPDATE {table} SET "{column}" = {value}')
            except REFUSALS:
                continue
            wrong += [f"{column} = {value}: {each}" for each in await _wrong_answers(api, readers)]
            await api.database.execute(f"DELETE FROM {table}")
            await api.insert(table, **ROWS[table])
    assert wrong == [], json.dumps(wrong, indent=1)
