"""The API service: connects, serves HTTP until cancelled, and then lets requests in progress finish."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final

import structlog
import uvicorn

from services.api.app import create_app
from services.api.commands.signing import configured_signer
from services.api.context import Context
from services.api.door.access import Access
from services.api.door.connections import Connections
from services.api.door.errors import ApiError
from services.api.door.protocol import HEAD_LIMIT_BYTES, BoundedProtocol, SharedByConnections
from services.api.watching.growth import watch_growth
from services.api.watching.outcomes import STALE_SECONDS, Watcher
from services.api.watching.read_probe import TableReader
from services.api.watching.writers import Writers
from shared.runtime.clock import Clock
from shared.runtime.health import Health, answering_health
from shared.runtime.kafka import create_producer, stop_client
from shared.runtime.postgres import create_pool
from shared.runtime.reachability import watch_broker_reachability
from shared.runtime.roles import API_ROLE
from shared.runtime.serving import Server
from shared.runtime.settings import Settings
from shared.runtime.stopping import close_within
from shared.runtime.topics import ensure_topics

# Shutdown budget (10 s in total): requests have 7 s to finish. Commands that still wait for their outcomes after 6.25 s
# are answered with an error. Clients that do not read their answers are cut off.
ANSWER_SECONDS = 6.25
GRACE_SECONDS = 7
# Longer than clients keep idle connections (httpx: 5 s). Otherwise a request may meet a connection that is closing.
KEEP_ALIVE_SECONDS = 15
# The length of the queue of connections, and how many of them one pass of the event loop accepts.
QUEUED_AT_MOST = 2_048
ACCEPTED_AT_ONCE = 8
# A command that the broker does not accept soon is refused, and must not be delivered much later. An idempotent
# producer would retry until the broker accepts, so this one is not idempotent. A command that is published twice is
# decided once, by its id.
PRODUCER: Final[dict[str, Any]] = {"request_timeout_ms": 5000, "enable_idempotence": False}
# Longer than a request waits, for statements whose cancellation did not reach the database.
STATEMENT_TIMEOUT_SECONDS = 20
# None of our processes locks a table against reading, except to migrate it.
LOCK_TIMEOUT_SECONDS = 2


async def run(settings: Settings) -> None:
    """Serve HTTP until cancelled.

    Raises OSError if the port is taken, and what the connections raise if a server stays unavailable.
    """
    async with (
        connected(settings) as context,
        answering_health(settings, context.readiness),
        asyncio.TaskGroup() as tasks,
    ):
        watching = [tasks.create_task(context.watcher.run()), tasks.create_task(context.writers.run())]
        watching.append(tasks.create_task(watch_growth(settings)))
        try:
            await _serve(settings, context)
        finally:
            for task in watching:
                task.cancel()


@contextlib.asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[Context]:
    """Yield the connections of this process, and close them at the end."""
    access, signer = Access(settings), configured_signer(settings)
    async with contextlib.AsyncExitStack() as stack:
        pool = await create_pool(
            settings,
            API_ROLE,
            application_name="drawdown api",
            min_size=2,
            max_size=8,
            statement_timeout_seconds=STATEMENT_TIMEOUT_SECONDS,
            lock_timeout_seconds=LOCK_TIMEOUT_SECONDS,
        )
        stack.push_async_callback(lambda: close_within(pool.close()))
        await ensure_topics(settings)
        producer = await create_producer(settings, **PRODUCER)
        stack.push_async_callback(lambda: close_within(stop_client(producer)))
        health = Health()
        keeping = asyncio.create_task(watch_broker_reachability(health.reachability("the broker"), producer))
        stack.callback(keeping.cancel)
        watcher = Watcher(settings, pool, health.reachability("the database"), TableReader(pool))
        health.work = lambda: _readiness(watcher)
        yield Context(
            access, pool, producer, watcher, health, Writers(settings), Clock(settings), settings.shards, signer
        )


def _readiness(watcher: Watcher) -> tuple[bool, str]:
    if watcher.silence > STALE_SECONDS:
        return False, f"the API has not looked for outcomes of commands for {watcher.silence:.0f} s"
    can_read, sentence = watcher.reader.readiness()
    return can_read, "the database and the broker answer" if can_read else sentence


async def _serve(settings: Settings, context: Context) -> None:
    app = create_app(context)
    # The objects of the application live as long as the process. Scanning them for garbage would delay all requests.
    gc.collect()
    gc.freeze()
    shared = SharedByConnections(
        Connections(settings.http_connections_of_one_address), settings.http_head_seconds, context.access.asks_in_vain
    )
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        http=partial(BoundedProtocol, shared),  # type: ignore[arg-type]
        h11_max_incomplete_event_size=HEAD_LIMIT_BYTES,
        ws="none",
        lifespan="off",
        # The rate goes by the address that connects, not by the one that a header claims.
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        backlog=ACCEPTED_AT_ONCE,
    )
    server = _Server(config)
    with listening(settings.http_host, settings.http_port) as listener:
        structlog.get_logger().info("serving HTTP", url=f"http://{settings.http_host}:{settings.http_port}/docs")
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            server.should_exit = True
            ending = ApiError(503, "unavailable", "this process is shutting down: try again with the same command_id")
            asyncio.get_running_loop().call_later(ANSWER_SECONDS, context.watcher.refuse, ending)
            await serving
            raise


class _Server(Server):
    """Accepts a few connections in each pass of the loop, however many wait."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve, with a longer queue: asyncio takes its length also as the number to accept at once."""
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(QUEUED_AT_MOST)


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens at this address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=QUEUED_AT_MOST)
    # Accepted connections inherit this; asyncio does not set it, because it does not see that they are TCP. Without it,
    # a body would wait until the client acknowledges the head, up to 40 ms later.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
