"""Keys and tokens of `drawdown token`, and the tokens that our own clients send to the API."""

import itertools
import json
import string
import time
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from structlog.testing import capture_logs

from drawdown.api_client import ApiToken
from drawdown.deployment.tokens import KEY_SET_FILE, SIGNING_KEY_FILE, id_of, issue, new_key
from services.api.door.errors import ApiError
from services.api.door.tokens import Caller, Verifier
from services.api.door.withdrawn import Withdrawn
from shared.runtime.settings import BadSettingError, Settings


@pytest.mark.parametrize(
    ("business_centers", "seen"), [(["acme", "b"], frozenset({"acme", "b"})), (["*"], None), (["acme", "*"], None)]
)
async def test_the_api_reads_an_issued_token_as_it_was_issued(
    tmp_path: Path, business_centers: list[str], seen: frozenset[str] | None
) -> None:
    new_key(tmp_path)
    settings = Settings(api_keys_file=tmp_path / KEY_SET_FILE, api_issuer="us", api_audience="them")
    token = issue(settings, tmp_path / SIGNING_KEY_FILE, "ann", "finance_manager", business_centers, minutes=1)
    assert await Verifier(settings).caller(token) == Caller("ann", "finance_manager", seen)


def test_only_the_owner_can_read_the_signing_key_and_it_is_in_no_other_file(tmp_path: Path) -> None:
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


def test_a_token_that_the_api_would_refuse_is_not_issued(tmp_path: Path) -> None:
    new_key(tmp_path)
    for subject, business_center in (("a b", "acme"), ("ann", "a/b"), ("", "acme")):
        with pytest.raises(BadSettingError, match="is not an id"):
            issue(Settings(), tmp_path / SIGNING_KEY_FILE, subject, "admin", [business_center], minutes=1)
    with pytest.raises(BadSettingError, match="new-key"):
        issue(Settings(), tmp_path / KEY_SET_FILE, "ann", "admin", ["*"], minutes=1)


async def test_a_withdrawn_token_is_no_longer_valid_and_others_still_are(tmp_path: Path) -> None:
    new_key(tmp_path)
    withdrawn = tmp_path / "withdrawn"
    withdrawn.write_text("# a note\n")
    settings = Settings(api_keys_file=tmp_path / KEY_SET_FILE, api_withdrawn_file=withdrawn)
    verifier = Verifier(settings)
    ann, bob = (issue(settings, tmp_path / SIGNING_KEY_FILE, who, "admin", ["*"], minutes=1) for who in ("ann", "bob"))
    assert id_of(ann) != id_of(bob)
    await verifier.caller(ann)
    withdrawn.write_text(f"{id_of(ann)}  # lost\n\n")
    with pytest.raises(ApiError, match="withdrawn"):
        await verifier.caller(ann)
    await verifier.caller(bob)


def test_withdrawn_tokens_stay_withdrawn_while_their_file_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "withdrawn"
    file.write_text("one\r\n two # three\n\n# four\n")
    withdrawn = Withdrawn(file)
    assert [withdrawn.has(id_) for id_ in ("one", "two", "three", "four", "", None, 1)] == [True, True, *[False] * 5]
    file.unlink()
    with capture_logs() as logs:
        assert withdrawn.has("one")
        assert withdrawn.has("two")
    assert [line["log_level"] for line in logs] == ["error"]
    other = tmp_path / "other"
    other.write_text("three")
    other.rename(file)
    assert [withdrawn.has(id_) for id_ in ("one", "three")] == [False, True]
    assert not Withdrawn(None).has("one")


def _shown(auth: ApiToken) -> str | None:
    request = next(auth.auth_flow(httpx.Request("GET", "http://api/v1/deals")))
    shown: str | None = request.headers.get("authorization")
    return shown


def test_a_token_file_is_read_again_for_each_request(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    auth = ApiToken(Settings(api_token_file=file))
    assert _shown(auth) == "Bearer first"
    file.write_text("second")
    assert _shown(auth) == "Bearer second"
    assert _shown(ApiToken(Settings(api_token="here", api_token_file=file))) == "Bearer here"
    assert _shown(ApiToken(Settings())) is None


def _issued(tmp_path: Path) -> tuple[Verifier, str]:
    new_key(tmp_path)
    settings = Settings(api_keys_file=tmp_path / KEY_SET_FILE)
    token = issue(settings, tmp_path / SIGNING_KEY_FILE, "ann", "admin", ["acme"], minutes=1)
    return Verifier(settings), token


@pytest.mark.parametrize(
    ("part", "change"), [*itertools.product((0, 1, 2), ("=", "==", "=A", "\n", " ", "+")), (2, "last")]
)
async def test_a_token_has_only_one_valid_spelling(tmp_path: Path, part: int, change: str) -> None:
    verifier, token = _issued(tmp_path)
    parts = token.split(".")
    parts[part] = _with_other_last_bits(parts[part]) if change == "last" else parts[part] + change
    assert (await verifier.caller(token)).id == "ann"
    with pytest.raises(ApiError) as refused:
        await verifier.caller(".".join(parts))
    assert refused.value.status == 401


def _with_other_last_bits(signature: str) -> str:
    """Return another text for the same 64 bytes: the last letter has unused bits."""
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    return signature[:-1] + alphabet[alphabet.index(signature[-1]) ^ 1]


@pytest.mark.parametrize(
    ("name", "value"), [("exp", "9999999999"), ("exp", True), ("exp", [9999999999]), ("nbf", "1"), ("iat", "1")]
)
async def test_times_in_tokens_are_numbers(tmp_path: Path, name: str, value: Any) -> None:
    new_key(tmp_path)
    settings = Settings(api_keys_file=tmp_path / KEY_SET_FILE)
    key = (tmp_path / SIGNING_KEY_FILE).read_bytes()
    key_id = json.loads((tmp_path / KEY_SET_FILE).read_text())["keys"][0]["kid"]
    claims = {"sub": "ann", "role": "admin", "business_centers": "*", "aud": "drawdown", "exp": int(time.time()) + 60}

    def signed(changed: dict[str, Any]) -> str:
        return jwt.encode({**claims, **changed}, key, "ES256", headers={"kid": key_id})

    assert (await Verifier(settings).caller(signed({}))).id == "ann"
    with pytest.raises(ApiError) as refused:
        await Verifier(settings).caller(signed({name: value}))
    assert refused.value.status == 401
