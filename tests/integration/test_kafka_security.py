"""Apache Kafka behind TLS and SASL: only clients with the right certificates and the right password get in."""

import asyncio
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from drawdown.local.system import environment_of
from shared.runtime import kafka as runtime
from shared.runtime import retries
from shared.runtime.errors import CannotGoOnError
from shared.runtime.incarnation import incarnation
from shared.runtime.kafka import SPEND_EVENTS, start_client
from shared.runtime.settings import BadSettingError
from tests.acceptance.front_door import FrontDoor, until
from tests.containers import ContainerBroker, KafkaContainer
from tests.servers import embedded_settings, running_system

pytestmark = pytest.mark.containers

USER, PASSWORD = "drawdown", "correct horse"
CENTER = "behind-tls"


class Authority:
    """Signs certificates, like a company's own authority."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = self._sign(self._name, self._key.public_key(), x509.BasicConstraints(True, None))

    @property
    def pem(self) -> str:
        """Return the authority's certificate, which clients trust."""
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    def server(self, *hosts: str) -> tuple[str, str]:
        """Return a certificate for a server of these names or addresses, and its key (PKCS #8), both as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName(host) if host[0].isalpha() else x509.IPAddress(ip_address(host)) for host in hosts]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kafka")])
        certificate = self._sign(subject, key.public_key(), x509.SubjectAlternativeName(names))
        return certificate.public_bytes(serialization.Encoding.PEM).decode(), key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, extension: x509.ExtensionType
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(extension, critical=False)
            .sign(self._key, hashes.SHA256())
        )


class SecureKafka(KafkaContainer):
    """A node whose port for clients requires TLS and a password (SCRAM). Its certificate names 127.0.0.1, but not
    localhost.
    """

    def __init__(self, authority: Authority) -> None:
        super().__init__()
        certificate, key = authority.server("127.0.0.1")
        login = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        self.with_envs(
            KAFKA_LISTENER_SECURITY_PROTOCOL_MAP="CLIENT:SASL_SSL,BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
            KAFKA_SSL_KEYSTORE_TYPE="PEM",
            KAFKA_SSL_KEYSTORE_CERTIFICATE_CHAIN=_as_property(certificate),
            KAFKA_SSL_KEYSTORE_KEY=_as_property(key),
            KAFKA_SASL_ENABLED_MECHANISMS="SCRAM-SHA-512",
            KAFKA_LISTENER_NAME_CLIENT_SCRAM___SHA___512_SASL_JAAS_CONFIG=login,
        )

    def add_user(self, name: str, password: str) -> None:
        """Add a user, from within the container."""
        command = ["/opt/kafka/bin/kafka-configs.sh", "--bootstrap-server", "localhost:9093", "--alter"]
        command += ["--entity-type", "users", "--entity-name", name]
        command += ["--add-config", f"SCRAM-SHA-512=[password={password}]"]
        code, said = self.get_wrapped_container().exec_run(command)
        assert code == 0, said


def _as_property(pem: str) -> str:
    """Return the text on one line, as a properties file needs it."""
    return pem.strip().replace("\n", "\\n")


class Secured(NamedTuple):
    """The node, and the file with the certificate of its authority."""

    kafka: SecureKafka
    ca_file: Path


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    authority = Authority("ours")
    ca_file = tmp_path_factory.mktemp("authority") / "ca.pem"
    ca_file.write_text(authority.pem)
    with SecureKafka(authority) as node:
        node.add_user(USER, PASSWORD)
        yield Secured(node, ca_file)


@pytest.fixture
def security(secured: Secured, tmp_path: Path) -> dict[str, Any]:
    """Return the settings of a user who gets in."""
    password_file = tmp_path / "password"
    password_file.write_text(f"{PASSWORD}\n")
    return {
        "kafka_bootstrap_servers": secured.kafka.bootstrap_servers,
        "kafka_security": "sasl_ssl",
        "kafka_ca_file": secured.ca_file,
        "kafka_username": USER,
        "kafka_password_file": password_file,
    }


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "with_retries", partial(retries.with_retries, patience_seconds=1.0))


async def ask(path: Path, security: dict[str, Any], **changes: Any) -> None:
    """Connect with these settings, and with nothing from the environment."""
    admin = await start_client(embedded_settings(path, **{**security, **changes}), AIOKafkaAdminClient)
    await admin.close()


async def test_a_system_charges_spend_over_tls_with_a_password(security: dict[str, Any]) -> None:
    async with running_system(**security) as system, FrontDoor(system) as door:
        assert (await incarnation(system.settings, SPEND_EVENTS)).count("spend.events=") == 1
        account = {"ad_account_id": CENTER, "billing": "prepay", "buying_type": "auction", "time_zone": "UTC"}
        await door.accepted(CENTER, "open_business_center", currency="USD", time_zone="UTC")
        await door.accepted(CENTER, "open_ad_account", **account)
        await door.accepted(CENTER, "deposit_cash", ad_account_id=CENTER, amount="1")
        spend = {
            "type": "spend",
            "event_id": str(uuid4()),
            "business_center_id": CENTER,
            "ad_account_id": CENTER,
            "campaign_id": "brand",
            "amount": "1",
            "currency": "USD",
            "occurred_at": datetime.now(UTC).isoformat(),
        }
        place = await door.publish(spend)
        await door.fence(place.partition)
        (debit, pause) = await door.entries(spend["event_id"])
        assert (debit["kind"], debit["amount"]) == ("cash_debit", "-1.000000")
        assert pause["kind"] == "pause"
        key = f"ad_account/{CENTER}"

        async def is_told() -> bool | None:
            return True if door.signals[key] and not door.signals[key][-1]["delivering"] else None

        await until("the signal of the pause", is_told)


async def test_a_client_with_the_password_gets_in(security: dict[str, Any], tmp_path: Path) -> None:
    await ask(tmp_path, security)
    await ask(tmp_path, security, kafka_password_file=None, kafka_password=PASSWORD)


async def test_a_client_with_wrong_credentials_is_refused_at_once(security: dict[str, Any], tmp_path: Path) -> None:
    for wrong in ({"kafka_password_file": None, "kafka_password": "battery staple"}, {"kafka_username": "somebody"}):
        with pytest.raises(
            BadSettingError, match=r"^DRAWDOWN_KAFKA_USERNAME: Kafka at .* rejects the user .* or the password$"
        ):
            await ask(tmp_path, security, **wrong)
    with pytest.raises(BadSettingError, match=r"^DRAWDOWN_KAFKA_SASL_MECHANISM: Kafka at .* offers a different one"):
        await ask(tmp_path, security, kafka_sasl_mechanism="SCRAM-SHA-256")


async def test_a_server_with_a_certificate_of_another_authority_gets_no_password(
    security: dict[str, Any], tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    other.write_text(Authority("another").pem)
    for ca_file in (other, None):  # None means the authorities that this machine trusts.
        with pytest.raises(BadSettingError, match=r"^DRAWDOWN_KAFKA_CA_FILE: .* is not trusted: .*issuer"):
            await ask(tmp_path, security, kafka_ca_file=ca_file)


async def test_a_server_under_another_name_gets_no_password(security: dict[str, Any], tmp_path: Path) -> None:
    servers = security["kafka_bootstrap_servers"].replace("127.0.0.1", "localhost")
    with pytest.raises(BadSettingError, match=r"^DRAWDOWN_KAFKA_CA_FILE: .* is not trusted: Hostname mismatch"):
        await ask(tmp_path, security, kafka_bootstrap_servers=servers)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kafka_security", ["plaintext", "sasl_plaintext", "ssl"])
async def test_a_client_with_another_protocol_gets_an_error_after_a_while(
    security: dict[str, Any], tmp_path: Path, kafka_security: str
) -> None:
    with pytest.raises(CannotGoOnError, match=f"expect DRAWDOWN_KAFKA_SECURITY={kafka_security}\\?"):
        await ask(tmp_path, security, kafka_security=kafka_security)


@pytest.mark.usefixtures("impatient")
async def test_a_server_without_tls_gets_no_password(
    security: dict[str, Any], tmp_path: Path, kafka: ContainerBroker
) -> None:
    with pytest.raises(CannotGoOnError, match="does its listener expect DRAWDOWN_KAFKA_SECURITY=sasl_ssl"):
        await ask(tmp_path, security, kafka_bootstrap_servers=kafka.url)


async def test_a_service_without_access_ends_with_one_line(
    security: dict[str, Any], tmp_path: Path, database_url: str
) -> None:
    wrong = {"kafka_username": "somebody", "api_authentication": "off", "database_url": database_url}
    settings = embedded_settings(tmp_path, **{**security, **wrong})
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "drawdown", "api"),
        env={**os.environ, **environment_of(settings)},
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(30):
        _, said = await process.communicate()
    assert process.returncode == 2
    last = said.decode().splitlines()[-1]
    assert last.startswith("drawdown: DRAWDOWN_KAFKA_USERNAME: "), said.decode()
    assert "Traceback" not in said.decode()
