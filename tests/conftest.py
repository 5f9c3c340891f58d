"""Fixtures: a PostgreSQL for the session, a whole system for a module, a database and a broker for a test.

`--servers` selects the kind of servers. A test without a mark runs on both kinds.
"""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from drawdown.deployment.migrate import migrate
from shared.runtime.settings import Settings
from tests import servers
from tests.containers import ContainerServers, problem_of_docker
from tests.servers import (
    Broker,
    Postgres,
    RunningSystem,
    fresh_database,
    reachable_directory,
    running_system,
    settings_with,
)

UNIT_TESTS = Path(__file__).parent / "unit"
QUICK_TESTS = (UNIT_TESTS, Path(__file__).parent / "acceptance")
LEFT_OUT = pytest.StashKey[dict[str, int]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--servers",
        choices=("embedded", "containers"),
        default="embedded",
        help="which servers the tests use; in containers only the tests that use any are run",
    )
    parser.addoption(
        "--part",
        choices=("all", "quick", "slow", "together", "alone"),
        default="all",
        help="quick: unit tests and scenarios; slow: all others, but not those that judge times; together: quick and"
        " slow ones; alone: those that judge times, which need the machine for themselves",
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.getoption("servers") == "embedded" or session.config.getoption("collectonly"):
        return
    problem = problem_of_docker()
    if problem:
        pytest.exit(f"no Docker daemon answers, so there are no containers: {problem}", returncode=1)
    servers.choose(ContainerServers())


def pytest_unconfigure() -> None:
    servers.chosen.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that do not fit this run's servers, and count them."""
    kind, part = config.getoption("servers"), config.getoption("part")
    reasons = [_why_not(item, kind) or _why_not_now(item, part) for item in items]
    config.stash[LEFT_OUT] = {why: reasons.count(why) for why in dict.fromkeys(reasons) if why}
    config.hook.pytest_deselected(items=[item for item, why in zip(items, reasons, strict=True) if why])
    items[:] = [item for item, why in zip(items, reasons, strict=True) if not why]


def _why_not(item: pytest.Item, kind: str) -> str:
    if kind == "embedded":
        return "need containers" if item.get_closest_marker("containers") else ""
    if item.get_closest_marker("embedded"):
        return "are about the embedded servers"
    if item.path.is_relative_to(UNIT_TESTS):
        return "use no servers"
    return ""


def _why_not_now(item: pytest.Item, part: str) -> str:
    if item.get_closest_marker("alone"):
        return "" if part in ("all", "alone") else "judge times"
    is_quick = any(map(item.path.is_relative_to, QUICK_TESTS))
    fitting = ("all", "together", "quick" if is_quick else "slow")
    return "" if part in fitting else "are of another part"


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Pass if all chosen tests were deselected because of the servers."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.stash.get(LEFT_OUT, {}):
        session.exitstatus = pytest.ExitCode.OK


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left_out = [f"{count} {why}" for why, count in config.stash.get(LEFT_OUT, {}).items()]
    also = f"; left out: {', '.join(left_out)}" if left_out else ""
    terminalreporter.write_line(f"servers: {servers.chosen.name}{also}")


@pytest.fixture(scope="session", autouse=True)
def no_settings_from_outside() -> None:
    """Remove our variables from the environment, so that tests depend only on what they set."""
    for name in [name for name in os.environ if name.startswith("DRAWDOWN_")]:
        del os.environ[name]


@pytest.fixture(scope="session")
async def postgres() -> AsyncIterator[Postgres]:
    """A running PostgreSQL. Its `url` is the superuser's."""
    with reachable_directory() as directory:
        server = servers.chosen.postgres(directory)
        await server.start()
        yield server
        await server.stop()


@pytest.fixture
def reachable_path() -> Iterator[Path]:
    """A directory like `tmp_path`, but one that the embedded PostgreSQL's user can reach when root runs the tests."""
    with reachable_directory() as directory:
        yield directory


@pytest.fixture
async def empty_database_url(postgres: Postgres) -> AsyncIterator[str]:
    """The URL of a new and empty database."""
    async with fresh_database(postgres.url) as url:
        yield url


@pytest.fixture
async def database_url(empty_database_url: str) -> str:
    """The URL of a new database with the schema and 4 shards."""
    await migrate(Settings(database_url=empty_database_url))
    return empty_database_url


@pytest.fixture
async def kafka(tmp_path: Path) -> AsyncIterator[Broker]:
    """An empty broker. Its `url` is the bootstrap server."""
    async with servers.chosen.broker(tmp_path) as broker:
        yield broker


@pytest.fixture
def settings(database_url: str, kafka: Broker, tmp_path: Path) -> Settings:
    """Settings with a database and a broker for this test alone. The topics do not exist yet."""
    return settings_with(database_url, kafka, tmp_path)


@pytest.fixture(scope="module")
async def system() -> AsyncIterator[RunningSystem]:
    """The whole system, shared by the tests of a module, which use different Business Centers.

    It is not shared by the session, because an idle system takes a quarter of the machine from all other tests.
    """
    async with running_system() as running:
        yield running
