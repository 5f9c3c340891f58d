"""Creates signing keys and bearer tokens, for a deployment without an identity provider."""

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from jwt.algorithms import ECAlgorithm
from jwt.utils import base64url_encode

from shared.contracts.commands import Role
from shared.contracts.fields import IDENTIFIER_PATTERN
from shared.runtime.settings import BadSettingError, Settings

ALGORITHM = "ES256"
SIGNING_KEY_FILE = "signing-key.pem"
KEY_SET_FILE = "keys.json"


def new_key(directory: Path) -> None:
    """Write `signing-key.pem`, readable only by its owner, and `keys.json`, the key set that the API uses.

    Raises FileExistsError if there is a signing key already, because all its tokens would become invalid.
    """
    key = generate_private_key(SECP256R1())
    directory.mkdir(parents=True, exist_ok=True)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (directory / SIGNING_KEY_FILE).touch(mode=0o600, exist_ok=False)
    (directory / SIGNING_KEY_FILE).write_bytes(pem)
    public = {**_public(key), "kid": _key_id(key), "alg": ALGORITHM, "use": "sig"}
    (directory / KEY_SET_FILE).write_text(json.dumps({"keys": [public]}, indent=2) + "\n")
    print(f"wrote {directory / SIGNING_KEY_FILE} (keep it secret) and {directory / KEY_SET_FILE} (for the API)")


def issue(
    settings: Settings, signing_key: Path, subject: str, role: Role, business_centers: Sequence[str], *, minutes: int
) -> str:
    """Return a signed token with a new id, with which it can be withdrawn.

    Args:
        settings: the issuer and the audience.
        signing_key: a key file that `new_key` wrote.
        subject: the actor's id in the ledger.
        role: decides what the actor may do.
        business_centers: those that the actor may see; `*` means all.
        minutes: the time until it expires.

    Raises:
        BadSettingError: the file contains no key, or an id is malformed.

    """
    for id_ in (subject, *(each for each in business_centers if each != "*")):
        if re.fullmatch(IDENTIFIER_PATTERN, id_) is None:
            raise BadSettingError(f"{id_!r} is not an id: use 1 to 64 of A-Z a-z 0-9 _ . : -")
    key = _read_signing_key(signing_key)
    now = int(time.time())
    claims: dict[str, object] = {
        "sub": subject,
        "role": role,
        "business_centers": "*" if "*" in business_centers else list(business_centers),
        "aud": settings.api_audience,
        "iat": now,
        "exp": now + 60 * minutes,
        "jti": str(uuid4()),
    }
    if settings.api_issuer is not None:
        claims["iss"] = settings.api_issuer
    return jwt.encode(claims, key, ALGORITHM, headers={"kid": _key_id(key)})


def id_of(token: str) -> str:
    """Return the id of a token, whose signature is not checked."""
    return str(jwt.decode(token, options={"verify_signature": False})["jti"])


def _read_signing_key(path: Path) -> EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, EllipticCurvePrivateKey):
        raise BadSettingError(f"{path} contains no signing key: create one with `drawdown token new-key`")
    return key


def _public(key: EllipticCurvePrivateKey) -> dict[str, str]:
    return {name: str(value) for name, value in ECAlgorithm.to_jwk(key.public_key(), as_dict=True).items()}


def _key_id(key: EllipticCurvePrivateKey) -> str:
    """Return the key's thumbprint (RFC 7638)."""
    public = _public(key)
    members = {name: public[name] for name in ("crv", "kty", "x", "y")}
    digest = Hash(SHA256())
    digest.update(json.dumps(members, sort_keys=True, separators=(",", ":")).encode())
    return base64url_encode(digest.finalize()).decode()
