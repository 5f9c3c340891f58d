"""Fixtures: a PostgreSQL and a whole system for the session, a database and a broker for a test."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shared.runtime.embedded import EmbeddedKafka, EmbeddedPostgres
from shared.runtime.migrate import migrate
from shared.runtime.settings import Settings
from tests.servers import (
    RunningSystem,
    embedded_settings,
    free_ports,
    fresh_database,
    reachable_directory,
    running_system,
)


@pytest.fixture(scope="session", autouse=True)
def no_settings_from_outside() -> None:
    """Tests say themselves what they set."""
    for name in [name for name in os.environ if name.startswith("DRAWDOWN_")]:
        del os.environ[name]


@pytest.fixture(scope="session")
async def postgres() -> AsyncIterator[EmbeddedPostgres]:
    """A running PostgreSQL; `.url` is its superuser's URL."""
    with reachable_directory() as directory:
        server = EmbeddedPostgres(directory, free_ports(1))
        await server.start()
        yield server
        await server.stop()


@pytest.fixture
def reachable_path() -> Iterator[Path]:
    """A directory like `tmp_path`, but one that the embedded PostgreSQL's user can reach when root runs the tests."""
    with reachable_directory() as directory:
        yield directory


@pytest.fixture
async def empty_database_url(postgres: EmbeddedPostgres) -> AsyncIterator[str]:
    """A new and empty database."""
    async with fresh_database(postgres.url) as url:
        yield url


@pytest.fixture
async def database_url(empty_database_url: str) -> str:
    """A new database with the schema and 4 shards."""
    await migrate(Settings(database_url=empty_database_url))
    return empty_database_url


@pytest.fixture
async def kafka(tmp_path: Path) -> AsyncIterator[EmbeddedKafka]:
    """A new and empty broker; `.url` is its bootstrap server."""
    broker = EmbeddedKafka(tmp_path, free_ports(1))
    await broker.start()
    yield broker
    await broker.stop()


@pytest.fixture
def settings(database_url: str, kafka: EmbeddedKafka, tmp_path: Path) -> Settings:
    """Settings of a process that uses a database and a broker of this test's own. The topics do not exist yet."""
    return embedded_settings(
        tmp_path, database_url=database_url, kafka_bootstrap_servers=kafka.url, kafka_idempotence=False
    )


@pytest.fixture(scope="session")
async def system() -> AsyncIterator[RunningSystem]:
    """The whole system, shared by the session: a test uses Business Centers of its own."""
    async with running_system() as running:
        yield running
