"""An abusive client in a separate process, which gets its orders from stdin and runs until it is killed.

Over many connections at once it reads paths and sends commands, or (`idle`) begins requests and never ends them.
"""

import asyncio
import contextlib
import itertools
import json
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

from tests.security.target import Target
from tests.security.tenants import Fields


@contextlib.asynccontextmanager
async def crowded(
    target: Target,
    connections: int,
    *,
    tokens: Sequence[str] = (),
    paths: Sequence[str] = (),
    commands: Sequence[Fields] = (),
    sent: Sequence[str] = (),
    idle: int = 0,
) -> AsyncIterator[None]:
    """Run an abusive client while the block runs.

    Args:
        target: the deployment to attack.
        connections: the number of connections at once.
        tokens: the tokens to send; an empty one means none.
        paths: the paths to read.
        commands: the commands to send, each time with another `command_id`.
        sent: other requests to send, byte for byte.
        idle: instead of sending requests, open this many idle connections a second.

    """
    asked = {
        "port": target.http_port,
        "connections": connections,
        "tokens": tokens,
        "paths": paths,
        "commands": commands,
        "sent": sent,
        "idle": idle,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.security.crowd", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(asked).encode())
    process.stdin.close()
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _ask(port: int, requests: Sequence[Callable[[], bytes]], begin: int) -> None:
    """Send requests, each over a new connection, as soon as the previous answer has been read."""
    for request in itertools.islice(itertools.cycle(requests), begin, None):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request())
            while await reader.read(2**20):
                pass
        except OSError:
            await asyncio.sleep(0.01)
        else:
            writer.close()


def _request(path: str, token: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\n{_headers(token)}\r\n".encode()


def _command(command: Fields, token: str) -> bytes:
    body = json.dumps(command | {"command_id": str(uuid.uuid4())})
    about = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"POST /v1/commands HTTP/1.1\r\n{_headers(token)}{about}\r\n{body}".encode()


def _headers(token: str) -> str:
    allowed = f"Authorization: Bearer {token}\r\n" if token else ""
    return f"Host: localhost\r\n{allowed}Connection: close\r\n"


async def _begin(port: int, turns: asyncio.Semaphore) -> None:
    """Open a connection whenever there is a turn, send one byte, and hold it for as long as the API allows."""
    while True:
        await turns.acquire()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"G")
            while await reader.read(2**10):
                pass
        except OSError:
            continue
        writer.close()


async def _idle(port: int, connections: int, opened_a_second: int) -> None:
    turns = asyncio.Semaphore(connections)
    tasks = [asyncio.create_task(_begin(port, turns)) for _ in range(connections)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(1 / 20)
        for _ in range(opened_a_second // 20):
            turns.release()


async def _main(asked: dict[str, Any]) -> None:
    if asked["idle"]:
        await _idle(asked["port"], asked["connections"], asked["idle"])
    requests = [
        *(partial(_request, path, token) for token in asked["tokens"] for path in asked["paths"]),
        *(partial(_command, command, token) for token in asked["tokens"] for command in asked["commands"]),
        *(text.encode for text in asked["sent"]),
    ]
    await asyncio.gather(*(_ask(asked["port"], requests, begin) for begin in range(asked["connections"])))


if __name__ == "__main__":
    asyncio.run(_main(json.load(sys.stdin)))
