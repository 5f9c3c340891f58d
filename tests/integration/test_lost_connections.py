"""The errors that count as "the database is unavailable": lost connections, but no error of our own."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    NotLeaderForPartitionError,
    TopicAuthorizationFailedError,
)

from shared.runtime.kafka import is_broker_unavailable
from shared.runtime.postgres import connect, connection_options, is_lost
from shared.runtime.settings import BadSettingError, Settings


@pytest.fixture
async def connection(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(settings.database_url)
    yield connection
    connection.terminate()


async def raised_by(action: Callable[[], Awaitable[Any]]) -> BaseException:
    try:
        await action()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


async def test_a_value_that_fits_no_column_does_not_count_as_a_lost_database(connection: asyncpg.Connection) -> None:
    error = await raised_by(lambda: connection.execute("SELECT $1::smallint", 10**9))
    assert isinstance(error, asyncpg.DataError | asyncpg.InterfaceError)
    assert not is_lost(error)


async def test_a_wrong_statement_does_not_count_as_a_lost_database(connection: asyncpg.Connection) -> None:
    for statement in ("SELEKT", "SELECT 1/0", "SELECT * FROM nowhere"):
        error = await raised_by(lambda statement=statement: connection.execute(statement))  # type: ignore[misc]
        assert not is_lost(error), statement


async def test_a_connection_used_twice_at_once_does_not_count_as_a_lost_database(
    connection: asyncpg.Connection,
) -> None:
    first = asyncio.create_task(connection.execute("SELECT pg_sleep(0.2)"))
    await asyncio.sleep(0)
    error = await raised_by(lambda: connection.execute("SELECT 1"))
    await first
    assert isinstance(error, asyncpg.InterfaceError)
    assert not is_lost(error)


async def test_a_session_ended_by_the_server_counts_as_lost(settings: Settings, connection: asyncpg.Connection) -> None:
    admin = await asyncpg.connect(settings.database_url)
    waiting = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
    while not await admin.fetchval("SELECT pg_terminate_backend($1)", connection.get_server_pid()):
        pass
    assert is_lost(await raised_by(lambda: waiting))
    assert is_lost(await raised_by(lambda: connection.execute("SELECT 1")))
    await admin.close()


async def test_a_connection_closed_by_the_client_counts_as_lost(connection: asyncpg.Connection) -> None:
    connection.terminate()
    assert is_lost(await raised_by(lambda: connection.execute("SELECT 1")))


async def test_a_closed_pool_counts_as_lost(settings: Settings) -> None:
    pool = await asyncpg.create_pool(settings.database_url, min_size=1, max_size=1)
    await pool.close()
    assert is_lost(await raised_by(lambda: pool.fetch("SELECT 1")))


async def test_an_unused_port_counts_as_lost(settings: Settings) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"postgresql://postgres@localhost:{unused.getsockname()[1]}/postgres"
        assert is_lost(await raised_by(lambda: asyncpg.connect(url)))


async def test_an_invalid_connection_setting_is_a_bad_setting_at_once(settings: Settings) -> None:
    url = f"{settings.database_url}?target_session_attrs=perhaps"
    with pytest.raises(BadSettingError, match="DRAWDOWN_DATABASE_URL"):
        await connect(settings.model_copy(update={"database_url": url}), "drawdown_api", "test")


def test_a_missing_password_file_is_a_bad_setting(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.touch()
    settings = Settings(database_url="postgresql://someone@127.0.0.1:1/drawdown", database_password_file=file)
    file.unlink()
    with pytest.raises(BadSettingError, match="DRAWDOWN_DATABASE_PASSWORD_FILE"):
        connection_options(settings)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (socket.gaierror(-2, "unknown name"), True),
        (OSError(errno.EHOSTUNREACH, "no route"), True),
        (OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 1), [Errno 111] …"), True),
        (FileNotFoundError(errno.ENOENT, "no such file"), False),
        (PermissionError(errno.EACCES, "denied"), False),
        (OSError(errno.ENOSPC, "no space"), False),
        (asyncpg.ClientConfigurationError("wrong"), False),
        (asyncpg.UnsupportedClientFeatureError("wrong"), False),
        (asyncpg.ProtocolError("out of step"), False),
        (ValueError(), False),
        (KeyError("a typing mistake"), False),
    ],
)
def test_each_other_error_is_classified(error: BaseException, lost: bool) -> None:
    assert is_lost(error) == lost


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (KafkaConnectionError(), True),
        (KafkaTimeoutError(), True),
        (NotLeaderForPartitionError(), True),
        (MessageSizeTooLargeError(), False),
        (TopicAuthorizationFailedError(), False),
        (ValueError(), False),
    ],
)
def test_an_unavailable_broker_is_distinguished_from_a_wrong_request(error: BaseException, away: bool) -> None:
    assert is_broker_unavailable(error) == away
