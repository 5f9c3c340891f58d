"""The system under attack: its addresses, its secrets, its containers, and SQL from within those."""

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
SERVERS = ("kafka", "postgres")
Mode = Literal["read", "try", "keep", "connect", "log in", "flood"]
_ASKED_AGAIN = 20
_PARTS_ON_A_LINE = 2_000
_LINE_BYTES = 2**24


class NoTargetError(Exception):
    """There is no system to attack. The text says what to do."""


@dataclass(frozen=True)
class Answer:
    """PostgreSQL's answer to a statement: its SQLSTATE, which is empty after success, and its message or rows."""

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
        """Return the deployment that `make up` starts with this environment."""
        return cls(
            os.environ.get("COMPOSE_PROJECT_NAME") or "drawdown",
            int(os.environ.get("DRAWDOWN_HTTP_PORT") or 8080),
            int(os.environ.get("DRAWDOWN_KAFKA_PORT") or 9092),
            Path(os.environ.get("DRAWDOWN_SECRETS_DIR") or ROOT / "deploy" / "secrets").absolute(),
        )

    @property
    def issuer(self) -> Issuer:
        """Return an issuer that signs with this deployment's key. Raises NoTargetError if there is no key."""
        if self._issuer is None:
            self._issuer = _read_issuer(self.secrets / "api")
        return self._issuer

    def token(self, role: str = "admin", centers: Sequence[str] | str = "*", subject: str | None = None) -> str:
        """Return a valid token. Without a subject it is for a new one, whom no rate limit has counted yet."""
        scope = centers if isinstance(centers, str) else list(centers)
        return self.issuer.token(sub=subject or f"sec-{secrets.token_hex(4)}", role=role, business_centers=scope)

    def client(self, **options: Any) -> httpx.AsyncClient:
        """Return a client of the API."""
        url = f"http://127.0.0.1:{self.http_port}"
        return httpx.AsyncClient(
            base_url=url, trust_env=False, limits=LIMITS, **{"timeout": 30, "verify": False, **options}
        )

    async def ask(self, method: str, path: str, token: str | None = None, **options: Any) -> httpx.Response:
        """Send a request to the API, and repeat it only after 429."""
        headers = {**({"Authorization": f"Bearer {token}"} if token else {}), **options.pop("headers", {})}
        async with self.client() as client:
            for _ in range(_ASKED_AGAIN):
                answer = await client.request(method, path, headers=headers, **options)
                if answer.status_code != httpx.codes.TOO_MANY_REQUESTS:
                    break
                await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))
        return answer

    def kafka(self, username: str, **overrides: Any) -> Settings:
        """Return the arguments with which a user connects to Kafka from this machine."""
        values: dict[str, Any] = {
            "kafka_bootstrap_servers": f"localhost:{self.kafka_port}",
            "kafka_security": "sasl_ssl",
            "kafka_ca_file": self.secrets / "tls" / "ca.pem",
            "kafka_username": username,
            "kafka_password_file": self.secrets / "kafka" / username,
        }
        return Settings(**{**values, **overrides})

    async def compose(self, *arguments: str, given: str = "", expected: tuple[int, ...] = (0,)) -> str:
        """Run `docker compose`; return its output. Raises NoTargetError if it fails."""
        return await self._run(*self._compose(*arguments), given=given, expected=expected)

    async def inspect(self, service: str) -> dict[str, Any]:
        """Return Docker's description of a service's container."""
        labels = {"project": self.project, "service": service, "oneoff": "False"}
        filters = [f"--filter=label=com.docker.compose.{name}={value}" for name, value in labels.items()]
        container = (await self._run("docker", "ps", "--all", "--quiet", *filters)).strip()
        if not container:
            raise NoTargetError(f"no container of {service} in project {self.project}: start one with `make up`")
        return dict(json.loads(await self._run("docker", "inspect", container))[0])

    async def memory_mib(self, service: str) -> tuple[float, float]:
        """Return the present and the peak memory of the service's process, in MiB."""
        look = "cat /proc/1/task/1/children /proc/1/status; cat /proc/$(cut -d' ' -f1 /proc/1/task/1/children)/status"
        said = await self.compose("exec", "--no-TTY", service, "sh", "-c", look)
        status = said.rpartition("Name:")[2]  # The last process is the child of init, which is the service itself.
        kib = {name: int(re.findall(rf"{name}:\s+(\d+)", status)[0]) for name in ("VmRSS", "VmHWM")}
        return kib["VmRSS"] / 1024, kib["VmHWM"] / 1024

    async def sql(self, service: str, statements: Sequence[str], mode: Mode = "read") -> list[Answer]:
        """Execute SQL with a service's own login, from its own container. All modes but `keep` roll back.

        One process for each login runs there until `close`, because there are many calls.

        Args:
            service: the service whose login to use; `audit` is the auditor's.
            statements: executed one by one. For `connect` they are databases, for `log in` users, and for `flood` the
                number of connections.
            mode: `read` returns rows, `try` does not, and `keep` commits.

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
        """Return the rows of one statement with the API's login, with values as text.

        Raises NoTargetError if the statement is refused.
        """
        (answer,) = await self.sql("api", [statement])
        if answer.state:
            raise NoTargetError(f"the API cannot read: {answer.state} {answer.text}")
        return answer.rows

    async def close(self) -> None:
        """End the processes that were started in containers."""
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
    """Return `docker compose`'s arguments for Python in a service's container, or in a new one for the auditor."""
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
