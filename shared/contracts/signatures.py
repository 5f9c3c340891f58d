"""The signature of a command that the API publishes: Ed25519 (RFC 8032) over the record's value, in a header.

It proves that the API has checked the sender's token; anybody else with the right to write to the topic has no such
signature. The signed bytes contain the command's id, so a copied record is the same command, which is decided once.
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
# A prefix, so that no other signature made with the same key is valid for a command.
_PURPOSE: Final = b"drawdown finance command 1\0"
_PEM: Final = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)

Headers = Iterable[tuple[str, bytes | None]]


def new_command_key() -> tuple[bytes, bytes]:
    """Return a new private key, with which the API signs, and its public key, as PEM."""
    secret = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return secret, public_half(secret)


def public_half(pem: bytes) -> bytes:
    """Return the public key of a private key, both as PEM. Raises ValueError if `pem` is not a private key."""
    return load_pem_private_key(pem, None).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class CommandSigner:
    """Signs the commands that the API publishes."""

    def __init__(self, pem: bytes) -> None:
        """Read a private key. Raises ValueError if it is not an Ed25519 key."""
        match load_pem_private_key(pem, None):
            case Ed25519PrivateKey() as key:
                self._key = key
                self._id = _id_of(key.public_key())
            case _:
                raise ValueError("it should contain an Ed25519 private key, as PEM")

    def header(self, value: bytes) -> tuple[str, bytes]:
        """Return the header for a record with this value: the key's id and the signature, in base64."""
        return SIGNATURE_HEADER, self._id + b" " + b64encode(self._key.sign(_PURPOSE + value))


class CommandKeys:
    """The public keys that verify signatures: several while a key is replaced. Without any, signatures are ignored."""

    def __init__(self, pem: bytes | None = None) -> None:
        """Read concatenated public keys. Raises ValueError if there are none, or if one is not an Ed25519 key."""
        if pem is not None and b"PRIVATE KEY" in pem:
            raise ValueError("it contains a private key: give only public keys, and replace that private key")
        keys = [load_pem_public_key(found) for found in _PEM.findall(pem or b"")]
        self._keys = {_id_of(key): key for key in keys if isinstance(key, Ed25519PublicKey)}
        if pem is not None and not (keys and all(isinstance(key, Ed25519PublicKey) for key in keys)):
            raise ValueError("it should contain Ed25519 public keys, as PEM")

    def have_signed(self, value: bytes, headers: Headers) -> bool:
        """Return whether the record is signed.

        Raises ValueError for a signature that does not match the value, or whose key is unknown: a wrong signature is
        worse than none.
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
            raise ValueError("the signature was made with an unknown key")
        try:
            raw = b64decode(signature, validate=True)
            key.verify(raw, _PURPOSE + value)
        except (ValueError, InvalidSignature):
            raw = b""
        if b64encode(raw) != signature or not raw:  # Base64 has several forms of the same bytes; only one is accepted.
            raise ValueError("the signature does not match the command")


NO_KEYS: Final = CommandKeys()


def _id_of(key: Ed25519PublicKey) -> bytes:
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return sha256(raw).hexdigest()[:16].encode()
