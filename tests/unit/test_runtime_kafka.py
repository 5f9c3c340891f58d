"""The partition of a key, and the settings with which clients connect."""

import ssl
from pathlib import Path
from typing import Any

import pytest

from shared.runtime.kafka import connection_arguments, murmur2_partition
from shared.runtime.settings import BadSettingError, Settings


# The hashes are those that Apache Kafka's own UtilsTest expects of its Java client.
@pytest.mark.parametrize(
    ("key", "murmur2"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
@pytest.mark.parametrize("partitions", [1, 4, 7, 1024])
def test_a_key_goes_to_the_same_partition_as_in_the_java_client(key: bytes, murmur2: int, partitions: int) -> None:
    assert murmur2_partition(key, partitions) == (murmur2 & 0x7FFFFFFF) % partitions


def connect(**fields: Any) -> dict[str, Any]:
    return connection_arguments(Settings(**fields))


def test_a_broker_of_this_machine_needs_no_security() -> None:
    assert connect() == {"bootstrap_servers": "127.0.0.1:9092", "security_protocol": "PLAINTEXT"}


def test_any_other_broker_is_reached_over_tls_and_with_a_password() -> None:
    arguments = connect(kafka_bootstrap_servers="kafka:9092", kafka_username="ann", kafka_password="secret")
    context = arguments.pop("ssl_context")
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert arguments == {
        "bootstrap_servers": "kafka:9092",
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "ann",
        "sasl_plain_password": "secret",
    }


def test_a_password_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("secret\n")
    arguments = connect(kafka_security="sasl_ssl", kafka_username="ann", kafka_password_file=file)
    assert arguments["sasl_plain_password"] == "secret"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "DRAWDOWN_KAFKA_USERNAME: needed, because DRAWDOWN_KAFKA_SECURITY is sasl_ssl"),
        ({"kafka_username": "ann"}, r"DRAWDOWN_KAFKA_PASSWORD_FILE: needed \(or DRAWDOWN_KAFKA_PASSWORD\)"),
        ({"kafka_username": "ann", "kafka_password_file": "empty"}, "DRAWDOWN_KAFKA_PASSWORD_FILE: needed"),
        ({"kafka_ca_file": "empty"}, "DRAWDOWN_KAFKA_CA_FILE: .* holds no PEM certificates"),
    ],
)
def test_a_missing_setting_is_named(fields: dict[str, str], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    files = {name: tmp_path / value for name, value in fields.items() if name.endswith("_file")}
    with pytest.raises(BadSettingError, match=sentence):
        connect(kafka_bootstrap_servers="kafka:9092", **{**fields, **files})
