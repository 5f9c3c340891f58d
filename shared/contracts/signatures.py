"""The signature of a command that the API publishes: Ed25519 (RFC 8032) over the record's value, in a header.

It tells a command of somebody whose token the API has seen from one of whoever may write to the topic. What it covers
names the command's id, so that a copy of the record is the same command, which is decided once.
"""

import re
from base64 import b64decode, b64encode
from collections.abc import Iterable
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

SIGNATURE_HEADER: Final = "drawdown-signature"
# So that a signature of something else, by the same key, is none of a command.
_PURPOSE: Final = b"drawdown finance command 1\0"
_PEM: Final = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)

Headers = Iterable[tuple[str, bytes | None]]


def new_command_key() -> tuple[bytes, bytes]:
    """A new key as PEM: what the API signs with, and what a signature is checked with."""
    secret = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return secret, public_half(secret)


def public_half(pem: bytes) -> bytes:
    """What the signatures of a key are checked with, as PEM. Raises ValueError: it is no private key."""
    return load_pem_private_key(pem, None).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class CommandSigner:
    """Signs what the API publishes."""

    def __init__(self, pem: bytes) -> None:
        """Read the key. Raises ValueError: it is no Ed25519 key."""
        match load_pem_private_key(pem, None):
            case Ed25519PrivateKey() as key:
                self._key = key
                self._id = _id_of(key.public_key())
            case _:
                raise ValueError("it should hold an Ed25519 private key, as PEM")

    def header(self, value: bytes) -> tuple[str, bytes]:
        """The header of a record with this value: the key's id and the signature, in base64."""
        return SIGNATURE_HEADER, self._id + b" " + b64encode(self._key.sign(_PURPOSE + value))


class CommandKeys:
    """The keys that a signature may be of: several while one follows another. Without any, nothing is looked at."""

    def __init__(self, pem: bytes | None = None) -> None:
        """Read public keys, one after the other. Raises ValueError where there are none, or others among them."""
        if pem is not None and b"PRIVATE KEY" in pem:
            raise ValueError("it holds a private key: give the public ones only, and replace that one")
        keys = [load_pem_public_key(found) for found in _PEM.findall(pem or b"")]
        self._keys = {_id_of(key): key for key in keys if isinstance(key, Ed25519PublicKey)}
        if pem is not None and not (keys and all(isinstance(key, Ed25519PublicKey) for key in keys)):
            raise ValueError("it should hold Ed25519 public keys, as PEM")

    def have_signed(self, value: bytes, headers: Headers) -> bool:
        """Is this the value of a record that was signed? One without a signature is not.

        Raises ValueError for a signature that is none of it, or of an unknown key: whoever claims one must have it.
        """
        if not self._keys:
            return False
        claims = [text or b"" for name, text in headers if name == SIGNATURE_HEADER]
        for claim in claims:
            self._require(claim, value)
        return bool(claims)

    def _require(self, claim: bytes, value: bytes) -> None:
        id_, _, signature = claim.partition(b" ")
        key = self._keys.get(id_)
        if key is None:
            raise ValueError("the signature is of a key that is not known here")
        try:
            raw = b64decode(signature, validate=True)
            key.verify(raw, _PURPOSE + value)
        except (ValueError, InvalidSignature):
            raw = b""
        if b64encode(raw) != signature or not raw:  # Base64 can write the same bytes in several ways: one is ours.
            raise ValueError("the signature does not fit the command")


NO_KEYS: Final = CommandKeys()


def _id_of(key: Ed25519PublicKey) -> bytes:
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return sha256(raw).hexdigest()[:16].encode()
