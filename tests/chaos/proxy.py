"""A TCP proxy between the services and a server, which simulates failures of the network."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, Self

_CHUNK_BYTES = 65_536


class Proxy:
    """Forwards bytes both ways until it is told to fail.

    `delay_seconds` delays each chunk, and `bytes_per_second` limits the bandwidth (0 means no limit). After
    `partition` nothing passes in either direction, while the connections stay open.
    """

    def __init__(self, port: int, upstream_port: int) -> None:
        self.port = port
        self.upstream_port = upstream_port
        self.delay_seconds = 0.0
        self.bytes_per_second = 0
        self._gate = asyncio.Event()
        self._gate.set()
        self._held: dict[asyncio.StreamWriter, bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def partition(self) -> None:
        """Hold back all bytes from now on, without closing connections."""
        self._gate.clear()

    def heal(self) -> None:
        """Forward the bytes that were held back, and all that follow."""
        self.delay_seconds, self.bytes_per_second = 0.0, 0
        for writer, held in self._held.items():
            writer.write(held)
        self._held.clear()
        self._gate.set()

    def holds(self, part: bytes) -> bool:
        """Return whether these bytes have arrived and are held back."""
        return any(part in held for held in self._held.values())

    def reset(self) -> None:
        """Reset every connection in both directions, like a router that lost its state."""
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._connect(reader, writer)
        writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._gate.wait()
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self.upstream_port)
        writers = {writer, upstream_writer}
        self._writers |= writers
        try:
            await _first_to_end(self._pass_on(reader, upstream_writer), self._pass_on(upstream_reader, writer))
        finally:
            self._writers -= writers
            for each in writers:
                self._held.pop(each, None)
            upstream_writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            if self.bytes_per_second:
                await asyncio.sleep(len(chunk) / self.bytes_per_second)
            if self._gate.is_set():
                writer.write(chunk)
                await writer.drain()
            else:  # A sender must not block, so its bytes are read.
                self._held[writer] = self._held.get(writer, b"") + chunk
        await self._gate.wait()


async def _first_to_end(*directions: Coroutine[Any, Any, None]) -> None:
    """Wait until one side has closed and its last bytes are forwarded."""
    tasks = [asyncio.create_task(each) for each in directions]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
