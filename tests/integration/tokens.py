"""Tokens for tests: valid ones, and every kind of invalid one."""

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from jwt.utils import base64url_encode

from drawdown.deployment.tokens import KEY_SET_FILE, SIGNING_KEY_FILE, new_key

ALL = "*"


@dataclass
class Issuer:
    """Signs tokens with a key that `drawdown token new-key` created."""

    key: ec.EllipticCurvePrivateKey
    key_id: str
    keys_file: Path

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Return the claims of an administrator of everything, with changes. None leaves a claim out."""
        now = int(time.time())
        claims = {"sub": "ann", "role": "admin", "business_centers": ALL, "aud": "drawdown", "exp": now + 600}
        return {name: value for name, value in {**claims, **changes}.items() if value is not None}

    def token(self, *, headers: dict[str, Any] | None = None, **changes: Any) -> str:
        """Return a token with these claims."""
        return jwt.encode(self.claims(**changes), self.key, "ES256", headers={"kid": self.key_id, **(headers or {})})

    def bad_tokens(self) -> dict[str, str]:
        """Yield a description of what is wrong with a token, and that token."""
        now = int(time.time())
        head, payload, signature = self.token().split(".")
        other = base64url_encode(json.dumps(self.claims(sub="eve")).encode()).decode()
        stranger = ec.generate_private_key(ec.SECP256R1())
        public = self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return {
            "expired": self.token(exp=now - 60),
            "not valid yet": self.token(nbf=now + 600),
            "issued in the future": self.token(iat=now + 600),
            "without an end": self.token(exp=None),
            "for somebody else": self.token(aud="another"),
            "for nobody": self.token(aud=None),
            "of nobody": self.token(sub=None),
            "signed by a stranger": jwt.encode(self.claims(), stranger, "ES256", headers={"kid": self.key_id}),
            "of an unknown key": self.token(headers={"kid": "another"}),
            "with a signature of other claims": f"{head}.{other}.{signature}",
            "without a signature": f"{head}.{payload}.",
            "not signed": self._by_hand("none", lambda _: b""),
            "signed with the public key as a secret": self._by_hand(
                "HS256", lambda text: hmac.digest(public, text, hashlib.sha256)
            ),
            "with an extension that must be understood": self.token(headers={"crit": ["x"], "x": 1}),
            "no token at all": "e30.e30.e30",
            "garbage": "garbage",
        }

    def _by_hand(self, algorithm: str, sign: Callable[[bytes], bytes]) -> str:
        """Return a token as no library would make it."""
        header = {"alg": algorithm, "kid": self.key_id}
        text = b".".join(base64url_encode(json.dumps(part).encode()) for part in (header, self.claims()))
        return (text + b"." + base64url_encode(sign(text))).decode()


def issuer(directory: Path) -> Issuer:
    """Create a new key, and its key set in the directory; return the issuer."""
    new_key(directory)
    key = load_pem_private_key((directory / SIGNING_KEY_FILE).read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    keys_file = directory / KEY_SET_FILE
    return Issuer(key, json.loads(keys_file.read_text())["keys"][0]["kid"], keys_file)
