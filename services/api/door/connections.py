"""Bounds all connections of this process: how many there are, which one gives way, and how many bytes are unread.

A connection is idle while its request is incomplete, while its request waits for a turn, or while the client does not
read its answer. When a new connection needs a place, an idle one is closed, of the client that has most of them. So a
client with one connection keeps it. A new connection is refused only if all others are being answered.
"""

import contextlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, dropwhile, islice
from time import monotonic
from typing import Final, Protocol

from services.api.door.limits import Holds

# A process may usually open 1,024 files, and needs some for itself.
CONNECTIONS_AT_MOST = 900
# All answers together that were made, but not yet read by their clients.
UNTAKEN_BYTES_AT_MOST = 64 * 1024 * 1024
# The request that a client sent at once over a new connection may take this long to arrive.
FRESH_SECONDS = 1.0
UNKNOWN_ADDRESS: Final = ""
# The key of the request's scope under which the protocol stores its `Asking`.
ASKING: Final = "drawdown.asking"


class Connection(Protocol):
    """The part of a connection that the register calls."""

    def give_way(self, after_seconds: float = 0.0) -> None:
        """Close after this many seconds and do nothing more, because others need the place or the memory."""


class Connections:
    """The register of connections: their addresses and clients, the idle ones, and unread bytes of answers.

    Args:
        of_one_address: how many connections one address may have.

    """

    def __init__(self, of_one_address: int) -> None:
        self._of_one_address = of_one_address
        self._addresses: dict[Connection, str] = {}
        # The client of the last request. A connection without one yet counts to its address.
        self._clients: dict[Connection, str] = {}
        self._count: Counter[str] = Counter()
        # Each in the order in which the connections entered it.
        self._waiting: OrderedDict[Connection, float] = OrderedDict()
        self._resting: OrderedDict[Connection, None] = OrderedDict()
        self._untaken: OrderedDict[Connection, int] = OrderedDict()
        self._untaken_bytes = 0
        # Connections that gave way and are not closed yet, oldest first.
        self._ending: OrderedDict[Connection, None] = OrderedDict()
        self._holds = Holds()

    def open(self, connection: Connection, address: str) -> bool:
        """Count a connection; return False if there are too many and none can give way."""
        self._addresses[connection] = address
        self._count[address] += 1
        has_room = self._count[address] <= self._of_one_address or self._make_room(address)
        while self._ending and len(self._addresses) + len(self._ending) > CONNECTIONS_AT_MOST:
            self._ending.popitem(last=False)[0].give_way()
        return has_room and (len(self._addresses) <= CONNECTIONS_AT_MOST or self._make_room(None))

    def close(self, connection: Connection) -> None:
        """Forget a connection. Idempotent."""
        self.taken(connection)
        self._waiting.pop(connection, None)
        self._resting.pop(connection, None)
        self._clients.pop(connection, None)
        self._ending.pop(connection, None)
        address = self._addresses.pop(connection, None)
        if address is not None:
            self._count[address] -= 1
            if not self._count[address]:
                del self._count[address]

    def waits(self, connection: Connection) -> None:
        """Note that the connection waits for a whole request, unless it already does."""
        if connection in self._addresses:
            self._waiting.setdefault(connection, monotonic())

    def works(self, connection: Connection) -> None:
        """Note that the connection's request has arrived."""
        self._waiting.pop(connection, None)

    def belongs(self, connection: Connection, client: str) -> None:
        """Note which client sent the connection's request."""
        if connection in self._addresses:
            self._clients[connection] = client

    def client(self, connection: Connection) -> str:
        """Return the client of the connection: the last request's, if that is known, else its address."""
        return self._clients.get(connection) or self._addresses.get(connection, UNKNOWN_ADDRESS)

    def hold_seconds(self, connection: Connection) -> float:
        """Return how long the refusal of its request is held, in seconds, because its client asks too often."""
        return self._holds.seconds(self.client(connection))

    def rests(self, connection: Connection) -> None:
        """Note that the connection's request waits for its turn."""
        if connection in self._addresses:
            self._resting.setdefault(connection, None)

    def goes_on(self, connection: Connection) -> None:
        """Note that the connection's request is in progress."""
        self._resting.pop(connection, None)

    def untaken(self, connection: Connection, size: int) -> None:
        """Note how many bytes of the answer are unread. If all together are too many, the slowest client is cut off."""
        self._untaken_bytes += size - self._untaken.get(connection, 0)
        self._untaken[connection] = size
        while self._untaken_bytes > UNTAKEN_BYTES_AT_MOST:
            slowest = next(iter(self._untaken))
            self.taken(slowest)
            slowest.give_way()

    def taken(self, connection: Connection) -> None:
        """Note that the answer was read, or never will be."""
        self._untaken_bytes -= self._untaken.pop(connection, 0)

    def _make_room(self, address: str | None) -> bool:
        """Close an idle connection of the client that has most of them; of this address only, unless it is None.

        The longest idle one is chosen, but among requests that wait for a turn the newest, because the first one to
        come is answered first. A connection that was just opened is chosen last: its request is on the way.

        A connection that gives way because its address has too many is closed late. Otherwise a client that opens
        another one at once, again and again, would keep this process busy.
        """
        late = monotonic() - FRESH_SECONDS
        fresh = list(dropwhile(lambda each: self._waiting[each] < late, self._waiting))
        old = islice(self._waiting, len(self._waiting) - len(fresh))
        idle = [
            (each, self.client(each))
            for each in chain(old, self._untaken, reversed(self._resting), fresh)
            if address in (None, self._addresses[each])
        ]
        if not idle:
            return False
        [(most, _)] = Counter(client for _, client in idle).most_common(1)
        closed = next(each for each, client in idle if client == most)
        self.close(closed)
        if address is None:
            closed.give_way()
        else:
            self._ending[closed] = None
            closed.give_way(self._holds.seconds(address))
        return True


@dataclass(frozen=True, slots=True)
class Asking:
    """The connection of a request, as the gate sees it."""

    has_gone: Callable[[], bool]
    connection: Connection
    register: Connections

    def hold_seconds(self) -> float:
        """Return how long its refusal is held, in seconds, because its client asks too often."""
        return self.register.hold_seconds(self.connection)

    def belongs_to(self, client: str) -> None:
        """Note which client sent the request."""
        self.register.belongs(self.connection, client)

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Mark the request as waiting within the block: its connection may be closed for another."""
        self.register.rests(self.connection)
        try:
            yield
        finally:
            self.register.goes_on(self.connection)
