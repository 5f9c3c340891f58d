"""The credentials of a deployment of containers, and the health check of its image."""

import http.server
import os
import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jwt
import pytest

from drawdown.deployment import healthcheck
from drawdown.deployment.credentials import make_credentials
from drawdown.local.traffic import CAST, set_up_commands
from services.api.door.withdrawn import Withdrawn
from shared.contracts.signatures import CommandKeys, CommandSigner
from shared.rules.roles import may
from shared.runtime.roles import SERVICE_ROLES
from shared.runtime.settings import Settings


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("secrets")
    make_credentials(Settings(), directory, centers_of_traffic=[])
    return directory


def contents(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


def test_every_role_and_user_has_its_own_password(directory: Path) -> None:
    passwords = [text for name, text in contents(directory).items() if name.startswith(("database/", "kafka/"))]
    assert len(set(passwords)) == len(passwords)
    assert min(map(len, passwords)) >= 32
    assert {path.name for path in (directory / "database").iterdir()} == {"postgres", "drawdown", *SERVICE_ROLES}


def test_a_second_run_changes_nothing_and_replaces_only_what_was_deleted(directory: Path) -> None:
    before = contents(directory)
    make_credentials(Settings(), directory, centers_of_traffic=[])
    assert contents(directory) == before

    (directory / "kafka" / "ad-delivery").unlink()
    make_credentials(Settings(), directory, centers_of_traffic=[])
    after = contents(directory)
    assert {name for name in after if after[name] != before[name]} == {"kafka/ad-delivery"}


def test_only_its_owner_can_read_the_key_that_signs_tokens(directory: Path) -> None:
    assert stat.S_IMODE((directory / "api" / "signing-key.pem").stat().st_mode) == 0o600


def test_allocation_knows_the_key_that_the_api_signs_with_even_after_it_is_replaced(tmp_path: Path) -> None:
    def make() -> tuple[tuple[str, bytes], CommandKeys]:
        make_credentials(Settings(), tmp_path, centers_of_traffic=[])
        commands = tmp_path / "commands"
        signer = CommandSigner((commands / "command-signing-key.pem").read_bytes())
        return signer.header(b"command"), CommandKeys((commands / "command-keys.pem").read_bytes())

    first, keys = make()
    assert keys.have_signed(b"command", [first])
    (tmp_path / "commands" / "command-keys.pem").unlink()
    assert make()[1].have_signed(b"command", [first])
    (tmp_path / "commands" / "command-signing-key.pem").unlink()
    second, keys = make()
    assert first != second
    assert keys.have_signed(b"command", [first, second])


def test_the_traffic_gets_a_token_of_one_day_for_its_own_business_centers_and_only_if_wanted(tmp_path: Path) -> None:
    file = tmp_path / "api" / "traffic-token"
    make_credentials(Settings(), tmp_path, centers_of_traffic=[])
    assert not file.exists()
    make_credentials(Settings(), tmp_path, centers_of_traffic=[center.id for center in CAST])
    first, place = file.read_text(), file.stat().st_ino
    claims = jwt.decode(first, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 24 * 60 * 60
    assert (claims["role"], claims["business_centers"]) == ("finance_manager", [center.id for center in CAST])
    make_credentials(Settings(), tmp_path, centers_of_traffic=[center.id for center in CAST])
    assert file.read_text() != first
    assert file.stat().st_ino == place  # The same file, so a container that mounts it sees the new token.
    last = jwt.decode(file.read_text(), options={"verify_signature": False})["jti"]
    make_credentials(Settings(), tmp_path, centers_of_traffic=[])
    assert not file.exists()
    assert Withdrawn(tmp_path / "withdrawn" / "tokens").has(last)


def test_the_role_of_the_traffic_allows_all_that_it_asks_for() -> None:
    asked = {command["type"] for command in set_up_commands(CAST, "2026-11-22T12:00:00Z")}
    assert len(asked) > 5
    assert all(may("finance_manager", type_, finance_roles=True) for type_ in (*asked, "reset_budget"))


@pytest.mark.parametrize(("server", "other"), [("kafka", "postgres"), ("postgres", "kafka")])
def test_a_server_is_trusted_under_its_own_names_only(directory: Path, server: str, other: str) -> None:
    for name in (server, "localhost", "127.0.0.1"):
        shake_hands(directory, server, name)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(directory, server, other)


def shake_hands(directory: Path, server: str, name: str) -> None:
    """Shake hands by TLS over a pair of buffers, with a client that asks for `name`."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(directory / "tls" / f"{server}.pem")
    asking = ssl.create_default_context(cafile=directory / "tls" / "ca.pem")
    asking.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    upwards, downwards = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = asking.wrap_bio(downwards, upwards, server_hostname=name)
    answering = serving.wrap_bio(upwards, downwards, server_side=True)
    for end in (client, answering, client, answering):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert client.version() == "TLSv1.3"


@contextmanager
def service_that_answers(status: int) -> Iterator[int]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 500)
            self.end_headers()
            self.wfile.write(b"so it is")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        yield server.server_port
        thread.join()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_a_container_is_healthy_when_its_service_is_ready(
    status: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with service_that_answers(status) as port:
        monkeypatch.setitem(os.environ, "DRAWDOWN_HEALTH_PORT", str(port))
        assert healthcheck.main() == code
    assert capsys.readouterr().out == "so it is\n"


def test_a_container_in_which_nothing_answers_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setitem(os.environ, "DRAWDOWN_HEALTH_PORT", str(taken.getsockname()[1]))
        assert healthcheck.main() == 1
