"""`make up` and `make down`: the whole system in containers, as a newcomer starts it."""

import json
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka.errors import TopicAuthorizationFailedError
from confluent_kafka import KafkaException

from drawdown.serving import SERVICES
from shared.runtime.errors import CannotGoOnError
from shared.runtime.kafka import FINANCE_COMMANDS, SPEND_EVENTS, create_producer
from shared.runtime.settings import BadSettingError, Settings
from tests.integration.librdkafka import CODECS, make_producer, produce
from tests.servers import free_ports

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
CONTAINERS = (*SERVICES, "traffic")
SERVERS = ("kafka", "postgres")
CENTER = "andes-travel"  # The spends are paid from a credit line that lasts.
_POLL_SECONDS = 0.5
_GRACE_SECONDS = 10
_MAKE_SECONDS = 600
_SECONDS = 60.0


class Deployment:
    """One deployment of this tree, next to any others."""

    def __init__(self, secrets: Path) -> None:
        self.secrets = secrets
        self.project = f"drawdown-test-{uuid.uuid4().hex[:8]}"
        self.http_port = free_ports(2)
        self.kafka_port = self.http_port + 1
        self.bootstrap = f"localhost:{self.kafka_port}"
        self._environment = {
            **os.environ,
            "COMPOSE_PROJECT_NAME": self.project,
            "DRAWDOWN_HTTP_PORT": str(self.http_port),
            "DRAWDOWN_KAFKA_PORT": str(self.kafka_port),
            "DRAWDOWN_SECRETS_DIR": str(secrets),
        }

    def make(self, *arguments: str) -> str:
        """Return the output of `make`."""
        return self._run("make", "--no-print-directory", *arguments)

    def compose(self, *arguments: str) -> str:
        """Return the output of `docker compose`."""
        return self._run("docker", "compose", "--file", "deploy/compose.yaml", "--profile", "*", *arguments)

    def inspect(self, service: str) -> dict[str, Any]:
        """Return Docker's description of a service's container."""
        container = self.compose("ps", "--all", "--quiet", service).strip()
        found: list[dict[str, Any]] = json.loads(self._run("docker", "inspect", container))
        return found[0]

    def read(self, path: str, token: str | None = None) -> httpx.Response:
        """Send a GET to a path of the API."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with httpx.Client(trust_env=False, timeout=10) as client:
            return client.get(f"http://127.0.0.1:{self.http_port}{path}", headers=headers)

    def gross(self, token: str) -> float:
        """Return the gross spend of the Business Center."""
        answer = self.read(f"/v1/business-centers/{CENTER}", token)
        return float(answer.json()["spend"]["gross"]) if answer.status_code == httpx.codes.OK else 0.0

    def kafka(self, username: str, **overrides: Any) -> Settings:
        """Return the options with which a client on this machine connects to Kafka."""
        values: dict[str, Any] = {
            "kafka_bootstrap_servers": self.bootstrap,
            "kafka_security": "sasl_ssl",
            "kafka_ca_file": self.secrets / "tls" / "ca.pem",
            "kafka_username": username,
            "kafka_password_file": self.secrets / "kafka" / username,
        }
        return Settings(**{**values, **overrides})

    def as_here(self, documented: str) -> str:
        """Return a snippet of the documentation, with this deployment's ports and secrets."""
        return documented.replace("deploy/secrets", str(self.secrets)).replace("localhost:9092", self.bootstrap)

    def attack(self, *arguments: str) -> str:
        """Return the output of `make security-check`."""
        return self._run(sys.executable, "-m", "tests.security", *arguments)

    def shell(self, script: str) -> str:
        """Return the output of a script."""
        return self._run("bash", "-ec", script)

    def remove(self) -> None:
        """Remove everything of the deployment."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "1")
        self._run("docker", "image", "rm", "--force", f"drawdown:{self.project}")

    def kill(self, service: str) -> None:
        """Kill the service's process from within the container, because Docker would not restart it after a kill of its
        own.
        """
        victim = "pathlib.Path('/proc/1/task/1/children').read_text().split()[0]"
        code = f"import os, pathlib; os.kill(int({victim}), 9)"
        command = (
            "docker",
            "compose",
            "--file",
            "deploy/compose.yaml",
            "exec",
            "--no-TTY",
            service,
            "python",
            "-c",
            code,
        )
        self._run(*command, expected=(0, 137))  # The command may end together with the container.

    def _run(self, *command: str, expected: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=_MAKE_SECONDS,
            check=False,
        )
        assert done.returncode in expected, f"{' '.join(command)}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path_factory.mktemp("deployment") / "secrets")
    try:
        deployment.make("up", "RATE=200")
        yield deployment
    finally:
        deployment.remove()


@pytest.fixture(scope="module")
def token(deployment: Deployment) -> str:
    return deployment.make("token").strip()


def test_spend_is_charged_and_something_pauses(deployment: Deployment, token: str) -> None:
    _wait_for(lambda: deployment.gross(token) > 0)
    _wait_for(lambda: '"the first pause"' in deployment.compose("logs", "traffic"))


def test_the_api_requires_a_token_and_shows_each_tenant_only_its_own_data(deployment: Deployment, token: str) -> None:
    path = f"/v1/business-centers/{CENTER}"
    others = deployment.make("token", "SUBJECT=ann", "ROLE=finance_manager", "BC=acme").strip()
    assert deployment.read(path).status_code == httpx.codes.UNAUTHORIZED
    assert deployment.read(path, others).status_code in (httpx.codes.FORBIDDEN, httpx.codes.NOT_FOUND)
    assert deployment.read(path, token).status_code == httpx.codes.OK


async def test_kafka_lets_each_user_do_only_what_it_must(deployment: Deployment) -> None:
    producer = await create_producer(deployment.kafka("back-office"))
    try:
        await producer.send_and_wait(FINANCE_COMMANDS, b"{}", key=b"nobody")
        with pytest.raises(TopicAuthorizationFailedError):
            await producer.send_and_wait(SPEND_EVENTS, b"{}", key=b"nobody")
    finally:
        await producer.stop()


@pytest.mark.parametrize("codec", CODECS)
def test_kafka_accepts_every_codec(deployment: Deployment, codec: str) -> None:
    producer = make_producer(deployment.kafka("back-office"), compression_type=codec)
    produce(producer, FINANCE_COMMANDS, [(b"nobody", b"{}" * 50)] * 50)


async def test_kafka_accepts_batches_that_the_topic_compresses(deployment: Deployment) -> None:
    alter = ("/opt/kafka/bin/kafka-configs.sh", "--bootstrap-server", "localhost:9095", "--alter")
    topic = ("--entity-type", "topics", "--entity-name", FINANCE_COMMANDS)
    kafka = ("exec", "--no-TTY", "--env", "KAFKA_OPTS=", "kafka", *alter, *topic)
    deployment.compose(*kafka, "--add-config", "compression.type=zstd")
    try:
        produce(make_producer(deployment.kafka("back-office")), FINANCE_COMMANDS, [(b"nobody", b"{}")] * 50)
    finally:
        deployment.compose(*kafka, "--delete-config", "compression.type")


@pytest.mark.parametrize(("user", "topic"), [("ad-delivery", SPEND_EVENTS), ("back-office", FINANCE_COMMANDS)])
def test_transactional_ids_begin_with_the_name_of_their_user(deployment: Deployment, user: str, topic: str) -> None:
    producer = make_producer(deployment.kafka(user), transactional_id=f"{user}-1")
    producer.init_transactions(_SECONDS)
    producer.begin_transaction()
    produce(producer, topic, [(b"nobody", b"{}")])
    producer.commit_transaction(_SECONDS)

    with pytest.raises(KafkaException, match="TRANSACTIONAL_ID_AUTHORIZATION_FAILED"):
        make_producer(deployment.kafka(user), transactional_id="somebody-1").init_transactions(_SECONDS)


def test_the_subscriber_in_the_documentation_receives_pauses(deployment: Deployment, tmp_path: Path) -> None:
    _wait_for(lambda: '"the first pause"' in deployment.compose("logs", "traffic"))
    program = tmp_path / "subscriber.py"
    program.write_text(deployment.as_here(documented("python")))
    with subprocess.Popen([sys.executable, program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        process.kill()
    assert re.fullmatch(r"(ad_account|campaign)/\S+ (delivers|pauses)\n", said)


def test_the_command_line_in_the_documentation_shows_signals(deployment: Deployment) -> None:
    said = deployment.shell(deployment.as_here(documented("sh")))
    assert len(re.findall(r'^(?:ad_account|campaign)/\S+\t\{"entity":', said, re.MULTILINE)) == 2


def documented(language: str) -> str:
    """Return the first block in this language in the section on subscribers."""
    section = (ROOT / "docs" / "kafka.md").read_text().partition("## Subscribers")[2]
    return section.partition(f"```{language}\n")[2].partition("```")[0]


async def test_kafka_refuses_a_wrong_password(deployment: Deployment) -> None:
    with pytest.raises((BadSettingError, CannotGoOnError), match="password"):
        await create_producer(deployment.kafka("back-office", kafka_password="wrong", kafka_password_file=None))


@pytest.mark.parametrize("service", [*CONTAINERS, *SERVERS])
def test_containers_are_confined(deployment: Deployment, service: str) -> None:
    container = deployment.inspect(service)
    host = container["HostConfig"]
    assert container["State"]["Health"]["Status"] == "healthy"
    assert container["Config"]["User"] not in ("", "0", "root")
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert not host["Privileged"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["Memory"] > 0
    assert host["PidsLimit"] > 0
    assert not [each for each in container["Config"]["Env"] if "PASSWORD=" in each or "TOKEN=" in each]


def test_the_image_has_no_program_to_change_users_or_install_packages(deployment: Deployment) -> None:
    find = "find / -xdev -type f '(' -perm /6000 -o -name 'pip*' -perm /111 ')' 2>/dev/null; true"
    assert deployment.compose("exec", "--no-TTY", "api", "sh", "-c", find) == ""


def test_only_the_api_and_kafka_are_published_and_only_on_this_machine(deployment: Deployment) -> None:
    published = {
        (service, binding["HostIp"], int(binding["HostPort"]))
        for service in (*CONTAINERS, *SERVERS)
        for bindings in deployment.inspect(service)["NetworkSettings"]["Ports"].values()
        for binding in bindings or ()
    }
    assert published == {
        ("api", "127.0.0.1", deployment.http_port),
        ("kafka", "127.0.0.1", deployment.kafka_port),
    }


def test_metrics_and_health_have_their_own_port(deployment: Deployment, token: str) -> None:
    assert deployment.read("/metrics", token).status_code == httpx.codes.NOT_FOUND
    for service in CONTAINERS:
        ask = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8081/{}').read().decode())"
        python = ("exec", "--no-TTY", service, "python", "-c")
        assert "python_info" in deployment.compose(*python, ask.format("metrics"))
        assert '"status"' in deployment.compose(*python, ask.format("readyz"))


def test_postgresql_is_reached_over_tls_if_its_image_supports_it(deployment: Deployment) -> None:
    postgres = ("exec", "--no-TTY", "postgres")
    can = "openssl" in deployment.compose(*postgres, "pg_config", "--configure")
    secured = "SELECT DISTINCT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE client_addr IS NOT NULL"
    answer = deployment.compose(*postgres, "psql", "--dbname", "drawdown", "--tuples-only", "--command", secured)
    assert answer.split() == ["t" if can else "f"]


def test_a_killed_service_restarts(deployment: Deployment, token: str) -> None:
    before = deployment.inspect("allocation")["RestartCount"]
    deployment.kill("allocation")
    _wait_for(lambda: deployment.inspect("allocation")["RestartCount"] > before)
    gross = deployment.gross(token)
    _wait_for(lambda: deployment.gross(token) > gross)


@pytest.mark.timeout(300)
def test_the_system_withstands_the_quick_security_checks(deployment: Deployment) -> None:
    assert "NOT TRIED" not in deployment.attack("--quick")


def test_services_stop_in_time_and_the_ledger_survives_down_and_up(deployment: Deployment, token: str) -> None:
    deployment.compose("stop", "traffic")
    gross = deployment.gross(token)
    began = time.monotonic()
    deployment.compose("stop", *CONTAINERS)
    assert time.monotonic() - began < _GRACE_SECONDS + 5
    for service in CONTAINERS:
        code = deployment.inspect(service)["State"]["ExitCode"]
        assert code == 0, f"{service}: {code}\n{deployment.compose('logs', '--tail', '20', service)}"

    deployment.make("down")
    deployment.make("up", "TRAFFIC=off")

    assert deployment.gross(token) >= gross > 0
    assert "No difference" in deployment.compose("run", "--rm", "audit", "verify")


def _wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, f"not so within {seconds:.0f} s"
        time.sleep(_POLL_SECONDS)
