"""/openapi.json states every rule that is enforced: no request that it allows is refused as bad, and none is answered
with a 500.
"""

import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.api.app import create_app
from services.api.commands import publishing
from services.api.context import Context
from services.api.door.access import Access
from shared.contracts.zones import installed_zones
from shared.runtime.settings import Settings
from tests.integration.api import Api, running_api
from tests.integration.schema_values import values
from tests.integration.test_api_reads import open_ad_account, open_business_center
from tests.servers import Postgres

# Rules between two fields, or about the number of shards, which a schema cannot state. The description does.
TOGETHER = re.compile(
    "to should not be before from|from and to should be at most 400 days|at is in the future"
    "|ends_on should not be before starts_on|slabs should ascend"
    "|after should have 4 numbers, one for each shard|after should be the `next` of another replay"
)
KNOWN_IDS = {"business_center_id": "bc-1", "ad_account_id": "acct-1", "deal_id": "deal-1", "record_id": "0-1"}


def described() -> dict[str, Any]:
    """Return the document. No server is needed to make it."""
    nobody: Any = None
    access = Access(Settings(api_authentication="off"))
    context = Context(access, nobody, nobody, nobody, nobody, nobody, nobody, shards=4)
    document: dict[str, Any] = create_app(context).openapi()
    return document


DOCUMENT = described()
SCHEMAS = DOCUMENT["components"]["schemas"]
OPERATIONS = [(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods]


@pytest.fixture(scope="module")
async def api(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    with pytest.MonkeyPatch.context() as patch:
        # No writer decides here, so a valid command is published and answered with 504 at once.
        patch.setattr(publishing, "DECISION_TIMEOUT_SECONDS", 0.02)
        async with running_api(postgres.url, tmp_path_factory.mktemp("api"), http_rate=1_000_000) as running:
            await open_business_center(running, "bc-1", cash=3)
            await open_ad_account(running, "bc-1", "acct-1", cash=3)
            yield running


@st.composite
def requests(draw: st.DrawFn, path: str, method: str) -> dict[str, Any]:
    """Return a strategy for requests that the document allows."""
    operation = DOCUMENT["paths"][path][method]
    query: dict[str, Any] = {}
    for parameter in operation.get("parameters", []):
        name, allowed = parameter["name"], values(parameter["schema"], SCHEMAS)
        if parameter["in"] == "path":
            allowed |= st.just(KNOWN_IDS[name]) if name in KNOWN_IDS else allowed
            path = path.replace(f"{{{name}}}", quote(draw(allowed), safe=""))
        elif parameter.get("required") or draw(st.booleans()):
            query[name] = draw(allowed)
    request = {"method": method.upper(), "url": path, "params": query}
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        request["json"] = draw(values(schema, SCHEMAS))
    return request


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(data=st.data())
@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=[" ".join(each[::-1]) for each in OPERATIONS])
async def test_a_request_that_the_description_allows_is_not_refused_as_invalid(
    api: Api, path: str, method: str, data: st.DataObject
) -> None:
    request = data.draw(requests(path, method))
    response = await api.client.request(**request)
    assert str(response.status_code) in DOCUMENT["paths"][path][method]["responses"], (request, response.text)
    assert response.status_code < 500 or response.status_code in (503, 504), (request, response.text)
    if response.status_code == 400:
        assert TOGETHER.search(response.json()["message"]), (request, response.text)


def test_every_named_time_zone_is_valid_and_those_of_the_machine_are_not_named() -> None:
    names = set(installed_zones().table)
    assert {"Europe/Kiev", "Asia/Tokyo", "UTC"} <= names
    assert not {"Factory", "localtime", "posixrules"} & names


def test_no_parameter_may_be_null() -> None:
    parameters = [each for path, method in OPERATIONS for each in DOCUMENT["paths"][path][method].get("parameters", [])]
    assert parameters
    assert [each["name"] for each in parameters if "null" in str(each["schema"].get("anyOf", ""))] == []
