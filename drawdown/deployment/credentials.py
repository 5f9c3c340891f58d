"""Creates the secrets of a deployment of containers: passwords, certificates, the key that signs tokens.

Existing files are kept, so that this step may run at every start; a deleted file is created again. Only the traffic
generator's token is new each time.
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

# The server's superuser, which nothing uses, and the database's owner, which migrates it.
_DATABASE_LOGINS = ("postgres", "drawdown", *SERVICE_ROLES)
_CERTIFIED_DAYS = 3650
_TOKEN_MINUTES = 24 * 60
_SERVERS = ("kafka", "postgres")


def make_credentials(settings: Settings, directory: Path, *, centers_of_traffic: Sequence[str]) -> None:
    """Write the missing files in `database/` and `kafka/` (passwords), `tls/`, `api/`, `commands/` and `withdrawn/`.

    Args:
        settings: the issuer and the audience of the traffic generator's token.
        directory: the folder for all of them, which only its owner can enter.
        centers_of_traffic: the traffic generator gets a new token for these Business Centers; if there are none, its
            token is withdrawn.

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
    """Create the file for ids of withdrawn tokens. Its folder is mounted, so that the API sees a replaced file too."""
    directory.mkdir(exist_ok=True)
    directory.chmod(0o755)
    (directory / "tokens").write_text("# The ids (jti) of tokens that are no longer valid, one a line.\n")
    (directory / "tokens").chmod(0o644)


def _renew_token_of_traffic(settings: Settings, directory: Path, centers: Sequence[str]) -> None:
    """Issue a token for a day, only for the generator's Business Centers. A running generator reads the file again."""
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
    """Withdraw a token, so that a copy of it is useless. A token of an early release has no id and stays valid."""
    try:
        id = jwt.decode(token, options={"verify_signature": False}).get("jti")
    except jwt.DecodeError:  # It is not a complete token, so nobody can use it.
        id = None
    if id is not None:
        with withdrawn.open("a") as file:
            file.write(f"\n{id}  # the traffic's\n")  # The last line may lack its newline, if a person wrote it.


def _make_certificates(directory: Path) -> None:
    """Create an authority, and a certificate for each server. Discards the authority's key, so it signs no others."""
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
    """Return the server's name among the containers, and its names on this machine, where its port is published."""
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
    """Write a file that every user in a container can read once it is mounted there.

    On this machine the folder protects it, because only its owner can enter that.
    """
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(0o444)
