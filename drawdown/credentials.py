"""Makes what a deployment of containers keeps secret: passwords, certificates, the key that signs tokens.

What is there stays as it is, so that the same step may run at every start; whoever deletes a file gets a new one.
"""

import secrets
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from drawdown.kafka_access import PRINCIPALS
from drawdown.tokens import SIGNING_KEY_FILE, issue, new_key
from shared.runtime.roles import SERVICE_ROLES
from shared.runtime.settings import Settings

# The superuser of the server, whom nobody needs, and the owner of the database, who migrates it.
_DATABASE_LOGINS = ("postgres", "drawdown", *SERVICE_ROLES)
_CERTIFIED_DAYS = 3650
_TOKEN_MINUTES = 365 * 24 * 60
_SERVERS = ("kafka", "postgres")


def make_credentials(settings: Settings, directory: Path) -> None:
    """Write what is missing: `database/`, `kafka/` (passwords), `tls/`, `api/`."""
    for folder, names in (("database", _DATABASE_LOGINS), ("kafka", PRINCIPALS)):
        for name in names:
            _write_once(directory / folder / name, secrets.token_urlsafe(32))
    if not (directory / "tls" / "ca.pem").exists():
        _make_certificates(directory / "tls")
    if not (directory / "api" / SIGNING_KEY_FILE).exists():
        new_key(directory / "api")
    token = issue(settings, directory / "api" / SIGNING_KEY_FILE, "traffic", "admin", ["*"], minutes=_TOKEN_MINUTES)
    _write_once(directory / "api" / "traffic-token", token)


def _make_certificates(directory: Path) -> None:
    """An authority and a certificate for each server. The authority's key is forgotten: nobody can sign another."""
    authority_key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Drawdown deployment")])
    authority = (
        _certificate(name, authority_key)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(authority_key, SHA256())
    )
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    for server in _SERVERS:
        key = generate_private_key(SECP256R1())
        certificate = (
            _certificate(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, server)]), key)
            .issuer_name(name)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(_names(server), critical=False)
            .add_extension(signer, critical=False)
            .sign(authority_key, SHA256())
        )
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _write(directory / f"{server}.pem", (secret + certificate.public_bytes(Encoding.PEM)).decode())
    _write(directory / "ca.pem", authority.public_bytes(Encoding.PEM).decode())


def _certificate(subject: x509.Name, key: EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # The clocks of two machines differ.
        .not_valid_after(now + timedelta(days=_CERTIFIED_DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _names(server: str) -> x509.SubjectAlternativeName:
    """As the containers call it, and as this machine does where its port is published."""
    return x509.SubjectAlternativeName(
        [x509.DNSName(server), x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write_once(path: Path, text: str) -> None:
    if not path.exists():
        _write(path, text)


def _write(path: Path, text: str) -> None:
    """Write a file that every user of a container it is mounted into may read.

    What keeps it from everybody else is the folder, which only its owner may enter.
    """
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(0o444)
