"""Settings: environment variables that begin with `DRAWDOWN_`, checked once at the start."""

import os
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

from pydantic import DirectoryPath, Field, FilePath, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "DRAWDOWN_"
DATABASE_NAME = "drawdown"
DATABASE_USER = "drawdown"
# A file name within the data directory.
POSTGRES_PASSWORD_FILE = "postgres-password"  # noqa: S105

_SECRETS = frozenset({"database_url", "kafka_password", "api_token"})


class BadSettingError(ValueError):
    """A setting is well-formed and still unusable. People see only the message, so it names the setting."""


KafkaSecurity = Literal["sasl_ssl", "ssl", "sasl_plaintext", "plaintext"]
DatabaseTls = Literal["verify-full", "off"]


def is_loopback(host: str) -> bool:
    """Return whether traffic to that host stays on this machine."""
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _kafka_security(data: dict[str, Any]) -> KafkaSecurity:
    servers = str(data["kafka_bootstrap_servers"]).split(",")
    on_this_machine = all(is_loopback(server.strip().rpartition(":")[0]) for server in servers)
    return "plaintext" if on_this_machine else "sasl_ssl"


def _database_tls(data: dict[str, Any]) -> DatabaseTls:
    return "off" if is_loopback(urlsplit(data["database_url"]).hostname or "localhost") else "verify-full"


class Settings(BaseSettings):
    """The settings of a process. Each field is read from the variable `DRAWDOWN_` + its name in capitals.

    Without `kafka_bootstrap_servers` and `database_url` the embedded servers are used. Security is on by default,
    except for a server at a loopback address, because its traffic does not leave this machine.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="ignore", validate_default=False
    )

    data_dir: Path = Path(".drawdown")
    http_host: str = "127.0.0.1"
    http_port: int = Field(default=8080, ge=1, le=65535)
    kafka_port: int = Field(default=9092, ge=1, le=65535)
    postgres_port: int = Field(default=5433, ge=1, le=65535)
    health_host: str = "127.0.0.1"
    health_port: int | None = Field(default=None, ge=0, le=65535)

    kafka_bootstrap_servers: str = Field(default_factory=lambda data: f"127.0.0.1:{data['kafka_port']}")
    kafka_fetch_wait_ms: int = Field(default=10, ge=0, le=60_000)
    kafka_idempotence: bool = True
    database_url: str = Field(
        default_factory=lambda data: embedded_database_url(data["data_dir"], data["postgres_port"]), repr=False
    )

    kafka_security: KafkaSecurity = Field(default_factory=_kafka_security)
    kafka_ca_file: FilePath | None = None
    kafka_sasl_mechanism: Literal["SCRAM-SHA-512", "SCRAM-SHA-256"] = "SCRAM-SHA-512"
    kafka_username: str | None = None
    kafka_password: str | None = Field(default=None, repr=False)
    kafka_password_file: FilePath | None = None
    # Kafka's quotas for producers outside, per broker; `drawdown kafka-access` sets them.
    kafka_ad_delivery_bytes_per_second: int = Field(default=50_000_000, ge=1)
    kafka_back_office_bytes_per_second: int = Field(default=1_000_000, ge=1)

    database_tls: DatabaseTls = Field(default_factory=_database_tls)
    database_ca_file: FilePath | None = None
    database_password_file: FilePath | None = None
    # One file for each role, named like the role: `drawdown migrate` sets that role's password from it.
    role_passwords_dir: DirectoryPath | None = None

    # None means tokens, except for an API at a loopback address with an embedded database.
    api_authentication: Literal["tokens", "off"] | None = None
    api_keys_file: FilePath | None = None
    api_jwks_url: str | None = None
    api_issuer: str | None = None
    api_audience: str = "drawdown"
    # The ids (jti) of tokens that are no longer valid, one a line; read again when the file changes.
    api_withdrawn_file: FilePath | None = None
    # The API signs the commands that it publishes with the first; allocation verifies them with the second, which may
    # hold several public keys as PEM.
    command_signing_key_file: FilePath | None = None
    command_keys_file: FilePath | None = None
    # Requests a second of one subject, or of one address if there are no tokens. A burst may be twice as large.
    http_rate: int = Field(default=1000, ge=1, le=1_000_000)
    # Concurrent commands of one subject, and unsent answers to its reads; only one read at a time is worked on.
    http_in_flight: int = Field(default=2, ge=1, le=1_000)
    http_connections_of_one_address: int = Field(default=300, ge=1, le=1_000_000)
    # The time from accepting a connection to the head of its first request.
    http_head_seconds: float = Field(default=2, gt=0, le=60)
    # The token that the command line sends to the API.
    api_token: str | None = Field(default=None, repr=False)
    api_token_file: FilePath | None = None

    shards: int = Field(default=4, ge=1, le=1024)
    deduplication_days: int = Field(default=7, ge=1, le=365)
    policy_file: FilePath | None = None
    # Per allocation process, 1.5 KB each. Above this number idle campaigns rest in the database.
    campaigns_in_memory: int = Field(default=150_000, ge=1_000, le=100_000_000)
    clock_offset_seconds: float = Field(default=0, allow_inf_nan=False, ge=-3e9, le=3e9)

    log_format: Literal["auto", "json", "console"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def database_is_embedded(self) -> bool:
        """Return whether no database is configured, so that the embedded one is used."""
        return "database_url" not in self.model_fields_set

    @property
    def kafka_is_embedded(self) -> bool:
        """Return whether no broker is configured, so that the embedded one is used."""
        return "kafka_bootstrap_servers" not in self.model_fields_set

    @property
    def api_wants_tokens(self) -> bool:
        """Return whether the API requires a bearer token."""
        if self.api_authentication is None:
            return not (self.database_is_embedded and is_loopback(self.http_host))
        return self.api_authentication == "tokens"

    @property
    def http_client_host(self) -> str:
        """Return the host name with which this machine reaches the server that listens at `http_host`."""
        return "127.0.0.1" if self.http_host in ("0.0.0.0", "::") else self.http_host  # noqa: S104

    @field_validator("database_url")
    @classmethod
    def _is_postgresql(cls, value: str) -> str:
        if not value.startswith(("postgresql://", "postgres://")):
            raise ValueError("should begin with postgresql://")
        parts = urlsplit(value)
        if not parts.hostname or "," in parts.netloc:
            raise ValueError("should name one host")
        try:
            is_port = parts.port is None or parts.port > 0
        except ValueError:
            is_port = False
        if not is_port:
            raise ValueError("should have a port from 1 to 65535")
        if "\0" in unquote(value):
            raise ValueError("should not contain NUL")
        if parts.query:  # It could name another host, or turn off what the settings turn on.
            raise ValueError("should end with the database's name: DRAWDOWN_DATABASE_TLS decides about TLS")
        return value

    @field_validator("kafka_bootstrap_servers")
    @classmethod
    def _are_host_and_port(cls, value: str) -> str:
        for server in value.split(","):
            host, colon, port = server.strip().rpartition(":")
            if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
                raise ValueError("should be host:port, or several of them separated by commas")
        return value

    @field_validator("log_format", "log_level", mode="before")
    @classmethod
    def _in_small_letters(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value


def embedded_database_url(data_dir: Path, port: int) -> str:
    """Return the URL of the embedded PostgreSQL, with the password from the data directory."""
    try:
        password = ":" + quote((data_dir / POSTGRES_PASSWORD_FILE).read_text().strip(), safe="")
    except OSError:  # Not started yet, or owned by another user: the server's error will say so.
        password = ""
    return f"postgresql://{DATABASE_USER}{password}@127.0.0.1:{port}/{DATABASE_NAME}"


def load_settings() -> Settings:
    """Read the settings from the environment. Exits with 2 and one line on stderr if any is invalid."""
    try:
        return Settings()
    except ValidationError as error:
        # A default that is derived from an invalid setting is not itself wrong.
        wrong = [each for each in error.errors() if each["type"] != "default_factory_not_called"]
        problems = "; ".join(_problem(dict(each)) for each in wrong)
        print(f"drawdown: {problems}", file=sys.stderr)
        raise SystemExit(2) from None


def _problem(error: dict[str, Any]) -> str:
    field = str(error["loc"][0])
    variable = PREFIX + field.upper()
    shown = "" if field in _SECRETS else f" (it is {os.environ.get(variable, error['input'])!r})"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{variable}: {message[0].lower()}{message[1:]}{shown}"
