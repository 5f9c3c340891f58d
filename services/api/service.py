"""The API service: connects, serves HTTP until cancelled, and lets requests in progress finish."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import structlog
import uvicorn

from services.api.access import Access
from services.api.app import create_app
from services.api.context import Context
from services.api.errors import ApiError
from services.api.protocol import HEAD_LIMIT_BYTES, BoundedProtocol
from services.api.waiting import ROLE, STALE_SECONDS, Watcher
from services.api.writers import Writers
from shared.runtime.clock import Clock
from shared.runtime.contact import keep_in_touch_with_broker
from shared.runtime.health import Health
from shared.runtime.kafka import create_producer
from shared.runtime.postgres import create_pool
from shared.runtime.settings import Settings
from shared.runtime.stopping import farewell
from shared.runtime.topics import ensure_topics

# Of the ten seconds that a process has to end: requests have the first seven, and commands that wait longer for their
# outcome are answered before that all the same. A client that does not read its answer is left.
ANSWER_SECONDS = 6.25
GRACE_SECONDS = 7
# Longer than clients keep idle connections (httpx: 5 s): otherwise a request may meet one that is being closed.
KEEP_ALIVE_SECONDS = 15
# A command that the broker does not take soon is refused; it must not be delivered much later. So the producer is not
# idempotent: such a one keeps what it has until the broker takes it, however long. A command that is published twice
# is decided once, by its id.
PRODUCER: Final[dict[str, Any]] = {"request_timeout_ms": 5000, "enable_idempotence": False}
# Beyond what a request waits for: for statements whose cancellation never got through.
STATEMENT_TIMEOUT_SECONDS = 20


async def run(settings: Settings) -> None:
    """Serve HTTP until cancelled.

    Raises OSError when the port is taken, and what the connections raise when a server stays away.
    """
    async with connected(settings) as context, asyncio.TaskGroup() as tasks:
        watching = [tasks.create_task(context.watcher.run()), tasks.create_task(context.writers.run())]
        try:
            await _serve(settings, context)
        finally:
            for task in watching:
                task.cancel()


@contextlib.asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[Context]:
    """The connections of this process, closed at the end."""
    access = Access(settings)
    async with contextlib.AsyncExitStack() as stack:
        pool = await create_pool(
            settings,
            ROLE,
            application_name="drawdown api",
            min_size=2,
            max_size=8,
            statement_timeout_seconds=STATEMENT_TIMEOUT_SECONDS,
        )
        stack.push_async_callback(lambda: farewell(pool.close()))
        await ensure_topics(settings)
        producer = await create_producer(settings, **PRODUCER)
        stack.push_async_callback(lambda: farewell(producer.stop()))
        health = Health()
        keeping = asyncio.create_task(keep_in_touch_with_broker(health.contact("the broker"), producer))
        stack.callback(keeping.cancel)
        watcher = Watcher(settings, pool, health.contact("the database"))
        health.work = lambda: _readiness(watcher)
        yield Context(access, pool, producer, watcher, health, Writers(settings), Clock(settings), settings.shards)


def _readiness(watcher: Watcher) -> tuple[bool, str]:
    if watcher.silence > STALE_SECONDS:
        return False, f"nobody has looked for the outcomes of commands for {watcher.silence:.0f} s"
    return True, "the database and the broker answer"


async def _serve(settings: Settings, context: Context) -> None:
    config = uvicorn.Config(
        create_app(context),
        log_config=None,
        access_log=False,
        http=BoundedProtocol,
        h11_max_incomplete_event_size=HEAD_LIMIT_BYTES,
        ws="none",
        lifespan="off",
        # The rate goes by the address that connects, not by the one that a header claims.
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    server = _Server(config)
    with _listening(settings.http_host, settings.http_port) as listener:
        structlog.get_logger().info("serving HTTP", url=f"http://{settings.http_host}:{settings.http_port}/docs")
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            server.should_exit = True
            ending = ApiError(503, "unavailable", "this process ends: ask again with the same command_id")
            asyncio.get_running_loop().call_later(ANSWER_SECONDS, context.watcher.refuse, ending)
            await serving
            raise


class _Server(uvicorn.Server):
    """Leaves the signals of the process alone: whoever runs the service cancels it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)
