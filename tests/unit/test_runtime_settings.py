"""Settings come from the environment. An invalid one stops the start with one line."""

from pathlib import Path

import pytest

from shared.runtime.settings import POSTGRES_PASSWORD_FILE, Settings, load_settings


def test_the_embedded_servers_are_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings()
    assert settings.kafka_is_embedded
    assert settings.database_is_embedded
    assert settings.kafka_bootstrap_servers == "127.0.0.1:9092"
    assert settings.database_url == "postgresql://drawdown@127.0.0.1:5433/drawdown"


def test_the_embedded_servers_follow_their_ports_and_data_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / POSTGRES_PASSWORD_FILE).write_text("se/cret\n")
    monkeypatch.setenv("DRAWDOWN_KAFKA_PORT", "19092")
    monkeypatch.setenv("DRAWDOWN_POSTGRES_PORT", "15433")
    monkeypatch.setenv("DRAWDOWN_DATA_DIR", str(tmp_path))
    settings = load_settings()
    assert settings.kafka_bootstrap_servers == "127.0.0.1:19092"
    assert settings.database_url == "postgresql://drawdown:se%2Fcret@127.0.0.1:15433/drawdown"


def test_a_named_server_is_not_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAWDOWN_KAFKA_BOOTSTRAP_SERVERS", "kafka-1:9092,kafka-2:9092")
    monkeypatch.setenv("DRAWDOWN_DATABASE_URL", "postgresql://ledger@db/ledger")
    settings = load_settings()
    assert not settings.kafka_is_embedded
    assert not settings.database_is_embedded


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAWDOWN_DATABASE_URL", "")
    monkeypatch.setenv("DRAWDOWN_SHARDS", "")
    settings = load_settings()
    assert settings.database_is_embedded
    assert settings.shards == 4


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DRAWDOWN_SHARDS", "0"),
        ("DRAWDOWN_SHARDS", "1025"),
        ("DRAWDOWN_SHARDS", "four"),
        ("DRAWDOWN_DEDUPLICATION_DAYS", "0"),
        ("DRAWDOWN_DEDUPLICATION_DAYS", "366"),
        ("DRAWDOWN_HTTP_PORT", "65536"),
        ("DRAWDOWN_CLOCK_OFFSET_SECONDS", "nan"),
        ("DRAWDOWN_LOG_LEVEL", "loud"),
        ("DRAWDOWN_POLICY_FILE", "/nowhere/policy.json"),
        ("DRAWDOWN_KAFKA_BOOTSTRAP_SERVERS", "kafka"),
        ("DRAWDOWN_KAFKA_BOOTSTRAP_SERVERS", "kafka:0"),
        ("DRAWDOWN_KAFKA_BOOTSTRAP_SERVERS", "kafka:9092,"),
    ],
)
def test_a_bad_setting_ends_the_start_with_one_line_that_names_it(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as ended:
        load_settings()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"drawdown: {variable}: ")
    assert error.count("\n") == 1
    assert value in error


def test_a_bad_database_url_is_not_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DRAWDOWN_DATABASE_URL", "mysql://ledger:secret@db/ledger")
    with pytest.raises(SystemExit):
        load_settings()
    error = capsys.readouterr().err
    assert error == "drawdown: DRAWDOWN_DATABASE_URL: should begin with postgresql://\n"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql://ledger@db/ledger?sslmode=disable", "should end with the database's name: DRAWDOWN_DATABASE_TLS"),
        ("postgresql://localhost/ledger?host=db.example", "should end with the database's name: DRAWDOWN_DATABASE_TLS"),
        ("postgresql:///ledger", "should name one host"),
        ("postgresql://localhost:5432,db.example:5432/ledger", "should name one host"),
        ("postgresql://localhost:99999/ledger", "should have a port from 1 to 65535"),
        ("postgresql://localhost:0/ledger", "should have a port from 1 to 65535"),
        ("postgresql://localhost:abc/ledger", "should have a port from 1 to 65535"),
        ("postgresql://localhost/led%00ger", "should not contain NUL"),
    ],
)
def test_a_database_url_that_weakens_the_connection_is_refused(
    url: str, problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DRAWDOWN_DATABASE_URL", url)
    with pytest.raises(SystemExit):
        load_settings()
    assert capsys.readouterr().err.startswith(f"drawdown: DRAWDOWN_DATABASE_URL: {problem}")


@pytest.mark.parametrize(
    ("host", "tls"),
    [("127.0.0.1", "off"), ("localhost", "off"), ("[::1]", "off"), ("db", "verify-full"), ("10.0.0.7", "verify-full")],
)
def test_a_database_elsewhere_is_reached_over_tls_unless_a_setting_says_otherwise(host: str, tls: str) -> None:
    assert Settings(database_url=f"postgresql://ledger@{host}/ledger").database_tls == tls
    assert Settings(database_url=f"postgresql://ledger@{host}/ledger", database_tls="off").database_tls == "off"
