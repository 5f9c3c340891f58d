"""Kafka: the topics, which partition a key belongs to, and clients that are let in and lose nothing."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
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
from shared.runtime.stopping import FAREWELL_SECONDS

__all__ = [
    "AWAY",
    "CONSUMED",
    "DELIVERY_SIGNALS",
    "FINANCE_COMMANDS",
    "FINANCE_OUTCOMES",
    "SPEND_EVENTS",
    "TOPICS",
    "connection_arguments",
    "create_producer",
    "is_broker_away",
    "murmur2_partition",
    "start_client",
    "stop_client",
    "take_readable",
    "until_kafka_answers",
    "with_retries",
]

SPEND_EVENTS = "spend.events"
FINANCE_COMMANDS = "finance.commands"
FINANCE_OUTCOMES = "finance.outcomes"
DELIVERY_SIGNALS = "delivery.signals"
TOPICS = (SPEND_EVENTS, FINANCE_COMMANDS, FINANCE_OUTCOMES, DELIVERY_SIGNALS)
# What allocation reads. In this order an incarnation that the ledger keeps names the topics' ids.
CONSUMED = (SPEND_EVENTS, FINANCE_COMMANDS)

AWAY = (KafkaError, OSError, TimeoutError)
_PROBE_TIMEOUT_MS = 5_000

Client = TypeVar("Client", AIOKafkaAdminClient, AIOKafkaConsumer, AIOKafkaProducer)
T = TypeVar("T")


def is_broker_away(error: BaseException) -> bool:
    """Whether an error of a running client says that the broker is away for now, not that we asked wrongly."""
    away = (KafkaTimeoutError, KafkaUnavailableError, BrokerNotAvailableError, ProducerClosed)
    return isinstance(error, away) or (isinstance(error, KafkaError) and error.retriable)


def murmur2_partition(key: bytes, partitions: int) -> int:
    """The partition that Kafka's Java client gives a key: `toPositive(murmur2(key)) % partitions`."""
    positive: int = murmur2(key) & 0x7FFFFFFF
    return positive % partitions


def connection_arguments(settings: Settings) -> dict[str, Any]:
    """How every client finds the cluster, makes sure that it is the right one, and says who it is.

    Raises BadSettingError where a name, a password or a file with certificates is missing or cannot be used.
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
    """Start a producer that is acknowledged by all replicas in sync, and idempotent where the broker can be.

    The embedded broker cannot; `kafka_idempotence` says it of others. A broker that turns out not to is said so in the
    log, and has a producer that is not: one that waited for it would hang. Raises like `start_client`.

    Args:
        settings: where the broker is and how it is reached.
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
    """Ask the first server that answers for a producer's id, which is what makes a producer idempotent."""
    arguments = connection_arguments(settings)
    hosts = collect_hosts(arguments.pop("bootstrap_servers"))
    for number, (host, port, _) in enumerate(hosts, 1):
        try:
            connection = await create_conn(host, port, request_timeout_ms=_PROBE_TIMEOUT_MS, **arguments)
        except AWAY as away:
            if number == len(hosts):
                raise KafkaConnectionError(str(away)) from away  # As the clients say it: the reason is looked for.
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
            "the broker has no idempotent producers: a record that is sent again may be kept twice; "
            "DRAWDOWN_KAFKA_IDEMPOTENCE=false says that it is so",
            broker=f"{host}:{port}",
            error=error.__name__,
        )
        return False
    raise AssertionError("unreachable: the last server answers or raises")


async def start_client(settings: Settings, make: Callable[..., Client], **arguments: Any) -> Client:
    """Make a client that is connected as the settings say, and start it; one that is away is waited for (60 s).

    Args:
        settings: where the broker is and how it is reached.
        make: `AIOKafkaProducer`, `AIOKafkaConsumer` or `AIOKafkaAdminClient`.
        arguments: of `make`, beside those of the connection.

    Raises:
        BadSettingError: the cluster does not let us in, or is not the one whose certificates we trust.
        CannotGoOnError: no server has answered in that time.

    """
    arguments = {**connection_arguments(settings), **arguments}

    async def attempt() -> Client:
        client = make(**arguments)
        starting = asyncio.ensure_future(client.start())
        try:
            await asyncio.shield(starting)
        except BaseException:
            # Cancelled in the midst of it, aiokafka leaves a connection open that nobody knows of.
            await asyncio.wait({starting}, timeout=FAREWELL_SECONDS)
            starting.cancel()
            await stop_client(client)
            raise
        return client

    return await until_kafka_answers(settings, attempt)


async def stop_client(client: Client) -> None:
    """Stop a client and close its connections, also those that still come.

    aiokafka connects anew for whoever asks over a client that was stopped, and would leave that connection open.
    """
    stopping = asyncio.ensure_future(client.close() if isinstance(client, AIOKafkaAdminClient) else client.stop())
    try:
        await asyncio.wait({stopping})
    finally:
        # Where it waits for a server that is away, what is not sent by now is not. And aiokafka gets no further where
        # it waits for a task of its own that it has cancelled before that began.
        stopping.cancel()
        _cut_off(client)
    if not stopping.cancelled():
        stopping.result()


async def take_readable(consumer: AIOKafkaConsumer, partition: TopicPartition, most: int) -> Sequence[Any]:
    """Take what has come of a topic of signals, at most so many records; a record that cannot be read is passed over.

    It is a stranger's, and holds no signal of ours: ours stand in batches of their own. Raises KafkaError.
    """
    try:
        heaps = await consumer.getmany(partition, timeout_ms=0, max_records=most)
    except KafkaError:
        raise
    except Exception as error:
        offset = await consumer.position(partition)
        structlog.get_logger().warning(
            "passed over a record that cannot be read and is not ours",
            topic=partition.topic,
            partition=partition.partition,
            offset=offset,
            error=repr(error),
        )
        consumer.seek(partition, offset + 1)
        return ()
    return cast("Sequence[Any]", heaps.get(partition, ()))


class _Closed(dict[Any, Any]):
    """The connections of a client that was stopped."""

    def __setitem__(self, name: Any, connection: Any) -> None:
        connection.close()
        super().__setitem__(name, connection)


def _cut_off(client: Client) -> None:
    """End what a client does by itself, and close its connections."""
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
    # Nobody asks for metadata any more: what waits for some ends.
    waiting, inner._md_update_fut = inner._md_update_fut, None
    inner.force_metadata_update = _no_metadata
    if waiting is not None and not waiting.done():
        waiting.set_result(False)


def _no_metadata() -> "asyncio.Future[bool]":
    answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    answer.set_result(False)
    return answer


async def until_kafka_answers(settings: Settings, action: Callable[[], Awaitable[T]]) -> T:
    """Try until no server is away any more, for 60 s. Raises like `start_client`."""

    async def attempt() -> T:
        try:
            return await action()
        except KafkaConnectionError:  # All that the clients say, whatever the reason was.
            await _find_the_reason(settings)
            raise

    where = f"Kafka at {settings.kafka_bootstrap_servers}"
    try:
        return await with_retries(attempt, what=where, errors=AWAY)
    except AWAY as error:
        raise CannotGoOnError(f"{where} does not answer: {str(error) or type(error).__name__}") from error


async def _find_the_reason(settings: Settings) -> None:
    """Raise what a server says to somebody who asks just once; return where one answers or none is there."""
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
                f"DRAWDOWN_KAFKA_CA_FILE: the certificate of {server} is not to be trusted: {error.verify_message}"
            ) from error
        except SaslAuthenticationFailed as error:
            raise BadSettingError(
                f"DRAWDOWN_KAFKA_USERNAME: {server} knows no {settings.kafka_username!r} with this password"
            ) from error
        except UnsupportedSaslMechanismError as error:
            raise BadSettingError(f"DRAWDOWN_KAFKA_SASL_MECHANISM: {server} offers another: {error}") from error
        except (ssl.SSLError, ConnectionResetError, ConnectionAbortedError, KafkaConnectionError) as error:
            # Not conclusive, as a broker that is being stopped does the same: said while we wait, and at the end.
            raise KafkaConnectionError(
                f"{host}:{port} accepts the connection and ends it: is DRAWDOWN_KAFKA_SECURITY, "
                f"{settings.kafka_security}, what its listener wants?"
            ) from error
        except AWAY:
            continue


def _ssl_context(settings: Settings) -> ssl.SSLContext:
    """Trusts the authorities of the file, or those of this machine, and no name but the one we asked for."""
    try:
        return ssl.create_default_context(cafile=settings.kafka_ca_file)
    except (OSError, ssl.SSLError) as error:
        raise BadSettingError(
            f"DRAWDOWN_KAFKA_CA_FILE: {settings.kafka_ca_file} holds no certificates in PEM form: {error}"
        ) from error


def _username(settings: Settings) -> str:
    if not settings.kafka_username:
        raise BadSettingError(
            f"DRAWDOWN_KAFKA_USERNAME: needed, for DRAWDOWN_KAFKA_SECURITY is {settings.kafka_security}"
        )
    return settings.kafka_username


def _password(settings: Settings) -> str:
    """That of the file, read anew at each connection, or that of the setting."""
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
            f"for DRAWDOWN_KAFKA_SECURITY is {settings.kafka_security}"
        )
    return password
