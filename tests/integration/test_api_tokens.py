"""The rights of tokens: every route is called without a token, with invalid ones, with another tenant's and with the
right one.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import uuid4

import httpx
import pytest
from fastapi.routing import APIRoute

from services.api.app import OPEN, PROTECTED, create_app
from services.api.context import Context
from services.api.door.gate import PROTECTED as PROTECTED_PATHS
from shared.runtime.kafka import SPEND_EVENTS, create_producer
from tests.integration.api import command
from tests.integration.tokens import Issuer, issuer
from tests.servers import RunningSystem, reachable_directory, running_system

EVERYBODY = {"admin", "finance_manager", "finance_analyst", "standard", "system"}
READERS = EVERYBODY - {"standard"}
WRITERS = READERS - {"finance_analyst"}
DAYS = {"from": "2026-01-01", "to": "2026-01-31"}


@dataclass(frozen=True)
class Call:
    """A request that names nothing except objects of the Business Center `ours`.

    `hidden` is the status for a token of another Business Center. If it is 200, the answer contains nothing of `ours`.
    """

    path: str
    roles: set[str]
    hidden: int
    body: Any = None
    query: Mapping[str, str] = field(default_factory=dict)


def _deal(*accounts: str) -> dict[str, Any]:
    return {
        "client": "Acme",
        "ad_account_ids": list(accounts),
        "starts_on": "2026-01-01",
        "ends_on": "2026-12-31",
        "time_zone": "UTC",
        "currency": "USD",
        "slabs": [{"from": "0", "rate": "0.03"}],
    }


def _command(business_center_id: str, type_: str = "deposit_cash", **fields: Any) -> dict[str, Any]:
    """Return a command as the holder of a token sends it: without an actor."""
    sent = command(type_, business_center_id, **({"amount": "1"} if type_ == "deposit_cash" else {}), **fields)
    del sent["actor"]
    return sent


# The list contains the quarantined records among others.
RECORDS = [{"partition": partition, "offset": offset} for partition in range(4) for offset in range(20)]
CALLS: dict[tuple[str, str], Call] = {
    ("POST", "/v1/commands"): Call("/v1/commands", EVERYBODY, 403, body=_command("ours")),
    ("GET", "/v1/business-centers"): Call("/v1/business-centers", READERS, 200),
    ("GET", "/v1/business-centers/{business_center_id}"): Call("/v1/business-centers/ours", READERS, 404),
    ("GET", "/v1/business-centers/{business_center_id}/ad-accounts"): Call(
        "/v1/business-centers/ours/ad-accounts", EVERYBODY, 404
    ),
    ("GET", "/v1/business-centers/{business_center_id}/series"): Call(
        "/v1/business-centers/ours/series", READERS, 404, query=DAYS
    ),
    ("GET", "/v1/ad-accounts/{ad_account_id}"): Call("/v1/ad-accounts/ours-1", EVERYBODY, 404),
    ("GET", "/v1/ad-accounts/{ad_account_id}/series"): Call("/v1/ad-accounts/ours-1/series", READERS, 404, query=DAYS),
    ("GET", "/v1/ad-accounts/{ad_account_id}/campaigns/{campaign_id}"): Call(
        "/v1/ad-accounts/ours-1/campaigns/ours-c", EVERYBODY, 404
    ),
    ("GET", "/v1/ledger"): Call("/v1/ledger", READERS, 200),
    ("GET", "/v1/deals"): Call("/v1/deals", READERS, 200),
    ("PUT", "/v1/deals/{deal_id}"): Call("/v1/deals/ours-deal", WRITERS, 422, body=_deal("ours-1")),
    ("GET", "/v1/deals/{deal_id}"): Call("/v1/deals/ours-deal", READERS, 404),
    ("GET", "/v1/deals/{deal_id}/pacing"): Call("/v1/deals/ours-deal/pacing", READERS, 404),
    ("GET", "/v1/deals/{deal_id}/spend-detail"): Call("/v1/deals/ours-deal/spend-detail", READERS, 404),
    ("POST", "/v1/events/lookup"): Call(
        "/v1/events/lookup", READERS, 200, body={"events": RECORDS, "after": "0.0.0.0"}
    ),
    ("GET", "/v1/quarantine"): Call("/v1/quarantine", READERS, 200),
    ("GET", "/v1/quarantine/{record_id}"): Call("/v1/quarantine/{record}", READERS, 404),
    ("POST", "/v1/quarantine/replay"): Call("/v1/quarantine/replay", WRITERS, 404, body={"ids": ["{record}"]}),
    ("POST", "/v1/quarantine/{record_id}/replay"): Call("/v1/quarantine/{record}/replay", WRITERS, 404),
}
# Other requests to the same routes, for tokens of another Business Center.
FURTHER = (
    Call("/v1/business-centers/ours", READERS, 404, query={"at": "{now}"}),
    Call("/v1/ad-accounts/ours-1", READERS, 404, query={"at": "{now}"}),
    Call("/v1/ad-accounts/ours-1/campaigns/ours-c", READERS, 404, query={"at": "{now}"}),
    Call("/v1/ledger", READERS, 200, query={"business_center_id": "ours"}),
    Call("/v1/ledger", READERS, 200, query={"ad_account_id": "ours-1"}),
    Call("/v1/ledger", READERS, 200, query={"source_event_id": "{deposit}"}),
    Call("/v1/deals/ours-deal/spend-detail", READERS, 404, query={"format": "csv"}),
    Call("/v1/quarantine", READERS, 200, query={"reason": "unknown_ad_account"}),
)
ASSETS = {f"/docs/{name}" for name in ("favicon-32x32.png", "initializer.js", "swagger-ui-bundle.js", "swagger-ui.css")}
OPEN_PATHS = {"/healthz", "/readyz", "/asyncapi.json", "/openapi.json", "/docs", *ASSETS}


@dataclass
class Guarded:
    """A running system that requires tokens, the issuer of the tokens, and the objects that the calls name."""

    client: httpx.AsyncClient
    issuer: Issuer
    named: dict[str, str]

    async def ask(self, method: str, call: Call, token: str | None) -> httpx.Response:
        """Send the call with this token."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        body = call.body if call.body is None else json.loads(self._filled(json.dumps(call.body)))
        if body and "command_id" in body:
            body["command_id"] = str(uuid4())
        query = {name: self._filled(value) for name, value in call.query.items()}
        path = self._filled(call.path)
        return await self.client.request(method, path, params=query, json=body, headers=headers)

    async def get(self, path: str, token: str, **query: str) -> dict[str, Any]:
        """Return the answer to a GET."""
        response = await self.client.get(path, params=query, headers={"Authorization": f"Bearer {token}"})
        assert response.status_code == 200, response.text
        return dict(response.json())

    async def command(self, token: str, sent: dict[str, Any], status: int = 200) -> dict[str, Any]:
        """Return the outcome of a command."""
        response = await self.client.post("/v1/commands", json=sent, headers={"Authorization": f"Bearer {token}"})
        assert response.status_code == status, response.text
        return dict(response.json())

    def of(self, *business_centers: str, role: str = "admin") -> str:
        """Return a token for these Business Centers."""
        return self.issuer.token(business_centers=list(business_centers), role=role)

    def _filled(self, text: str) -> str:
        for name, value in self.named.items():
            text = text.replace("{" + name + "}", value)
        return text


@pytest.fixture(scope="module")
async def guarded() -> AsyncIterator[Guarded]:
    """Open two Business Centers, each with an account, a campaign, a deal and a record in quarantine."""
    with reachable_directory() as directory:
        issues = issuer(directory)
        async with (
            running_system(api_authentication="tokens", api_keys_file=issues.keys_file, http_rate=1_000_000) as system,
            system.client() as client,
        ):
            running = Guarded(client, issues, {})
            for name in ("ours", "theirs"):
                await _fill(running, system, name)
            running.named = await _names(running)
            yield running


async def _fill(guarded: Guarded, system: RunningSystem, name: str) -> None:
    token = guarded.issuer.token()
    account = {"ad_account_id": f"{name}-1"}
    opening = {"billing": "prepay", "buying_type": "auction", "time_zone": "UTC"}
    await guarded.command(token, _command(name, "open_business_center", currency="USD", time_zone="UTC"))
    await guarded.command(token, _command(name, "open_ad_account", **account, **opening))
    await guarded.command(token, _command(name))
    budget = {"campaign_id": f"{name}-c", "mode": "daily", "amount": "5"}
    await guarded.command(token, _command(name, "set_campaign_budget", **account, **budget))
    deal = Call(f"/v1/deals/{name}-deal", WRITERS, 422, body=_deal(f"{name}-1"))
    assert (await guarded.ask("PUT", deal, token)).status_code == 201
    await _quarantine(guarded, system, name)


async def _quarantine(guarded: Guarded, system: RunningSystem, name: str) -> None:
    """Publish a spend of an account that the Business Center does not have, and one that names no Business Center."""
    spend = {"type": "spend", "event_id": str(uuid4()), "business_center_id": name, "ad_account_id": f"{name}-2"}
    spend |= {"campaign_id": "c", "amount": "1", "currency": "USD"}
    producer = await create_producer(system.settings)
    try:
        now = (await guarded.get(f"/v1/business-centers/{name}", guarded.issuer.token()))["as_of"]["recorded_at"]
        record = json.dumps({**spend, "occurred_at": now}).encode()
        await producer.send_and_wait(SPEND_EVENTS, record, key=name.encode())
        await producer.send_and_wait(SPEND_EVENTS, b"no JSON", key=name.encode())
    finally:
        await producer.stop()


async def _names(guarded: Guarded) -> dict[str, str]:
    token = guarded.issuer.token()
    while True:
        entries = (await guarded.get("/v1/quarantine", token))["entries"]
        if len(entries) == 4:
            break
        await asyncio.sleep(0.05)  # The state of another process, seen through HTTP.
    theirs = guarded.of("theirs")
    mine = {each["id"] for each in (await guarded.get("/v1/quarantine", theirs))["entries"]}
    record = next(each["id"] for each in entries if each["reason"] == "unknown_ad_account" and each["id"] not in mine)
    ledger = (await guarded.get("/v1/ledger", token, business_center_id="ours"))["entries"]
    deposit = next(each for each in ledger if each["kind"] == "deposit")
    return {"record": record, "deposit": deposit["source_event_id"], "now": ledger[-1]["recorded_at"]}


def _routes(modules: tuple[Any, ...]) -> set[tuple[str, str]]:
    routes = [route for module in modules for route in module.router.routes]
    assert all(isinstance(route, APIRoute) for route in routes)
    return {(method, route.path) for route in routes for method in route.methods}


# --- Every route ---


def test_every_route_is_covered_by_the_calls_of_this_test() -> None:
    assert _routes(PROTECTED) == set(CALLS)
    assert {path for _, path in _routes(OPEN)} == {*OPEN_PATHS, "/", "/metrics"}
    assert all(path.startswith(PROTECTED_PATHS) for _, path in CALLS)
    assert not any(path.startswith(PROTECTED_PATHS) for path in OPEN_PATHS)
    app = create_app(cast("Context", None))
    assert len(app.routes) == len(PROTECTED) + len(OPEN)


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_nothing_is_answered_without_a_valid_token(guarded: Guarded, method: str, path: str) -> None:
    call = CALLS[method, path]
    refused = await guarded.ask(method, call, None)
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
    assert refused.headers["www-authenticate"] == 'Bearer realm="drawdown"'
    for what, token in guarded.issuer.bad_tokens().items():
        refused = await guarded.ask(method, call, token)
        assert (refused.status_code, set(refused.json())) == (401, {"code", "message"}), what
        assert 'error="invalid_token"' in refused.headers["www-authenticate"], what


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_a_role_may_call_exactly_its_routes(guarded: Guarded, method: str, path: str) -> None:
    call = CALLS[method, path]
    for role in EVERYBODY:
        response = await guarded.ask(method, call, guarded.of("ours", role=role))
        if role in call.roles:
            # The rules refuse the command. The record was already sent back, as the role before.
            decided = response.status_code == 422 and response.json()["code"] == "permission_denied"
            waits = response.status_code == 409 and path.endswith("/replay")
            assert response.is_success or (decided and path == "/v1/commands") or waits, (role, response.text)
        else:
            assert (response.status_code, response.json()["code"]) == (403, "permission_denied"), role


@pytest.mark.parametrize(
    ("method", "call"),
    [*((method, call) for (method, _), call in CALLS.items()), *(("GET", call) for call in FURTHER)],
)
async def test_a_token_of_another_business_center_sees_nothing(guarded: Guarded, method: str, call: Call) -> None:
    right = await guarded.ask(method, call, guarded.of("ours"))
    assert right.is_success or (right.status_code == 409 and call.path.endswith("/replay"))
    if call.hidden == 200:
        assert "ours" in right.text  # Otherwise its absence would prove nothing.
    response = await guarded.ask(method, call, guarded.of("theirs"))
    assert response.status_code == call.hidden, response.text
    if method == "GET":
        assert "ours" not in response.text
    if call.hidden == 404:
        unknown = Call(call.path.replace("ours", "nobody").replace("{record}", "3-999"), set(), 404, query=call.query)
        body = None if call.body is None else {"ids": ["3-999"]}
        same = await guarded.ask(method, Call(unknown.path, set(), 404, body, call.query), guarded.of("theirs"))
        assert (response.status_code, response.json()) == (same.status_code, same.json())


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
async def test_routes_without_data_of_a_tenant_need_no_token(guarded: Guarded, path: str) -> None:
    response = await guarded.client.get(path)
    assert response.status_code == 200
    assert "ours-1" not in response.text
    assert '"ours"' not in response.text


async def test_overall_metrics_are_only_at_the_health_port(guarded: Guarded) -> None:
    for path in ("/metrics", "/%6detrics"):
        for headers in ({}, {"Authorization": f"Bearer {guarded.issuer.token()}"}):
            refused = await guarded.client.get(path, headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    "path",
    ["/v1%2fbusiness-centers", "/%761/business-centers", "/v1/business%2Dcenters", "/v1/business-centers/our%73"],
)
async def test_a_path_with_another_spelling_is_not_found(guarded: Guarded, path: str) -> None:
    """A proxy's rule compares the text."""
    for token in (None, guarded.issuer.token()):
        refused = await guarded.client.get(path, headers={} if token is None else {"Authorization": f"Bearer {token}"})
        assert (refused.status_code, refused.json()["code"]) == (404, "not_found")


async def test_a_colon_in_an_id_may_be_encoded(guarded: Guarded) -> None:
    token = guarded.issuer.token()
    opening = _command("with:colon", "open_business_center", currency="USD", time_zone="UTC")
    await guarded.command(token, opening)
    for path in ("/v1/business-centers/with:colon", "/v1/business-centers/with%3Acolon"):
        assert (await guarded.get(path, token))["business_center_id"] == "with:colon"


async def test_existing_paths_cannot_be_told_from_others_without_a_token(guarded: Guarded) -> None:
    for path in ("/v1/nothing", "/v1/business-centers/", "/v1/deals/a/b/c"):
        assert (await guarded.client.get(path)).status_code == 401


@pytest.mark.parametrize("path", ["/v1/deals", "/v1/deals/none", "/nothing", "/docs", "/openapi.json", "/v1/commands"])
async def test_every_answer_forbids_caching_and_embedding(guarded: Guarded, path: str) -> None:
    for token in (None, guarded.issuer.token()):
        answer = await guarded.client.get(path, headers={} if token is None else {"Authorization": f"Bearer {token}"})
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        kept = "no-cache" if path in OPEN_PATHS else "no-store"
        assert answer.headers.get_list("cache-control") == [kept]


# --- Scope ---


@pytest.mark.parametrize(
    ("path", "name", "id_", "ours_and_theirs"),
    [
        ("/v1/business-centers", "business_centers", "business_center_id", ["ours", "theirs"]),
        ("/v1/deals", "deals", "id", ["ours-deal", "theirs-deal"]),
    ],
)
async def test_lists_hold_only_data_of_the_caller_on_every_page(
    guarded: Guarded, path: str, name: str, id_: str, ours_and_theirs: list[str]
) -> None:
    found: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = await guarded.get(path, guarded.of("nobody", "theirs", "ours"), limit="1", **after)
        found += [each[id_] for each in page[name]]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert found == ours_and_theirs
    assert [each[id_] for each in (await guarded.get(path, guarded.of("theirs")))[name]] == ours_and_theirs[1:]


async def test_the_unfiltered_ledger_holds_only_the_business_centers_of_the_caller(guarded: Guarded) -> None:
    async def entries(token: str, **query: str) -> list[Any]:
        found: list[Any] = []
        after: dict[str, str] = {}
        while True:
            page = await guarded.get("/v1/ledger", token, limit="3", **query, **after)
            found += page["entries"]
            if page["next"] is None:
                return found
            after = {"after": page["next"]}

    for name in ("ours", "theirs"):
        expected = await entries(guarded.issuer.token(), business_center_id=name)
        assert await entries(guarded.of(name)) == expected
        assert expected
    both = await entries(guarded.of("theirs", "ours"))
    assert {entry["business_center_id"] for entry in both} == {"ours", "theirs"}
    assert both == [each for each in await entries(guarded.issuer.token()) if each in both]


async def test_all_accounts_of_a_deal_must_belong_to_the_caller(guarded: Guarded) -> None:
    async def put(id_: str, token: str, *accounts: str) -> tuple[int, str | None]:
        response = await guarded.ask("PUT", Call(f"/v1/deals/{id_}", WRITERS, 0, body=_deal(*accounts)), token)
        return response.status_code, response.json().get("message")

    theirs = guarded.of("theirs")
    assert await put("both", theirs, "theirs-1", "ours-1") == (422, "there is no ad account ours-1")
    assert await put("both", theirs, "nobodys-1") == (422, "there is no ad account nobodys-1")
    assert (await put("ours-deal", theirs, "theirs-1"))[0] == 403
    assert (await guarded.get("/v1/deals/ours-deal", guarded.of("ours")))["ad_account_ids"] == ["ours-1"]
    assert (await put("both", guarded.issuer.token(), "ours-1", "theirs-1"))[0] == 201
    for token in (theirs, guarded.of("ours")):
        assert (await guarded.ask("GET", Call("/v1/deals/both", READERS, 404), token)).status_code == 404
        assert (await put("both", token, "theirs-1"))[0] != 200
    assert (await put("both", guarded.of("ours", "theirs"), "ours-1", "theirs-1"))[0] == 200


async def test_a_record_without_a_business_center_is_only_for_callers_with_all_of_them(guarded: Guarded) -> None:
    def malformed(entries: list[Any]) -> list[Any]:
        return [each for each in entries if each["reason"] == "malformed"]

    everything = (await guarded.get("/v1/quarantine", guarded.issuer.token()))["entries"]
    assert len(malformed(everything)) >= 2
    both = (await guarded.get("/v1/quarantine", guarded.of("ours", "theirs")))["entries"]
    assert both
    assert not malformed(both)
    replay = Call("/v1/quarantine/replay", WRITERS, 0, body={"reason": "malformed", "force": True})
    assert (await guarded.ask("POST", replay, guarded.of("ours", "theirs"))).status_code == 403
    one = Call(f"/v1/quarantine/{malformed(everything)[0]['id']}/replay", WRITERS, 404)
    assert (await guarded.ask("POST", one, guarded.of("ours", "theirs"))).status_code == 404


async def test_a_replay_by_reason_takes_only_records_of_the_caller(guarded: Guarded) -> None:
    replay = Call("/v1/quarantine/replay", WRITERS, 0, body={"reason": "unknown_ad_account"})
    listed = (await guarded.get("/v1/quarantine", guarded.of("theirs"), reason="unknown_ad_account"))["entries"]
    waiting = [each for each in listed if each["replayed_at"] is None]
    assert waiting
    assert (await guarded.ask("POST", replay, guarded.of("theirs"))).json() == {"replayed": len(waiting)}


# --- Commands ---


async def test_the_actor_is_the_one_that_the_token_names(guarded: Guarded) -> None:
    for body in ({}, {"actor": {"id": "mallory", "role": "admin"}}, {"actor": "nonsense"}):
        sent = {**_command("ours"), **body}
        await guarded.command(guarded.issuer.token(sub="ann", role="system"), sent)
        written = await guarded.get("/v1/ledger", guarded.of("ours"), source_event_id=sent["command_id"])
        assert written["entries"][0]["details"]["command"]["actor"] == {"id": "ann", "role": "system"}


async def test_the_published_command_has_the_actor_of_the_token(guarded: Guarded) -> None:
    """The role in the body may not deposit, and the token's may. The ledger decides what was published."""
    sent = {**_command("ours"), "actor": {"id": "bob", "role": "standard"}}
    assert (await guarded.command(guarded.of("ours"), sent))["status"] == "accepted"
    sent = {**_command("ours"), "actor": {"id": "bob", "role": "admin"}}
    refused = await guarded.command(guarded.of("ours", role="standard"), sent, 422)
    assert refused["code"] == "permission_denied"


async def test_a_repeated_command_is_the_same_only_under_the_same_actor(guarded: Guarded) -> None:
    sent = _command("ours")
    ann, bob = (guarded.issuer.token(sub=name) for name in ("ann", "bob"))
    first = await guarded.command(ann, sent)
    assert await guarded.command(ann, {**sent, "actor": {"id": "bob", "role": "admin"}}) == first
    assert (await guarded.command(bob, sent, 422))["code"] == "conflict"
    assert (await guarded.command(bob, {**sent, "actor": {"id": "ann", "role": "admin"}}, 422))["code"] == "conflict"


async def test_a_command_for_another_business_center_is_refused_whether_it_exists_or_not(guarded: Guarded) -> None:
    for name in ("theirs", "nobody"):
        for sent in (_command(name), _command(name, "open_business_center", currency="USD", time_zone="UTC")):
            refused = await guarded.command(guarded.of("ours"), sent, 403)
            assert refused == {"code": "permission_denied", "message": "this Business Center is not yours"}


async def test_an_invalid_command_is_400_also_with_a_token(guarded: Guarded) -> None:
    headers = {"Authorization": f"Bearer {guarded.issuer.token()}"}
    for body, named in ((b"", "JSON"), (b"[]", "body"), (b"{}", "type"), (b"[" * 50_000, "JSON"), (b"\xff", "JSON")):
        refused = await guarded.client.post("/v1/commands", content=body, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid")
        assert named in refused.json()["message"]


# --- Claims ---


@pytest.mark.parametrize(
    ("claims", "named"),
    [
        ({"sub": "a b"}, "sub"),
        ({"sub": ""}, "sub"),
        ({"sub": "a" * 65}, "sub"),
        ({"sub": "a\n"}, "sub"),
        ({"role": None}, "role"),
        ({"role": "root"}, "role"),
        ({"role": ["admin"]}, "role"),
        ({"business_centers": None}, "business_centers"),
        ({"business_centers": "ours"}, "business_centers"),
        ({"business_centers": ["*"]}, "business_centers"),
        ({"business_centers": ["ours", 7]}, "business_centers"),
        ({"business_centers": {"ours": True}}, "business_centers"),
    ],
)
async def test_a_token_without_a_needed_claim_is_refused_with_an_explanation(
    guarded: Guarded, claims: dict[str, Any], named: str
) -> None:
    refused = await guarded.ask("GET", CALLS["GET", "/v1/business-centers"], guarded.issuer.token(**claims))
    assert (refused.status_code, refused.json()["code"]) == (403, "permission_denied")
    assert refused.json()["message"].startswith(f"the token's {named} should be ")


async def test_a_token_without_business_centers_sees_no_data(guarded: Guarded) -> None:
    token = guarded.of()
    for path, name in (
        ("/v1/business-centers", "business_centers"),
        ("/v1/ledger", "entries"),
        ("/v1/deals", "deals"),
        ("/v1/quarantine", "entries"),
    ):
        assert (await guarded.get(path, token))[name] == []


async def test_clocks_may_differ_a_little_and_the_audience_may_be_one_of_several(guarded: Guarded) -> None:
    now = int(time.time())
    for claims in ({"exp": now - 10}, {"nbf": now + 10}, {"iat": now + 10}, {"aud": ["other", "drawdown"]}):
        await guarded.get("/v1/deals", guarded.issuer.token(**claims))


async def test_a_token_is_accepted_only_in_the_authorization_header(guarded: Guarded) -> None:
    token = guarded.issuer.token()
    for headers in ({"Authorization": token}, {"Authorization": f"Basic {token}"}, {"Authorization": "Bearer"}):
        assert (await guarded.client.get("/v1/deals", headers=headers)).status_code == 401
    assert (await guarded.client.get("/v1/deals", params={"access_token": token})).status_code == 401
    assert (await guarded.client.get("/v1/deals", headers={"Authorization": f"bearer {token}"})).status_code == 200
