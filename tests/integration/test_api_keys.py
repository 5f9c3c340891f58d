"""The keys that verify tokens: from a file, or from a URL that is fetched sparingly; keys that could be misused are
refused.
"""

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from services.api.door import keys
from services.api.door.errors import ApiError
from services.api.door.tokens import Caller, Verifier
from shared.runtime.settings import BadSettingError, Settings
from tests.integration.tokens import Issuer, issuer
from tests.servers import free_ports

RSA_KEY = rsa.generate_private_key(65537, 2048)
ED25519_KEY = ed25519.Ed25519PrivateKey.generate()
P384_KEY = ec.generate_private_key(ec.SECP384R1())


def public(key: Any, **fields: Any) -> dict[str, Any]:
    """Return a key in the form of a key set."""
    algorithm: Any = OKPAlgorithm
    if isinstance(key, rsa.RSAPrivateKey):
        algorithm = RSAAlgorithm
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        algorithm = ECAlgorithm
    found = algorithm.to_jwk(key.public_key(), as_dict=True)
    found.pop("key_ops", None)
    return {**found, "kid": "k", **fields}


def key_set(*of: dict[str, Any]) -> bytes:
    return json.dumps({"keys": list(of)}).encode()


def signed(key: Any, algorithm: str, **headers: Any) -> str:
    claims = {"sub": "ann", "role": "admin", "business_centers": "*", "aud": "drawdown", "exp": int(time.time()) + 60}
    return jwt.encode(claims, key, algorithm, headers={"kid": "k", **headers})


def verifier(directory: Path, text: bytes, **settings: Any) -> Verifier:
    file = directory / "set.json"
    file.write_bytes(text)
    return Verifier(Settings(api_keys_file=file, **settings))


async def status(of: Verifier, token: str) -> int:
    """Return 200 for a valid token, else the status of the error."""
    try:
        caller = await of.caller(token)
    except ApiError as error:
        return error.status
    assert caller == Caller("ann", "admin", None)
    return 200


# --- What a key may verify ---


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        *((RSA_KEY, name) for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
        (P384_KEY, "ES384"),
        (ED25519_KEY, "EdDSA"),
    ],
)
async def test_asymmetric_signatures_are_accepted(tmp_path: Path, key: Any, algorithm: str) -> None:
    checks = verifier(tmp_path, key_set(public(key)))
    assert await status(checks, signed(key, algorithm)) == 200


async def test_the_declared_use_of_a_key_is_respected(tmp_path: Path) -> None:
    other = public(P384_KEY, kid="other")
    for said, algorithm, expected in (
        ({"use": "sig", "alg": "RS256", "key_ops": ["verify"]}, "RS256", 200),
        ({"alg": "RS256"}, "PS256", 401),
        ({"alg": "RS256"}, "RS512", 401),
        ({"alg": "HS256"}, "RS256", 401),
        ({"use": "enc"}, "RS256", 401),
        ({"key_ops": ["encrypt"]}, "RS256", 401),
    ):
        checks = verifier(tmp_path, key_set(public(RSA_KEY, **said), other))
        assert await status(checks, signed(RSA_KEY, algorithm)) == expected, said


async def test_a_token_without_a_key_id_is_checked_with_the_only_possible_key(tmp_path: Path) -> None:
    anonymous = jwt.encode(
        {**jwt.decode(signed(RSA_KEY, "RS256"), options={"verify_signature": False})}, RSA_KEY, "RS256"
    )
    assert await status(verifier(tmp_path, key_set(public(RSA_KEY), public(P384_KEY, kid="p"))), anonymous) == 200
    second = public(rsa.generate_private_key(65537, 2048), kid="second")
    assert await status(verifier(tmp_path, key_set(public(RSA_KEY), second)), anonymous) == 401


async def test_a_short_rsa_key_is_refused(tmp_path: Path) -> None:
    short = rsa.generate_private_key(65537, 1024)
    checks = verifier(tmp_path, key_set(public(short)))
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        token = signed(short, "RS256")
    assert await status(checks, token) == 401


async def test_the_issuer_is_checked_if_one_is_configured(tmp_path: Path) -> None:
    text = key_set(public(RSA_KEY))
    checks = verifier(tmp_path, text, api_issuer="https://id.example.com")
    claims = jwt.decode(signed(RSA_KEY, "RS256"), options={"verify_signature": False})
    for issued_by, expected in (("https://id.example.com", 200), ("https://id.example.com/", 401), (None, 401)):
        said = claims if issued_by is None else {**claims, "iss": issued_by}
        assert await status(checks, jwt.encode(said, RSA_KEY, "RS256", headers={"kid": "k"})) == expected
    assert await status(verifier(tmp_path, text), jwt.encode({**claims, "iss": "anybody"}, RSA_KEY, "RS256")) == 200


SECRET = {"kty": "oct", "kid": "k", "k": base64.urlsafe_b64encode(b"s" * 32).decode()}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "not a JSON Web Key Set"),
        (b"[]", "not a JSON Web Key Set"),
        (b'{"keys": {}}', "not a JSON Web Key Set"),
        (b'{"keys": [7]}', "not a JSON Web Key Set"),
        (b'{"keys": []}', "no key"),
        (key_set(SECRET), "no key"),
        (key_set({"kty": "RSA", "n": "AQAB"}), "no key"),
        (key_set(public(RSA_KEY, use="enc")), "no key"),
        (key_set({**public(ED25519_KEY), "d": "c2VjcmV0"}), "private key"),
        (key_set(*[public(ED25519_KEY)] * 101), "not a JSON Web Key Set"),
    ],
)
def test_a_file_without_a_public_key_stops_the_start(tmp_path: Path, text: bytes, why: str) -> None:
    with pytest.raises(BadSettingError, match=f"DRAWDOWN_API_KEYS_FILE .*{why}"):
        verifier(tmp_path, text)


async def test_a_secret_in_the_key_set_is_not_used(tmp_path: Path) -> None:
    checks = verifier(tmp_path, key_set(SECRET, public(RSA_KEY, kid="other")))
    assert await status(checks, signed(b"s" * 32, "HS256")) == 401


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({}, "DRAWDOWN_API_KEYS_FILE or DRAWDOWN_API_JWKS_URL"),
        ({"api_jwks_url": "http://id.example.com/keys"}, "https://"),
        ({"api_jwks_url": "file:///etc/passwd"}, "https://"),
        ({"api_jwks_url": "id.example.com"}, "https://"),
        ({"api_jwks_url": "https:///keys"}, "https://"),
    ],
)
def test_tokens_without_configured_keys_stop_the_start(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(BadSettingError, match=why):
        Verifier(Settings(api_authentication="tokens", **settings))


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Issuer, Verifier]:
    issues = issuer(tmp_path_factory.mktemp("keys"))
    return issues, Verifier(Settings(api_keys_file=issues.keys_file))


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
CLAIMS = ("sub", "role", "business_centers", "aud", "exp", "nbf", "iat", "iss", "jti")


@hypothesis_settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    headers=st.fixed_dictionaries({}, optional=dict.fromkeys(("alg", "kid", "crit", "b64", "jku", "jwk"), JSON)),
    changes=st.fixed_dictionaries({}, optional=dict.fromkeys(CLAIMS, JSON)),
)
def test_any_token_is_refused_or_gives_its_own_subject_and_role(
    known: tuple[Issuer, Verifier], headers: dict[str, Any], changes: dict[str, Any]
) -> None:
    issues, checks = known
    found = asyncio.run(_outcome(checks, _crafted(issues, headers, changes)))
    if isinstance(found, Caller):
        assert (found.id, found.role) == (changes.get("sub", "ann"), changes.get("role", "admin"))
    else:
        assert found in (401, 403)


@given(token=st.text(max_size=60))
def test_garbage_is_401(known: tuple[Issuer, Verifier], token: str) -> None:
    assert asyncio.run(_outcome(known[1], token)) == 401


async def _outcome(checks: Verifier, token: str) -> Caller | int:
    try:
        return await checks.caller(token)
    except ApiError as error:
        return error.status


def _crafted(issues: Issuer, headers: dict[str, Any], changes: dict[str, Any]) -> str:
    """Return a token with any header and claims, and a valid signature."""
    parts = ({"alg": "ES256", "kid": issues.key_id, **headers}, {**issues.claims(), **changes})
    text = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts)
    signature = ECAlgorithm(ECAlgorithm.SHA256, ec.SECP256R1).sign(text, issues.key)
    return (text + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


# --- A URL ---


@dataclass
class KeyServer:
    """Answers every client with the same raw HTTP, and counts the requests."""

    port: int
    body: bytes
    head: bytes = b"HTTP/1.1 200 OK\r\n"
    asked: int = 0
    answers: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        await reader.readuntil(b"\r\n\r\n")
        await self.answers.wait()
        writer.write(self.head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(self.body) + self.body)
        writer.close()


@contextlib.asynccontextmanager
async def key_server(*of: dict[str, Any]) -> AsyncIterator[tuple[KeyServer, Verifier]]:
    """Run a server of keys, and yield it with a verifier that uses it."""
    serves = KeyServer(free_ports(1), key_set(*of))
    serves.answers.set()
    server = await asyncio.start_server(serves.answer, "127.0.0.1", serves.port)
    async with server:
        yield serves, Verifier(Settings(api_jwks_url=f"http://127.0.0.1:{serves.port}/keys"))


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that lets seconds pass on the clock of the key set."""
    passed = 0.0

    def wait(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    monkeypatch.setattr("services.api.door.keys.time", SimpleNamespace(monotonic=lambda: time.monotonic() + passed))
    return wait


async def test_keys_are_fetched_once_and_kept() -> None:
    async with key_server(public(RSA_KEY)) as (server, checks):
        found = await asyncio.gather(*(status(checks, signed(RSA_KEY, "RS256")) for _ in range(20)))
    assert set(found) == {200}
    assert server.asked == 1


async def test_a_new_key_is_found_and_unknown_key_ids_rarely_cause_a_request(later: Callable[[float], None]) -> None:
    async with key_server(public(RSA_KEY)) as (server, checks):
        assert await status(checks, signed(RSA_KEY, "RS256")) == 200
        for number in range(50):
            assert await status(checks, signed(P384_KEY, "ES384", kid=f"unknown-{number}")) == 401
        assert server.asked == 1
        server.body = key_set(public(P384_KEY, kid="new"))
        later(keys.PAUSE_SECONDS + 1)
        assert await status(checks, signed(P384_KEY, "ES384", kid="new")) == 200
        assert server.asked == 2
        assert await status(checks, signed(RSA_KEY, "RS256")) == 401, "a key that was withdrawn is good no more"
        assert server.asked == 2


async def test_a_withdrawn_key_is_forgotten_after_a_while(later: Callable[[float], None]) -> None:
    async with key_server(public(RSA_KEY), public(P384_KEY, kid="p")) as (server, checks):
        assert await status(checks, signed(RSA_KEY, "RS256")) == 200
        server.body = key_set(public(P384_KEY, kid="p"))
        later(keys.FRESH_SECONDS + 1)
        await _becomes(lambda: status(checks, signed(RSA_KEY, "RS256")), 401)


async def test_a_slow_or_unavailable_key_server_does_not_delay_tokens_with_a_known_key(
    later: Callable[[float], None],
) -> None:
    async with key_server(public(RSA_KEY)) as (server, checks):
        assert await status(checks, signed(RSA_KEY, "RS256")) == 200
        server.answers.clear()
        later(keys.FRESH_SECONDS + 1)
        async with asyncio.timeout(keys.TIMEOUT_SECONDS / 2):
            assert await status(checks, signed(RSA_KEY, "RS256")) == 200
        await _becomes(lambda: _asked(server), 2)
        server.answers.set()
    later(keys.FRESH_SECONDS + 1)
    assert await status(checks, signed(RSA_KEY, "RS256")) == 200


async def test_keys_are_requested_again_soon_after_a_failure(later: Callable[[float], None]) -> None:
    async with key_server(public(RSA_KEY)) as (server, checks):
        assert await status(checks, signed(RSA_KEY, "RS256")) == 200
        server.body = b"<html>"
        later(keys.FRESH_SECONDS + 1)
        await status(checks, signed(RSA_KEY, "RS256"))
        await _becomes(lambda: _asked(server), 2)
        server.body = key_set(public(P384_KEY, kid="p"))
        later(keys.PAUSE_SECONDS + 1)
        await _becomes(lambda: status(checks, signed(RSA_KEY, "RS256")), 401)


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n", key_set(public(RSA_KEY))),
        (b"HTTP/1.1 500 Internal Server Error\r\n", key_set(public(RSA_KEY))),
        (b"HTTP/1.1 200 OK\r\n", b"<html>"),
        (b"HTTP/1.1 200 OK\r\n", b'{"keys": []}'),
        (b"HTTP/1.1 200 OK\r\n", key_set(public(RSA_KEY)) + b" " * keys.BYTES_AT_MOST),
        (b"HTTP\r\n", b""),
    ],
)
async def test_the_answer_is_503_until_there_are_keys(later: Callable[[float], None], head: bytes, body: bytes) -> None:
    async with key_server(public(RSA_KEY)) as (server, checks):
        good = server.head, server.body
        server.head, server.body = head, body
        assert await status(checks, signed(RSA_KEY, "RS256")) == 503
        server.head, server.body = good
        later(keys.PAUSE_SECONDS + 1)
        assert await status(checks, signed(RSA_KEY, "RS256")) == 200


async def test_an_unavailable_key_server_is_503() -> None:
    checks = Verifier(Settings(api_jwks_url=f"http://127.0.0.1:{free_ports(1)}/keys"))
    assert await status(checks, signed(RSA_KEY, "RS256")) == 503


async def _asked(server: KeyServer) -> int:
    return server.asked


async def _becomes(what: Callable[[], Awaitable[int]], expected: int) -> None:
    """Wait until the condition holds. The test's time limit ends the wait if it never does."""
    while await what() != expected:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
