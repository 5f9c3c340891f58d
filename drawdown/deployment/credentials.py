"""Makes what a deployment of containers keeps secret: passwords, certificates, the key that signs tokens.

What is there stays as it is, so that the same step may run at every start; whoever deletes a file gets a new one. Only
the token of the traffic is made anew each time.
"""

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from drawdown.deployment.command_keys import missing_command_keys
from drawdown.deployment.kafka_access import PRINCIPALS
from drawdown.deployment.tokens import SIGNING_KEY_FILE, issue, new_key
from shared.runtime.roles import SERVICE_ROLES
from shared.runtime.settings import Settings

# The superuser of the server, whom nobody needs, and the owner of the database, who migrates it.
_DATABASE_LOGINS = ("postgres", "drawdown", *SERVICE_ROLES)
_CERTIFIED_DAYS = 3650
_TOKEN_MINUTES = 24 * 60
_SERVERS = ("kafka", "postgres")


def make_credentials(settings: Settings, directory: Path, *, centers_of_traffic: Sequence[str]) -> None:
    """Write what is missing: `database/`, `kafka/` (passwords), `tls/`, `api/`, `commands/`, `withdrawn/`.

    The generator of traffic is given a token for its own Business Centers, each time another; if it has none, there is
    no such token.
    """
    for folder, names in (("database", _DATABASE_LOGINS), ("kafka", PRINCIPALS)):
        for name in names:
            _write_once(directory / folder / name, secrets.token_urlsafe(32))
    if not (directory / "tls" / "ca.pem").exists():
        _make_certificates(directory / "tls")
    if not (directory / "api" / SIGNING_KEY_FILE).exists():
        new_key(directory / "api")
    for name, text in missing_command_keys(directory / "commands").items():
        _write(directory / "commands" / name, text.decode())
    if not (directory / "withdrawn" / "tokens").exists():
        _make_withdrawn(directory / "withdrawn")
    _renew_token_of_traffic(settings, directory / "api", centers_of_traffic)


def _make_withdrawn(directory: Path) -> None:
    """A file for ids of tokens. The API is given its folder, so that it also sees a file that has replaced this one."""
    directory.mkdir(exist_ok=True)
    directory.chmod(0o755)
    (directory / "tokens").write_text("# The ids (jti) of tokens that are good no more, one a line.\n")
    (directory / "tokens").chmod(0o644)


def _renew_token_of_traffic(settings: Settings, directory: Path, centers: Sequence[str]) -> None:
    """For its own Business Centers alone, and for a day. A generator that runs already reads it in the same file."""
    path = directory / "traffic-token"
    if not centers:
        if path.exists():
            _withdraw(path.read_text(), directory.parent / "withdrawn" / "tokens")
            path.unlink()
        return
    key = directory / SIGNING_KEY_FILE
    token = issue(settings, key, "traffic", "finance_manager", centers, minutes=_TOKEN_MINUTES)
    if path.exists():
        path.chmod(0o644)
    path.write_text(token)
    path.chmod(0o444)


def _withdraw(token: str, withdrawn: Path) -> None:
    """Whoever has a copy of it cannot use it any more. One of before tokens had ids ends with its key alone."""
    try:
        id = jwt.decode(token, options={"verify_signature": False}).get("jti")
    except jwt.DecodeError:  # No whole token, so nobody can use it.
        id = None
    if id is not None:
        with withdrawn.open("a") as file:
            file.write(f"\n{id}  # the traffic's\n")  # Whoever wrote the last line may not have ended it.


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
