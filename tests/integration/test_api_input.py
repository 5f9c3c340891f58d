"""Bad input is answered with `{"code", "message"}` and the right status, never with a 500."""

import json
import urllib.parse
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.api.commands import publishing
from tests.integration.api import Api, command, running_api
from tests.servers import Postgres
from tests.unit.test_strict_json import JSON, NO_JSON, with_field

DEPOSIT = command("deposit_cash", "bc-1", amount="1")
SLABS = [{"from": "0", "rate": "0.03"}]
DEAL: dict[str, Any] = {
    "client": "Acme",
    "ad_account_ids": ["a"],
    "starts_on": "2026-03-01",
    "ends_on": "2026-03-31",
    "time_zone": "Asia/Tokyo",
    "currency": "USD",
    "slabs": SLABS,
}
IDENTIFIERS = ["a b", "", "a/b", "\x00", "é", "a" * 65, "a\n", "' OR 1=1 --", "\ufffd"]


@pytest.fixture(scope="module")
async def api(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    with pytest.MonkeyPatch.context() as patch:
        # No writer decides here, so a valid command is published and answered with 504 at once.
        patch.setattr(publishing, "DECISION_TIMEOUT_SECONDS", 0.2)
        async with running_api(postgres.url, tmp_path_factory.mktemp("api"), http_rate=1_000_000) as running:
            yield running


async def assert_refused(api: Api, method: str, path: str, status: int, code: str, **options: Any) -> str:
    response = await api.client.request(method, path, **options)
    assert (response.status_code, set(response.json())) == (status, {"code", "message"}), response.text
    assert response.json()["code"] == code
    return str(response.json()["message"])


def body_with(**changes: Any) -> bytes:
    return json.dumps({**DEPOSIT, **changes}).encode()


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b'{"type": "deposit_cash", "amount": "\xff"}', "JSON"),
        (b'\xef\xbb\xbf{"type": "deposit_cash"}', "JSON"),
        (b"[" * 50_000, "JSON"),
        (b"null", "body"),
        (b"[]", "body"),
        (b'"deposit_cash"', "body"),
        (b"{}", "type"),
        (b'{"type": null}', "type"),
        (b'{"type": ["deposit_cash"]}', "type"),
        (body_with(type="make_rich"), "type"),
        (body_with(amount=1), "amount"),
        (body_with(amount=1.5), "amount"),
        (body_with(amount=10**400), "amount"),
        (body_with(amount=None), "amount"),
        (body_with(amount="1e5"), "amount"),
        (body_with(amount="-1"), "amount"),
        (body_with(amount="01"), "amount"),
        (body_with(amount="1.0000001"), "amount"),
        (body_with(amount="1000000000000"), "amount"),
        (body_with(amount="\u0661"), "amount"),
        (body_with(amount="1\n"), "amount"),
        (body_with(amount={"a": 1}), "amount"),
        (body_with(business_center_id="a\x00"), "business_center_id"),
        (body_with(business_center_id=""), "business_center_id"),
        (body_with(ad_account_id=7), "ad_account_id"),
        (body_with(command_id="1"), "command_id"),
        (body_with(issued_at="2026-02-30T00:00:00Z"), "issued_at"),
        (body_with(issued_at="2026-02-01T00:00:00"), "issued_at"),
        (body_with(issued_at="2026-02-01T00:00:00+99:99"), "issued_at"),
        (body_with(issued_at=0), "issued_at"),
        (body_with(actor=[]), "actor"),
        (body_with(actor={"id": "a", "role": "root"}), "actor.role"),
        (json.dumps(DEPOSIT).replace("bc-1", r"\ud800").encode(), "JSON: a lone surrogate is not a character"),
        (body_with(x="?").replace(b'"?"', b"9" * 5000), "JSON"),
        (json.dumps({**DEPOSIT, "actor": None}).encode(), "actor"),
        (
            json.dumps(command("open_business_center", "b", currency="USD", time_zone="a\x00b")).encode(),
            "time_zone",
        ),
        (
            json.dumps(command("open_business_center", "b", currency="usd", time_zone="UTC")).encode(),
            "currency",
        ),
        (
            json.dumps(command("grant_voucher", "b", amount="1", voucher_id="v", campaign_ids=["ok", "\x00"])).encode(),
            "campaign_ids.1",
        ),
        (
            json.dumps(
                command("grant_voucher", "b", amount="1", voucher_id="v", expires_at="2026-13-01T00:00:00Z")
            ).encode(),
            "expires_at",
        ),
    ],
)
async def test_an_invalid_command_is_400_with_the_field(api: Api, body: bytes, named: str) -> None:
    message = await assert_refused(api, "POST", "/v1/commands", 400, "invalid", content=body)
    assert named in message


async def test_a_command_that_asks_for_a_preview_is_400_and_the_description_has_no_previews(api: Api) -> None:
    body = body_with(preview=True)
    message = await assert_refused(api, "POST", "/v1/commands", 400, "invalid", content=body)
    assert message == "preview is not available yet: leave it out"
    for harmless in (False, None):
        await assert_refused(api, "POST", "/v1/commands", 504, "timeout", content=body_with(preview=harmless))
    for described in ("/openapi.json", "/asyncapi.json"):
        assert "preview" not in (await api.client.get(described)).text


@pytest.mark.parametrize("held", NO_JSON.values(), ids=NO_JSON.keys())
async def test_a_value_that_is_not_json_is_400_in_any_field(api: Api, held: bytes) -> None:
    for path, method, message in (
        ("/v1/commands", "POST", DEPOSIT),
        ("/v1/deals/d-1", "PUT", DEAL),
        ("/v1/quarantine/replay", "POST", {"ids": []}),
    ):
        for first in (False, True):
            body = with_field(message, held, first=first)
            assert "JSON" in await assert_refused(api, method, path, 400, "invalid", content=body)


@pytest.mark.parametrize("held", JSON.values(), ids=JSON.keys())
async def test_a_command_may_have_unknown_fields_with_any_json_value(api: Api, held: bytes) -> None:
    await assert_refused(api, "POST", "/v1/commands", 504, "timeout", content=with_field(DEPOSIT, held))


@pytest.mark.parametrize(
    "headers", [{}, {"content-type": "application/json"}, {"content-type": "Application/JSON; charset=utf-8"}]
)
async def test_any_content_type_for_json_is_accepted(api: Api, headers: dict[str, str]) -> None:
    await assert_refused(api, "POST", "/v1/commands", 504, "timeout", content=body_with(), headers=headers)


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/commands"), ("PUT", "/v1/deals/d"), ("POST", "/v1/quarantine/0-1/replay")]
)
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_a_write_with_another_content_type_is_415_without_tokens(
    api: Api, method: str, path: str, kind: str
) -> None:
    headers = {"content-type": kind}
    await assert_refused(api, method, path, 415, "unsupported_media_type", content=body_with(), headers=headers)


@pytest.mark.parametrize("path", ["/v1/commands", "/v1/quarantine/replay"])
async def test_a_body_above_64_kib_is_413(api: Api, path: str) -> None:
    await assert_refused(api, "POST", path, 413, "too_large", content=b" " * 65_537)
    await assert_refused(api, "POST", path, 400, "invalid", content=b" " * 65_536)

    async def without_length() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 1000

    await assert_refused(api, "POST", path, 413, "too_large", content=without_length())


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/commands"),
        ("POST", "/v1/ledger"),
        ("DELETE", "/v1/deals/d"),
        ("PATCH", "/v1/business-centers/b"),
        ("DELETE", "/v1/quarantine/replay"),
        ("PUT", "/healthz"),
    ],
)
async def test_a_wrong_method_is_405(api: Api, method: str, path: str) -> None:
    await assert_refused(api, method, path, 405, "method_not_allowed")


@pytest.mark.parametrize(
    "path",
    [
        "/v1",
        "/v1/ledger/",
        "/v2/ledger",
        "/v1/business-centers/nobody",
        "/v1/business-centers/nobody/ad-accounts",
        "/v1/ad-accounts/nobody",
        "/v1/ad-accounts/nobody/campaigns/c",
        "/v1/deals/nobody",
        "/v1/deals/nobody/pacing",
        "/v1/ad-accounts/%ED%A0%80",
        "/v1/ad-accounts/%ff%00",
        "/v1/ad-accounts/..%2f..%2fetc",
        *(f"/v1/ad-accounts/{urllib.parse.quote(id_, safe='')}" for id_ in IDENTIFIERS),
        *(f"/v1/deals/{urllib.parse.quote(id_, safe='')}/pacing" for id_ in IDENTIFIERS),
    ],
)
async def test_a_missing_entity_is_404(api: Api, path: str) -> None:
    await assert_refused(api, "GET", path, 404, "not_found")


@pytest.mark.parametrize("id_", ["0-1", "9-9", "99999-1", "0-9999999999999999999", "x", "0", "0-", "%00", "-1-1"])
async def test_an_unknown_quarantined_record_is_404(api: Api, id_: str) -> None:
    await assert_refused(api, "POST", f"/v1/quarantine/{id_}/replay", 404, "not_found")
    await assert_refused(api, "GET", f"/v1/quarantine/{id_}", 404, "not_found")


# pydantic takes each of these texts for 1. JSON has one way to write it.
NO_INTEGERS = ("%2B1", "1.0", "01", "1_0", "%201", "1%20", "1%0A", "1e0", "%D9%A1")


@pytest.mark.parametrize(
    "query",
    [
        "ledger?limit=0",
        "ledger?limit=1001",
        "ledger?limit=x",
        "ledger?limit=99999999999999999999999",
        "ledger?limit=",
        "ledger?after=x",
        "ledger?after=-1",
        "ledger?after=%00",
        "ledger?after=1-2-3",
        "ledger?after=%D9%A1",
        "ledger?source_event_id=1",
        "ledger?source_event_id=%00",
        "ledger?business_center_id=%00",
        "ledger?business_center_id=%ED%A0%80",
        "ledger?ad_account_id=a%20b",
        "quarantine?reason=no%20reason",
        "quarantine?reason=",
        "quarantine?reason=%00",
        "quarantine?after=1",
        "quarantine?after=99999-1",
        "quarantine?limit=-1",
        "business-centers?after=%00",
        "business-centers?limit=1e2",
        "deals?after=%ff",
        *(f"{path}?limit={number}" for path in ("ledger", "deals/deal-1/spend-detail") for number in NO_INTEGERS),
    ],
)
async def test_a_bad_parameter_is_400(api: Api, query: str) -> None:
    message = await assert_refused(api, "GET", f"/v1/{query}", 400, "invalid")
    assert query.partition("?")[2].partition("=")[0] in message


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"slabs": []}, "slabs"),
        ({"slabs": [{"from": "5", "rate": "0.1"}, {"from": "5.0", "rate": "0.2"}]}, "slabs"),
        ({"slabs": [{"from": "6", "rate": "0.1"}, {"from": "5", "rate": "0.2"}]}, "slabs"),
        ({"slabs": [{"from": 5, "rate": "0.1"}]}, "slabs.0.from"),
        ({"slabs": [{"from": "-5", "rate": "0.1"}]}, "slabs.0.from"),
        ({"slabs": [{"from": "5", "rate": 0.1}]}, "slabs.0.rate"),
        ({"slabs": [{"from": "5", "rate": "0"}]}, "slabs.0.rate"),
        ({"slabs": [{"from": "5", "rate": "1.1"}]}, "slabs.0.rate"),
        ({"slabs": [{"from": "5", "rate": "0.0000001"}]}, "slabs.0.rate"),
        ({"slabs": [{"rate": "0.1"}]}, "slabs.0.from"),
        ({"slabs": {}}, "slabs"),
        ({"starts_on": "2026-04-01"}, "ends_on"),
        ({"starts_on": "2026-02-30"}, "starts_on"),
        ({"starts_on": "0001-01-01"}, "starts_on"),
        ({"ends_on": "9999-12-31"}, "ends_on"),
        ({"ends_on": 20261231}, "ends_on"),
        ({"time_zone": "Mars/Olympus"}, "time_zone"),
        ({"time_zone": "../../etc/passwd"}, "time_zone"),
        ({"time_zone": "a\x00"}, "time_zone"),
        ({"currency": "usd"}, "currency"),
        ({"method": "best"}, "method"),
        ({"method": None}, "method"),
        ({"client": ""}, "client"),
        ({"client": "a\x00"}, "client"),
        ({"client": None}, "client"),
        ({"ad_account_ids": []}, "ad_account_ids"),
        ({"ad_account_ids": ["a b"]}, "ad_account_ids.0"),
        ({"ad_account_ids": "a"}, "ad_account_ids"),
    ],
)
async def test_a_malformed_deal_is_400_with_the_field(api: Api, changes: dict[str, Any], named: str) -> None:
    message = await assert_refused(api, "PUT", "/v1/deals/d", 400, "invalid", json={**DEAL, **changes})
    assert named in message


@pytest.mark.parametrize(
    "body",
    [{}, {"ids": []}, {"ids": ["x"]}, {"reason": "No"}, {"ids": ["0-1"], "reason": "too_old"}, [], {"ids": "0-1"}],
)
async def test_a_malformed_replay_is_400(api: Api, body: Any) -> None:
    await assert_refused(api, "POST", "/v1/quarantine/replay", 400, "invalid", json=body)


async def test_a_lone_surrogate_in_an_unknown_field_is_ignored(api: Api) -> None:
    unknown = rb', "note": "cut \ud83d"}'
    answers = [
        await api.client.post("/v1/commands", content=body_with()[:-1] + unknown),
        await api.client.put("/v1/deals/cut", content=json.dumps(DEAL).encode()[:-1] + unknown),
        await api.client.post("/v1/quarantine/replay", content=b'{"ids": ["0-1"]' + unknown),
    ]
    assert [answer.status_code for answer in answers] == [504, 422, 404], [answer.text for answer in answers]
    message = await assert_refused(
        api, "POST", "/v1/commands", 400, "invalid", content=body_with(amount="0.0000001")[:-1] + unknown
    )
    assert message.startswith("amount should be a decimal string")


# --- Arbitrary input ---

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=10), children, max_size=4),
    max_leaves=10,
)
anything = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@anything
@given(field=st.sampled_from([*DEPOSIT, "new"]), value=json_values)
async def test_no_command_causes_a_500(api: Api, field: str, value: Any) -> None:
    content = json.dumps({**DEPOSIT, field: value}).encode("utf-8", "surrogatepass")
    response = await api.client.post("/v1/commands", content=content)
    assert response.status_code in (400, 504), response.text
    assert set(response.json()) == {"code", "message"}


@anything
@given(field=st.sampled_from([*DEAL, "new"]), value=json_values)
async def test_no_deal_causes_a_500(api: Api, field: str, value: Any) -> None:
    content = json.dumps({**DEAL, field: value}).encode("utf-8", "surrogatepass")
    response = await api.client.put("/v1/deals/d", content=content)
    assert response.status_code in (400, 422), response.text
    assert set(response.json()) == {"code", "message"}


@anything
@given(
    path=st.sampled_from(["/v1/ledger", "/v1/quarantine", "/v1/business-centers", "/v1/deals"]),
    query=st.dictionaries(
        st.sampled_from(["after", "limit", "reason", "business_center_id", "ad_account_id", "source_event_id"]),
        st.binary(max_size=12).map(urllib.parse.quote_from_bytes) | st.integers().map(str),
    ),
)
async def test_no_query_causes_a_500(api: Api, path: str, query: dict[str, str]) -> None:
    response = await api.client.get(f"{path}?{'&'.join(f'{name}={value}' for name, value in query.items())}")
    assert response.status_code in (200, 400), response.text


@anything
@given(
    shape=st.sampled_from(
        ["/v1/ad-accounts/{}", "/v1/business-centers/{}/ad-accounts", "/v1/ad-accounts/a/campaigns/{}", "/{}"]
    ),
    part=st.binary(min_size=1, max_size=20).map(lambda raw: urllib.parse.quote_from_bytes(raw, safe="")),
)
async def test_no_path_causes_a_500(api: Api, shape: str, part: str) -> None:
    response = await api.client.get(shape.format(part))
    assert response.status_code == 404, response.text
    assert set(response.json()) == {"code", "message"}
