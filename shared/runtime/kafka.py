"""Kafka: topic names, the partition of a key, and clients that authenticate and do not lose records."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    BrokerNotAvailableError,
    IncompatibleBrokerVersion,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    KafkaUnavailableError,
    NoError,
    ProducerClosed,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
    for_code,
)
from aiokafka.partitioner import murmur2
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.transaction import InitProducerIdRequest

from shared.runtime.errors import CannotGoOnError
from shared.runtime.retries import with_retries
from shared.runtime.settings import BadSettingError, Settings
from shared.runtime.stopping import CLOSE_SECONDS

__all__ = [
    "CONSUMED",
    "DELIVERY_SIGNALS",
    "FINANCE_COMMANDS",
    "FINANCE_OUTCOMES",
    "SPEND_EVENTS",
    "TOPICS",
    "UNAVAILABLE",
    "connection_arguments",
    "create_producer",
    "is_broker_unavailable",
    "murmur2_partition",
    "start_client",
    "stop_client",
    "until_kafka_answers",
    "with_retries",
]

SPEND_EVENTS = "spend.events"
FINANCE_COMMANDS = "finance.commands"
FINANCE_OUTCOMES = "finance.outcomes"
DELIVERY_SIGNALS = "delivery.signals"
TOPICS = (SPEND_EVENTS, FINANCE_COMMANDS, FINANCE_OUTCOMES, DELIVERY_SIGNALS)
# The topics that allocation reads. The incarnation in the ledger lists the topics' ids in this order.
CONSUMED = (SPEND_EVENTS, FINANCE_COMMANDS)

UNAVAILABLE = (KafkaError, OSError, TimeoutError)
_PROBE_TIMEOUT_MS = 5_000

Client = TypeVar("Client", AIOKafkaAdminClient, AIOKafkaConsumer, AIOKafkaProducer)
T = TypeVar("T")


def is_broker_unavailable(error: BaseException) -> bool:
    """Return whether a running client's error means that the broker is temporarily unavailable, not a wrong request."""
    unavailable = (KafkaTimeoutError, KafkaUnavailableError, BrokerNotAvailableError, ProducerClosed)
    return isinstance(error, unavailable) or (isinstance(error, KafkaError) and error.retriable)


def murmur2_partition(key: bytes, partitions: int) -> int:
    """Return the partition that Kafka's Java client chooses for a key: `toPositive(murmur2(key)) % partitions`."""
    positive: int = murmur2(key) & 0x7FFFFFFF
    return positive % partitions


def connection_arguments(settings: Settings) -> dict[str, Any]:
    """Return the arguments with which every client finds the cluster, verifies it and authenticates.

    Raises BadSettingError if a name, a password or a file of certificates is missing or unusable.
    """
    arguments: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_bootstrap_servers,
        "security_protocol": settings.kafka_security.upper(),
    }
    if settings.kafka_security in ("ssl", "sasl_ssl"):
        arguments["ssl_context"] = _ssl_context(settings)
    if settings.kafka_security in ("sasl_plaintext", "sasl_ssl"):
        arguments["sasl_mechanism"] = settings.kafka_sasl_mechanism
        arguments["sasl_plain_username"] = _username(settings)
        arguments["sasl_plain_password"] = _password(settings)
    return arguments


async def create_producer(settings: Settings, **overrides: Any) -> AIOKafkaProducer:
    """Start a producer with `acks=all`, idempotent if the broker supports that.

    The embedded broker does not; for others `kafka_idempotence` decides. If a broker turns out not to support it, this
    logs a warning and starts a producer that is not idempotent, because an idempotent one would hang. Raises like
    `start_client`.

    Args:
        settings: the address of the broker, and the credentials.
        overrides: any argument of `AIOKafkaProducer`.

    """
    arguments: dict[str, Any] = {
        "acks": "all",
        "enable_idempotence": settings.kafka_idempotence and not settings.kafka_is_embedded,
        **overrides,
    }
    if arguments["enable_idempotence"]:
        arguments["enable_idempotence"] = await until_kafka_answers(settings, lambda: _is_idempotent(settings))
    return await start_client(settings, AIOKafkaProducer, **arguments)


async def _is_idempotent(settings: Settings) -> bool:
    """Ask the first server that answers for a producer id, which is what an idempotent producer needs."""
    arguments = connection_arguments(settings)
    hosts = collect_hosts(arguments.pop("bootstrap_servers"))
    for number, (host, port, _) in enumerate(hosts, 1):
        try:
            connection = await create_conn(host, port, request_timeout_ms=_PROBE_TIMEOUT_MS, **arguments)
        except UNAVAILABLE as lost:
            if number == len(hosts):
                # The clients raise this class; `until_kafka_answers` then looks for the reason.
                raise KafkaConnectionError(str(lost)) from lost
            continue
        try:
            answer = await connection.send(InitProducerIdRequest(None, _PROBE_TIMEOUT_MS))
            error = for_code(answer.error_code)
        except IncompatibleBrokerVersion:
            error = IncompatibleBrokerVersion
        finally:
            connection.close()
        if error is NoError or error.retriable:
            return True
        structlog.get_logger().warning(
            "the broker does not support idempotent producers: a record that is sent again may be stored twice; "
            "set DRAWDOWN_KAFKA_IDEMPOTENCE=false to accept that",
            broker=f"{host}:{port}",
            error=error.__name__,
        )
        return False
    raise AssertionError("unreachable: the last server answers or raises")


async def start_client(settings: Settings, make: Callable[..., Client], **arguments: Any) -> Client:
    """Create a client with the connection that the settings describe, and start it. Waits up to 60 s for a broker.

    Args:
        settings: the address of the broker, and the credentials.
        make: `AIOKafkaProducer`, `AIOKafkaConsumer` or `AIOKafkaAdminClient`.
        arguments: further arguments of `make`.

    Raises:
        BadSettingError: the cluster refuses the credentials, or its certificate is not trusted.
        CannotGoOnError: no server answered within 60 s.

    """
    arguments = {**connection_arguments(settings), **arguments}

    async def attempt() -> Client:
        client = make(**arguments)
        starting = asyncio.ensure_future(client.start())
        try:
            await asyncio.shield(starting)
        except BaseException:
            # If `start` is cancelled midway, aiokafka leaves a connection open that nothing refers to.
            await asyncio.wait({starting}, timeout=CLOSE_SECONDS)
            starting.cancel()
            await stop_client(client)
            raise
        return client

    return await until_kafka_answers(settings, attempt)


async def stop_client(client: Client) -> None:
    """Stop a client and close its connections, including those that it opens afterwards.

    aiokafka reconnects if a stopped client is used, and would leave that connection open.
    """
    stopping = asyncio.ensure_future(client.close() if isinstance(client, AIOKafkaAdminClient) else client.stop())
    try:
        await asyncio.wait({stopping})
    finally:
        # While a server is unavailable, records that have not been sent by now are dropped. And aiokafka hangs if it
        # waits for a task of its own that it cancelled before the task began.
        stopping.cancel()
        _cut_off(client)
    if not stopping.cancelled():
        stopping.result()


class _Closed(dict[Any, Any]):
    """The connections of a stopped client. Closes every connection that is added."""

    def __setitem__(self, name: Any, connection: Any) -> None:
        connection.close()
        super().__setitem__(name, connection)


def _cut_off(client: Client) -> None:
    """Cancel a client's background tasks, and close its connections."""
    inner = client.client if isinstance(client, AIOKafkaProducer) else client._client
    connections, inner._conns = inner._conns, _Closed()
    tasks = [inner._sync_task]
    if isinstance(client, AIOKafkaProducer) and client._sender is not None:
        tasks.append(client._sender.sender_task)
    if isinstance(client, AIOKafkaConsumer) and client._fetcher is not None:
        tasks += [client._fetcher._fetch_task, *client._fetcher._pending_tasks]
    for task in tasks:
        if task is not None:
            task.cancel()
    for connection in connections.values():
        connection.close()
    # Metadata is no longer requested, so release the tasks that wait for it.
    waiting, inner._md_update_fut = inner._md_update_fut, None
    inner.force_metadata_update = _no_metadata
    if waiting is not None and not waiting.done():
        waiting.set_result(False)


def _no_metadata() -> "asyncio.Future[bool]":
    answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    answer.set_result(False)
    return answer


async def until_kafka_answers(settings: Settings, action: Callable[[], Awaitable[T]]) -> T:
    """Retry the action for up to 60 s while Kafka is unavailable; return its result. Raises like `start_client`."""

    async def attempt() -> T:
        try:
            return await action()
        except KafkaConnectionError:  # The clients raise this for every reason.
            await _find_the_reason(settings)
            raise

    where = f"Kafka at {settings.kafka_bootstrap_servers}"
    try:
        return await with_retries(attempt, what=where, errors=UNAVAILABLE)
    except UNAVAILABLE as error:
        raise CannotGoOnError(f"{where} does not answer: {str(error) or type(error).__name__}") from error


async def _find_the_reason(settings: Settings) -> None:
    """Connect once, without retries, and raise the server's reason. Returns if one answers, or none is reachable."""
    arguments = connection_arguments(settings)
    for host, port, _ in collect_hosts(arguments.pop("bootstrap_servers")):
        server = f"Kafka at {host}:{port}"
        try:
            connection = await create_conn(host, port, request_timeout_ms=_PROBE_TIMEOUT_MS, **arguments)
            try:
                await connection.send(MetadataRequest([]))
            finally:
                connection.close()
        except ssl.SSLCertVerificationError as error:
            raise BadSettingError(
                f"DRAWDOWN_KAFKA_CA_FILE: the certificate of {server} is not trusted: {error.verify_message}"
            ) from error
        except SaslAuthenticationFailed as error:
            raise BadSettingError(
                f"DRAWDOWN_KAFKA_USERNAME: {server} rejects the user {settings.kafka_username!r} or the password"
            ) from error
        except UnsupportedSaslMechanismError as error:
            raise BadSettingError(f"DRAWDOWN_KAFKA_SASL_MECHANISM: {server} offers a different one: {error}") from error
        except (ssl.SSLError, ConnectionResetError, ConnectionAbortedError, KafkaConnectionError) as error:
            # Not conclusive, because a broker that is shutting down does the same. So it is only logged while we wait.
            raise KafkaConnectionError(
                f"{host}:{port} accepts the connection and closes it: does its listener expect "
                f"DRAWDOWN_KAFKA_SECURITY={settings.kafka_security}?"
            ) from error
        except UNAVAILABLE:
            continue


def _ssl_context(settings: Settings) -> ssl.SSLContext:
    """Return a context that trusts the file's authorities, or this machine's, and checks the server's name."""
    try:
        return ssl.create_default_context(cafile=settings.kafka_ca_file)
    except (OSError, ssl.SSLError) as error:
        raise BadSettingError(
            f"DRAWDOWN_KAFKA_CA_FILE: {settings.kafka_ca_file} holds no PEM certificates: {error}"
        ) from error


def _username(settings: Settings) -> str:
    if not settings.kafka_username:
        raise BadSettingError(
            f"DRAWDOWN_KAFKA_USERNAME: needed, because DRAWDOWN_KAFKA_SECURITY is {settings.kafka_security}"
        )
    return settings.kafka_username


def _password(settings: Settings) -> str:
    """Return the password in the file, read again for each connection, or the setting's."""
    if settings.kafka_password_file is not None:
        try:
            password = settings.kafka_password_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise BadSettingError(f"DRAWDOWN_KAFKA_PASSWORD_FILE: cannot be read: {error}") from error
    else:
        password = settings.kafka_password or ""
    if not password:
        raise BadSettingError(
            "DRAWDOWN_KAFKA_PASSWORD_FILE: needed (or DRAWDOWN_KAFKA_PASSWORD), "
            f"because DRAWDOWN_KAFKA_SECURITY is {settings.kafka_security}"
        )
    return password
