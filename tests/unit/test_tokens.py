"""Keys and tokens of `drawdown token`, and what our own clients show the API."""

import json
from pathlib import Path

import httpx
import pytest

from drawdown.front_door import ApiToken
from drawdown.tokens import KEY_SET_FILE, SIGNING_KEY_FILE, issue, new_key
from services.api.tokens import Caller, Verifier
from shared.runtime.settings import BadSettingError, Settings


@pytest.mark.parametrize(
    ("business_centers", "seen"), [(["acme", "b"], frozenset({"acme", "b"})), (["*"], None), (["acme", "*"], None)]
)
async def test_what_is_issued_is_what_the_api_sees(
    tmp_path: Path, business_centers: list[str], seen: frozenset[str] | None
) -> None:
    new_key(tmp_path)
    settings = Settings(api_keys_file=tmp_path / KEY_SET_FILE, api_issuer="us", api_audience="them")
    token = issue(settings, tmp_path / SIGNING_KEY_FILE, "ann", "finance_manager", business_centers, minutes=1)
    assert await Verifier(settings).caller(token) == Caller("ann", "finance_manager", seen)


def test_the_signing_key_is_its_owners_and_in_no_other_file(tmp_path: Path) -> None:
    new_key(tmp_path / "new" / "folder")
    key = tmp_path / "new" / "folder" / SIGNING_KEY_FILE
    assert key.stat().st_mode & 0o777 == 0o600
    (public,) = json.loads(key.with_name(KEY_SET_FILE).read_text())["keys"]
    assert set(public) == {"kty", "crv", "x", "y", "kid", "alg", "use"}


def test_a_signing_key_is_never_overwritten(tmp_path: Path) -> None:
    new_key(tmp_path)
    before = (tmp_path / SIGNING_KEY_FILE).read_bytes(), (tmp_path / KEY_SET_FILE).read_bytes()
    with pytest.raises(FileExistsError):
        new_key(tmp_path)
    assert ((tmp_path / SIGNING_KEY_FILE).read_bytes(), (tmp_path / KEY_SET_FILE).read_bytes()) == before


def test_what_the_api_would_refuse_is_not_issued(tmp_path: Path) -> None:
    new_key(tmp_path)
    for subject, business_center in (("a b", "acme"), ("ann", "a/b"), ("", "acme")):
        with pytest.raises(BadSettingError, match="is no id"):
            issue(Settings(), tmp_path / SIGNING_KEY_FILE, subject, "admin", [business_center], minutes=1)
    with pytest.raises(BadSettingError, match="new-key"):
        issue(Settings(), tmp_path / KEY_SET_FILE, "ann", "admin", ["*"], minutes=1)


def _shown(auth: ApiToken) -> str | None:
    request = next(auth.auth_flow(httpx.Request("GET", "http://api/v1/deals")))
    shown: str | None = request.headers.get("authorization")
    return shown


def test_a_token_file_is_read_anew_for_each_request(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    auth = ApiToken(Settings(api_token_file=file))
    assert _shown(auth) == "Bearer first"
    file.write_text("second")
    assert _shown(auth) == "Bearer second"
    assert _shown(ApiToken(Settings(api_token="here", api_token_file=file))) == "Bearer here"
    assert _shown(ApiToken(Settings())) is None
