"""Spend detail: cash spend by day and ad account in the deal's time zone, up to two days ago, as JSON and as CSV."""

import csv
import io
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.contracts.fields import parse_time
from shared.runtime.clock import Clock
from tests.integration.api import Api, api_at_noon, shard_of
from tests.integration.test_api_reads import UNIT, open_ad_account, open_business_center, terms
from tests.servers import Postgres

PATH = "/v1/deals/d/spend-detail"
# 1 March in Tokyo begins at 15:00 UTC of 28 February.
CASH = [
    ("a", "2026-02-28T14:45:00Z", 1_000),  # before the period
    ("a", "2026-02-28T15:00:00Z", 1),
    ("a", "2026-03-01T14:45:00Z", 2),
    ("a", "2026-03-01T15:00:00Z", 4),
    ("-b", "2026-03-01T15:00:00Z", 8),
    ("a", "2026-03-09T15:00:00Z", 16),  # 10 March
    ("a", "2026-03-10T14:45:00Z", -20),  # 10 March: a reversal of more than the day's spend
    ("a", "2026-03-10T15:00:00Z", 32),  # 11 March
    ("other", "2026-03-05T00:00:00Z", 64),
]


@pytest.fixture(scope="module")
async def api(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    async with api_at_noon(postgres.url, tmp_path_factory.mktemp("api")) as running:
        await open_business_center(running, "bc-1")
        await open_business_center(running, "bc-2")
        await open_ad_account(running, "bc-1", "a")
        await open_ad_account(running, "bc-2", "-b")
        await open_ad_account(running, "bc-2", "other")
        for account, bucket, units in CASH:
            await running.insert("incentives.cash_spend", ad_account_id=account, bucket=bucket, amount=units * UNIT)
        assert (await running.client.put("/v1/deals/d", json=terms("a", "-b"))).status_code == 201
        yield running


def short(answer: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(row["day"], row["ad_account_id"], row["cash_spend"]) for row in answer["rows"]]


ALL = [
    ("2026-03-01", "a", "3.000000"),
    ("2026-03-02", "-b", "8.000000"),
    ("2026-03-02", "a", "4.000000"),
    ("2026-03-10", "a", "-4.000000"),
]


async def test_on_12_march_the_days_end_with_10_march(api: Api) -> None:
    answer = await api.get(PATH)
    assert short(answer) == ALL
    assert answer["data_until"] == "2026-03-10"
    assert (answer["total"], answer["totals"]) == ("11.000000", {"-b": "8.000000", "a": "3.000000"})
    assert answer["rows"][1]["business_center_id"] == "bc-2"
    assert (answer["rows"][1]["currency"], answer["time_zone"], answer["next"]) == ("USD", "Asia/Tokyo", None)
    assert [each["shard"] for each in answer["as_of"]["shards"]] == sorted({shard_of("bc-1"), shard_of("bc-2")})


async def test_one_more_day_appears_when_the_day_ends_in_the_zone_of_the_deal(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Clock, "now_us", lambda _: parse_time("2026-03-12T15:00:00Z") - 1)
    assert (await api.get(PATH))["data_until"] == "2026-03-10"
    monkeypatch.setattr(Clock, "now_us", lambda _: parse_time("2026-03-12T15:00:00Z"))
    answer = await api.get(PATH)
    assert (answer["data_until"], short(answer)[-1]) == ("2026-03-11", ("2026-03-11", "a", "32.000000"))


async def test_from_and_to_are_days_of_the_period_and_bound_the_totals(api: Api) -> None:
    answer = await api.get(PATH, **{"from": "2026-03-02", "to": "2026-03-09"})  # type: ignore[arg-type]
    assert (short(answer), answer["total"]) == (ALL[1:3], "12.000000")
    answer = await api.get(PATH, **{"from": "2020-01-01", "to": "2030-01-01"})  # type: ignore[arg-type]
    assert short(answer) == ALL
    for empty in ({"from": "2026-03-11"}, {"to": "2026-02-28"}):
        answer = await api.get(PATH, **empty)  # type: ignore[arg-type]
        assert (answer["rows"], answer["total"], answer["totals"]) == ([], "0.000000", {})


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_pages_continue_each_other_and_each_has_the_full_totals(api: Api, limit: int) -> None:
    rows: list[tuple[str, str, str]] = []
    query: dict[str, Any] = {"limit": limit}
    while True:
        page = await api.get(PATH, **query)
        assert page["total"] == "11.000000"
        rows += short(page)
        if page["next"] is None:
            break
        assert len(page["rows"]) == limit
        query["after"] = page["next"]
    assert rows == ALL


async def test_late_spend_and_reversals_count_on_the_day_of_the_spend(api: Api) -> None:
    await open_ad_account(api, "bc-1", "late")
    await api.insert("incentives.cash_spend", ad_account_id="late", bucket="2026-03-03T00:00:00Z", amount=5 * UNIT)
    await api.client.put("/v1/deals/late", json=terms("late"))
    assert short(await api.get("/v1/deals/late/spend-detail")) == [("2026-03-03", "late", "5.000000")]
    await api.database.execute("UPDATE incentives.cash_spend SET amount = 0 WHERE ad_account_id = 'late'")
    assert short(await api.get("/v1/deals/late/spend-detail")) == [("2026-03-03", "late", "0.000000")]


async def test_csv_has_the_same_rows_and_no_formulas(api: Api) -> None:
    response = await api.client.get(PATH, params={"format": "csv"})
    assert response.headers["content-type"].startswith("text/csv")
    assert response.headers["content-disposition"] == 'attachment; filename="d-spend-detail.csv"'
    assert response.text.endswith("\r\n")
    assert "\n" not in response.text.replace("\r\n", "")
    header, *rows = csv.reader(io.StringIO(response.text, newline=""))
    assert header == ["day", "ad_account_id", "business_center_id", "currency", "cash_spend"]
    assert [(row[0], row[1], row[4]) for row in rows] == [
        (day, "'-b" if account == "-b" else account, amount) for day, account, amount in ALL
    ]


@pytest.mark.parametrize(
    ("accept", "format_", "is_csv"),
    [
        ("text/csv", None, True),
        ("Text/CSV; q=0.9, application/json;q=0.5", None, True),
        ("text/csv;q=0.5, application/json", None, False),
        ("text/csv;q=0", None, False),
        ("text/csv;q=x", None, False),
        ("*/*", None, False),
        ("text/csv", "json", False),
        ("application/json", "csv", True),
    ],
)
async def test_csv_is_sent_if_requested(api: Api, accept: str, format_: str | None, is_csv: bool) -> None:
    query = {} if format_ is None else {"format": format_}
    response = await api.client.get(PATH, params=query, headers={"accept": accept})
    assert response.headers["content-type"].startswith("text/csv") == is_csv
    assert response.headers["vary"] == "Accept"


async def test_a_truncated_csv_names_the_next_page(api: Api) -> None:
    first = await api.client.get(PATH, params={"format": "csv", "limit": 3})
    rest = await api.client.get(first.links["next"]["url"])
    assert len(first.text.splitlines()) == 1 + 3
    assert rest.text.splitlines()[1:] == ["2026-03-10,a,bc-1,USD,-4.000000"]
    assert "link" not in rest.headers


@pytest.mark.parametrize(
    "query",
    [
        {"from": "2026-02-30"},
        {"to": "x"},
        {"from": "2026-03-02", "to": "2026-03-01"},
        {"limit": "0"},
        {"limit": "100001"},
        {"format": "xml"},
        {"after": "x"},
        {"after": "2026-13-01/a"},
        {"after": "2026-03-01/a b"},
        {"after": "\x00"},
    ],
)
async def test_a_bad_parameter_is_400(api: Api, query: dict[str, str]) -> None:
    response = await api.client.get(PATH, params=query)
    assert (response.status_code, response.json()["code"]) == (400, "invalid")
    assert (list(query)[-1]) in response.json()["message"]


async def test_an_unknown_deal_is_404(api: Api) -> None:
    await api.get("/v1/deals/nobody/spend-detail", 404)
