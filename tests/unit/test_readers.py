"""The order of reads: clients take turns, however many connections each has, and none reads all the time."""

import asyncio
from collections.abc import Callable
from time import perf_counter, thread_time

import pytest

from services.api.door import protocol
from services.api.door.protocol import Readers

READ_SECONDS = 0.002


class Read:
    """Reads that take a while, until all are done."""

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._left = 0
        self.order: list[str] = []
        self.has_begun, self.all_done = asyncio.Event(), asyncio.Event()

    def wait(self, client: str, times: int = 1) -> None:
        """Add a connection of this client that has this much to read."""
        self._left += times
        self._readers.wait(client, self._reading(client, times))

    def _reading(self, client: str, times: int) -> Callable[[], None]:
        def read() -> None:
            until = thread_time() + READ_SECONDS
            while thread_time() < until:
                pass
            self.order.append(client)
            self.has_begun.set()
            self._left -= 1
            if times > 1:
                self._readers.wait(client, self._reading(client, times - 1))
            if not self._left:
                self.all_done.set()

        return read


async def test_clients_read_in_turn_however_many_connections_each_has() -> None:
    read = Read(Readers())
    for _ in range(10):
        read.wait("a")
    for client in "bc":
        read.wait(client)
    await read.all_done.wait()
    assert "".join(read.order) == "abc" + 9 * "a"


async def test_a_client_that_reads_much_rests_most_of_the_time() -> None:
    read, began = Read(Readers()), perf_counter()
    read.wait("a", times=4)
    read.wait("a", times=4)
    await read.all_done.wait()
    assert perf_counter() - began >= 7 * READ_SECONDS * (1 + protocol.RESTS)


async def test_a_client_that_arrives_while_another_rests_reads_at_once() -> None:
    readers = Readers()
    read = Read(readers)
    read.wait("a", times=3)
    await read.has_begun.wait()
    read.wait("b")
    await read.all_done.wait()
    assert read.order == ["a", "b", "a", "a"]


async def test_no_client_is_remembered_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "RESTS", 0)
    readers = Readers()
    read = Read(readers)
    read.wait("a", times=3)
    await read.all_done.wait()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not readers._waiting
