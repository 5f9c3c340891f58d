"""The system under attack: where it is, its secrets, its containers, and what their logins may do from within."""

import asyncio
import json
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from drawdown.deployment.tokens import KEY_SET_FILE, SIGNING_KEY_FILE
from shared.runtime.settings import Settings
from tests.integration.tokens import Issuer
from tests.servers import LIMITS

ROOT = Path(__file__).parents[2]
INSIDE = (Path(__file__).parent / "inside.py").read_text()
SERVICES = ("allocation", "balance", "incentives", "signals", "api")
SERVERS = ("kafka", "postgres")
Mode = Literal["read", "try", "keep", "connect", "log in", "flood"]
_ASKED_AGAIN = 20
_PARTS_ON_A_LINE = 2_000
_LINE_BYTES = 2**24


class NoTargetError(Exception):
    """There is no system here that could be attacked: the text says what to do."""


@dataclass(frozen=True)
class Answer:
    """What PostgreSQL answered to a statement: its SQLSTATE (empty where it did it) and its words or rows."""

    state: str
    text: str
    rows: list[list[Any]]


@dataclass
class Target:
    """One deployment of `make up`."""

    project: str
    http_port: int
    kafka_port: int
    secrets: Path
    shards: int = 4
    prefix: str = field(default_factory=lambda: f"sec-{secrets.token_hex(3)}")
    _issuer: Issuer | None = None
    _inside: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)

    @classmethod
    def of_environment(cls) -> "Target":
        """The one that `make up` starts in this environment."""
        return cls(
            os.environ.get("COMPOSE_PROJECT_NAME") or "drawdown",
            int(os.environ.get("DRAWDOWN_HTTP_PORT") or 8080),
            int(os.environ.get("DRAWDOWN_KAFKA_PORT") or 9092),
            Path(os.environ.get("DRAWDOWN_SECRETS_DIR") or ROOT / "deploy" / "secrets").absolute(),
        )

    @property
    def issuer(self) -> Issuer:
        """Signs tokens with this deployment's key. Raises NoTargetError where there is none."""
        if self._issuer is None:
            self._issuer = _read_issuer(self.secrets / "api")
        return self._issuer

    def token(self, role: str = "admin", centers: Sequence[str] | str = "*", subject: str | None = None) -> str:
        """A good token; without a subject, of somebody new, whom no rate limit knows yet."""
        scope = centers if isinstance(centers, str) else list(centers)
        return self.issuer.token(sub=subject or f"sec-{secrets.token_hex(4)}", role=role, business_centers=scope)

    def client(self, **options: Any) -> httpx.AsyncClient:
        """A client of its API."""
        url = f"http://127.0.0.1:{self.http_port}"
        return httpx.AsyncClient(
            base_url=url, trust_env=False, limits=LIMITS, **{"timeout": 30, "verify": False, **options}
        )

    async def ask(self, method: str, path: str, token: str | None = None, **options: Any) -> httpx.Response:
        """Ask the API once; again where it says that it was asked too often."""
        headers = {**({"Authorization": f"Bearer {token}"} if token else {}), **options.pop("headers", {})}
        async with self.client() as client:
            for _ in range(_ASKED_AGAIN):
                answer = await client.request(method, path, headers=headers, **options)
                if answer.status_code != httpx.codes.TOO_MANY_REQUESTS:
                    break
                await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))
        return answer

    def kafka(self, username: str, **overrides: Any) -> Settings:
        """How a user reaches Kafka from this machine."""
        values: dict[str, Any] = {
            "kafka_bootstrap_servers": f"localhost:{self.kafka_port}",
            "kafka_security": "sasl_ssl",
            "kafka_ca_file": self.secrets / "tls" / "ca.pem",
            "kafka_username": username,
            "kafka_password_file": self.secrets / "kafka" / username,
        }
        return Settings(**{**values, **overrides})

    async def compose(self, *arguments: str, given: str = "", expected: tuple[int, ...] = (0,)) -> str:
        """What `docker compose` prints. Raises NoTargetError where it fails."""
        return await self._run(*self._compose(*arguments), given=given, expected=expected)

    async def inspect(self, service: str) -> dict[str, Any]:
        """What Docker knows of a service's container."""
        labels = {"project": self.project, "service": service, "oneoff": "False"}
        filters = [f"--filter=label=com.docker.compose.{name}={value}" for name, value in labels.items()]
        container = (await self._run("docker", "ps", "--all", "--quiet", *filters)).strip()
        if not container:
            raise NoTargetError(f"no container of {service} in project {self.project}: start one with `make up`")
        return dict(json.loads(await self._run("docker", "inspect", container))[0])

    async def memory_mib(self, service: str) -> tuple[float, float]:
        """What the service's process has in memory now, and the most that it ever had."""
        look = "cat /proc/1/task/1/children /proc/1/status; cat /proc/$(cut -d' ' -f1 /proc/1/task/1/children)/status"
        said = await self.compose("exec", "--no-TTY", service, "sh", "-c", look)
        status = said.rpartition("Name:")[2]  # The last is the child of init, the service itself.
        kib = {name: int(re.findall(rf"{name}:\s+(\d+)", status)[0]) for name in ("VmRSS", "VmHWM")}
        return kib["VmRSS"] / 1024, kib["VmHWM"] / 1024

    async def sql(self, service: str, statements: Sequence[str], mode: Mode = "read") -> list[Answer]:
        """Let a service's own login say these to PostgreSQL, from its own container; all but `keep` is undone.

        One process for each login stays there until `close`, because it is asked often.

        Args:
            service: whose login; `audit` is the auditor's.
            statements: each on its own. `connect` takes databases, `log in` users, `flood` how many connections.
            mode: `read` returns rows, `try` does not, `keep` commits.

        Raises:
            NoTargetError: the container has ended.

        """
        if service not in self._inside:
            self._inside[service] = await self._start(*self._compose(*_enter(service), "-c", INSIDE))
        process = self._inside[service]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"mode": mode, "statements": list(statements)}).encode() + b"\n")
        line = await process.stdout.readline()
        if not line:
            del self._inside[service]
            raise NoTargetError(f"nothing runs in the container of {service}")
        return [Answer(*each) for each in json.loads(line)]

    async def rows(self, statement: str) -> list[list[Any]]:
        """The rows of one statement, as the API's login reads them, its values as text.

        Raises NoTargetError where it is refused.
        """
        (answer,) = await self.sql("api", [statement])
        if answer.state:
            raise NoTargetError(f"the API cannot read: {answer.state} {answer.text}")
        return answer.rows

    async def close(self) -> None:
        """End what was started within containers."""
        for process in self._inside.values():
            if process.stdin is not None:
                process.stdin.close()
            await process.wait()
        self._inside.clear()

    def _compose(self, *arguments: str) -> tuple[str, ...]:
        files = ("--file", str(ROOT / "deploy" / "compose.yaml"), "--profile", "*")
        return ("docker", "compose", *files, *arguments)

    async def _start(self, *command: str) -> asyncio.subprocess.Process:
        environment = {
            **os.environ,
            "COMPOSE_PROJECT_NAME": self.project,
            "DRAWDOWN_HTTP_PORT": str(self.http_port),
            "DRAWDOWN_KAFKA_PORT": str(self.kafka_port),
            "DRAWDOWN_SECRETS_DIR": str(self.secrets),
        }
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            *command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, limit=_LINE_BYTES
        )

    async def _run(self, *command: str, given: str = "", expected: tuple[int, ...] = (0,)) -> str:
        process = await self._start(*command)
        said, complained = await process.communicate(given.encode())
        if process.returncode not in expected:
            shown = " ".join(part for part in command if len(part) < _PARTS_ON_A_LINE)
            raise NoTargetError(f"{shown} ended with {process.returncode}: {complained.decode()[-500:]}")
        return said.decode()


def _enter(service: str) -> tuple[str, ...]:
    """How `docker compose` starts Python beside a service; the auditor is given a container of its own."""
    if service == "audit":
        return ("run", "--rm", "--no-TTY", "--no-deps", "--quiet-pull", "--entrypoint", "python", "audit")
    return ("exec", "--no-TTY", service, "python")


def _read_issuer(directory: Path) -> Issuer:
    try:
        key = load_pem_private_key((directory / SIGNING_KEY_FILE).read_bytes(), None)
        key_id = json.loads((directory / KEY_SET_FILE).read_text())["keys"][0]["kid"]
    except OSError as error:
        raise NoTargetError(
            f"{error.filename}: {error.strerror}: the secrets of `make up` are needed (DRAWDOWN_SECRETS_DIR)"
        ) from None
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return Issuer(key, key_id, directory / KEY_SET_FILE)
