"""The public keys that check tokens: a JSON Web Key Set (RFC 7517), from a file or from a URL."""

import asyncio
import time
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

import httpx
import structlog
from jwt import PyJWK, PyJWTError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.api.door.errors import unavailable
from shared.runtime.settings import BadSettingError, Settings, is_loopback

FRESH_SECONDS = 300.0
# The URL is not asked more often than this, even if tokens name many unknown keys.
PAUSE_SECONDS = 10.0
TIMEOUT_SECONDS = 5.0
BYTES_AT_MOST = 256 * 1024
KEYS_AT_MOST = 100

# By key type and curve. No "none", and no HMAC, because a server that can check such a token can also make one.
_ALGORITHMS = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("OKP", "Ed25519"): ("EdDSA",),
}


class _Key(BaseModel):
    """A key (RFC 7517, section 4). Its other fields depend on its type and are kept as they are."""

    model_config = ConfigDict(extra="allow")
    kty: str
    crv: str | None = None
    kid: str | None = None
    use: str | None = None
    alg: str | None = None
    key_ops: list[str] | None = None
    d: str | None = None

    def algorithms(self) -> tuple[str, ...]:
        """Return the algorithms that the key's own fields allow."""
        if self.use not in (None, "sig") or (self.key_ops is not None and "verify" not in self.key_ops):
            return ()
        possible = _ALGORITHMS.get((self.kty, self.crv), ())
        return tuple(each for each in possible if self.alg in (None, each))


class _Keys(BaseModel):
    keys: Annotated[list[_Key], Field(max_length=KEYS_AT_MOST)]


class KeySet:
    """Keys by id and algorithm."""

    def __init__(self, text: bytes) -> None:
        """Read a key set. Raises ValueError if it is malformed, has no key for tokens, or contains a private key."""
        self._keys: dict[tuple[str | None, str], PyJWK] = {}
        for key in _parse(text):
            for algorithm in key.algorithms():
                self._add(key, algorithm)
        if not self._keys:
            raise ValueError("it has no key for RS, PS, ES or EdDSA signatures")

    def find(self, key_id: str | None, algorithm: str) -> PyJWK | None:
        """Return the key of this id; without an id, the only key for the algorithm. None if there is none."""
        if key_id is not None:
            return self._keys.get((key_id, algorithm))
        found = [key for (_, of), key in self._keys.items() if of == algorithm]
        return found[0] if len(found) == 1 else None

    def _add(self, key: _Key, algorithm: str) -> None:
        try:
            self._keys[key.kid, algorithm] = PyJWK(key.model_dump(exclude_none=True), algorithm)
        except PyJWTError as error:
            structlog.get_logger().warning("a key of the key set is not usable", kid=key.kid, error=str(error))


def _parse(text: bytes) -> list[_Key]:
    try:
        keys = _Keys.model_validate_json(text).keys
    except ValidationError:
        raise ValueError("it is not a JSON Web Key Set") from None
    if any(key.d is not None for key in keys):
        raise ValueError("it contains a private key: publish public keys only, and replace this one")
    return keys


@dataclass(eq=False, slots=True)
class FixedKeys:
    """The keys of a file, read once at the start."""

    keys: KeySet

    async def find(self, key_id: str | None, algorithm: str) -> PyJWK | None:
        """Return the key, or None if there is none."""
        return self.keys.find(key_id, algorithm)


@dataclass(eq=False, slots=True)
class UrlKeys:
    """The keys at a URL. They are fetched again after five minutes, and when a token names an unknown key.

    While the URL does not answer, the last keys stay valid.
    """

    url: str
    _keys: KeySet | None = None
    _asked_at: float = float("-inf")
    _got_at: float = float("-inf")
    _asking: "asyncio.Task[None] | None" = None

    async def find(self, key_id: str | None, algorithm: str) -> PyJWK | None:
        """Return the key, or None if there is none. Raises ApiError (503) until keys were fetched once."""
        if time.monotonic() - self._got_at > FRESH_SECONDS:
            self._ask()
        if self._keys is None or self._keys.find(key_id, algorithm) is None:
            self._ask()
            if self._asking is not None:
                await asyncio.shield(self._asking)
        if self._keys is None:
            raise unavailable("the server of the token keys")
        return self._keys.find(key_id, algorithm)

    def _ask(self) -> None:
        """Start to fetch the keys, unless that was tried within the last ten seconds."""
        if time.monotonic() - self._asked_at > PAUSE_SECONDS:
            self._asked_at = time.monotonic()
            self._asking = asyncio.create_task(self._fetch())

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                self._keys = KeySet(await _download(self.url))
            self._got_at = time.monotonic()
        except (httpx.HTTPError, ValueError, TimeoutError) as error:
            reason = f"{type(error).__name__}: {error}"
            structlog.get_logger().warning("the token keys could not be fetched", url=self.url, error=reason)
        finally:
            self._asking = None


async def _download(url: str) -> bytes:
    """Return the body at the URL, without following redirects."""
    async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS, trust_env=False) as client, client.stream("GET", url) as got:
        if got.status_code != httpx.codes.OK:
            raise ValueError(f"it answers {got.status_code}")
        text = b""
        async for chunk in got.aiter_bytes():
            text += chunk
            if len(text) > BYTES_AT_MOST:
                raise ValueError(f"it answers more than {BYTES_AT_MOST} bytes")
        return text


Keys = FixedKeys | UrlKeys


def configured_keys(settings: Settings) -> Keys:
    """Return the keys that the settings name.

    Raises:
        BadSettingError: neither a file nor a URL is set, or both; the file is unusable; or the URL is unencrypted.

    """
    file, url = settings.api_keys_file, settings.api_jwks_url
    if (file is None) == (url is None):
        raise BadSettingError(
            "the API needs keys to check tokens: set either DRAWDOWN_API_KEYS_FILE or DRAWDOWN_API_JWKS_URL "
            "(or DRAWDOWN_API_AUTHENTICATION=off to answer without tokens)"
        )
    if url is not None:
        address = urlsplit(url)
        host = address.hostname or ""
        if not (host and address.scheme == "https") and not (address.scheme == "http" and is_loopback(host)):
            raise BadSettingError("DRAWDOWN_API_JWKS_URL should begin with https:// (http:// only for this machine)")
        return UrlKeys(url)
    assert file is not None
    try:
        return FixedKeys(KeySet(file.read_bytes()))
    except (OSError, ValueError) as error:
        raise BadSettingError(f"DRAWDOWN_API_KEYS_FILE {file}: {error}") from None
