"""All connections of this process: how many there may be, who gives way, and how much may wait to be taken.

A connection that waits for a whole request costs its client nothing, nor does one whose request waits for its turn, or
whose answer is not taken. When another one needs its place, one of them is closed: of the client that has the most of
them. So whoever has one keeps it. Only where all are being answered is a new one
refused.
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
# Answers that were made and not taken yet, all together.
UNTAKEN_BYTES_AT_MOST = 64 * 1024 * 1024
# A connection may have waited so long for a request that was sent as soon as it was open.
FRESH_SECONDS = 1.0
UNKNOWN_ADDRESS: Final = ""
# Where a connection puts, for a request, the `Asking` of it.
ASKING: Final = "drawdown.asking"


class Connection(Protocol):
    """What a connection can be told."""

    def give_way(self, after_seconds: float = 0.0) -> None:
        """End, and do nothing more until then: somebody else needs the place, or the memory."""


class Connections:
    """The connections by address, those that wait for a request, and what the others have yet to take.

    Args:
        of_one_address: how many connections one address may have.

    """

    def __init__(self, of_one_address: int) -> None:
        self._of_one_address = of_one_address
        self._addresses: dict[Connection, str] = {}
        # Whose request came over it last; none has come yet: nobody's, counted with the others of its address.
        self._clients: dict[Connection, str] = {}
        self._count: Counter[str] = Counter()
        # All in the order in which they began.
        self._waiting: OrderedDict[Connection, float] = OrderedDict()
        self._resting: OrderedDict[Connection, None] = OrderedDict()
        self._untaken: OrderedDict[Connection, int] = OrderedDict()
        self._untaken_bytes = 0
        # Those that have given their places away and have not ended yet, in that order.
        self._ending: OrderedDict[Connection, None] = OrderedDict()
        self._holds = Holds()

    def open(self, connection: Connection, address: str) -> bool:
        """Count a connection; False: there are too many, and none that could give way."""
        self._addresses[connection] = address
        self._count[address] += 1
        has_room = self._count[address] <= self._of_one_address or self._make_room(address)
        while self._ending and len(self._addresses) + len(self._ending) > CONNECTIONS_AT_MOST:
            self._ending.popitem(last=False)[0].give_way()
        return has_room and (len(self._addresses) <= CONNECTIONS_AT_MOST or self._make_room(None))

    def close(self, connection: Connection) -> None:
        """Forget a connection; it may have been forgotten."""
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
        """Note that from now on it waits for a whole request, unless it did already."""
        if connection in self._addresses:
            self._waiting.setdefault(connection, monotonic())

    def works(self, connection: Connection) -> None:
        """Note that its request is there."""
        self._waiting.pop(connection, None)

    def belongs(self, connection: Connection, client: str) -> None:
        """Note whose request it is."""
        if connection in self._addresses:
            self._clients[connection] = client

    def client(self, connection: Connection) -> str:
        """Whose it is: of the last request's subject, as far as that is known, or else of its address."""
        return self._clients.get(connection) or self._addresses.get(connection, UNKNOWN_ADDRESS)

    def hold_seconds(self, connection: Connection) -> float:
        """How long the refusal of its request is held, because its client asks too often."""
        return self._holds.seconds(self.client(connection))

    def rests(self, connection: Connection) -> None:
        """Note that nobody works on its request yet."""
        if connection in self._addresses:
            self._resting.setdefault(connection, None)

    def goes_on(self, connection: Connection) -> None:
        """Note that its request is worked on."""
        self._resting.pop(connection, None)

    def untaken(self, connection: Connection, size: int) -> None:
        """Note how many bytes of its answer are still to be taken; the slowest is left where all are too many."""
        self._untaken_bytes += size - self._untaken.get(connection, 0)
        self._untaken[connection] = size
        while self._untaken_bytes > UNTAKEN_BYTES_AT_MOST:
            slowest = next(iter(self._untaken))
            self.taken(slowest)
            slowest.give_way()

    def taken(self, connection: Connection) -> None:
        """Note that its answer has been taken, or never will be."""
        self._untaken_bytes -= self._untaken.pop(connection, 0)

    def _make_room(self, address: str | None) -> bool:
        """Close a connection of whoever has the most that may be closed, of this address or (None) of all.

        The one that has waited the longest; of those that wait for their turn, the one that has waited the least: what
        came first is answered first. One that has just been opened has its request on the way, so it comes last.

        Where an address has too many, its client is told late: one that opens another at once, and again, would have
        this process do nothing else.
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
    """The connection of a request, as the gate knows it."""

    has_gone: Callable[[], bool]
    connection: Connection
    register: Connections

    def hold_seconds(self) -> float:
        """How long its refusal is held, because its client asks too often."""
        return self.register.hold_seconds(self.connection)

    def belongs_to(self, client: str) -> None:
        """Say whose request it is."""
        self.register.belongs(self.connection, client)

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Meanwhile nobody works on it: its connection may be closed for another."""
        self.register.rests(self.connection)
        try:
            yield
        finally:
            self.register.goes_on(self.connection)
