"""Decides which request is worked on next: a few at once, a bounded number of each client, and the clients in turn.

One process on one core does all the work. A client that sends many requests at once gets none of them answered sooner,
and must not delay others: its requests wait for each other, in a queue of the client.
"""

import asyncio
import contextlib
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final

from services.api.door.errors import too_many_requests

# How long a request may wait for its turn.
WAIT_SECONDS: Final = 10.0

_Queue = deque["asyncio.Future[None]"]


@dataclass(eq=False, slots=True)
class Turns:
    """Gives requests their turns.

    Args:
        at_once: how many requests are worked on at once.
        of_one: how many requests of one client are worked on at once.
        in_hand: how many requests of one client are worked on, or have answers that the client is receiving.
        waiting: how many requests of one client may wait.

    """

    at_once: int
    of_one: int
    in_hand: int
    waiting: int
    _worked_on: Counter[str] = field(default_factory=Counter)
    _in_hand: Counter[str] = field(default_factory=Counter)
    _queues: OrderedDict[str, _Queue] = field(default_factory=OrderedDict)

    @contextlib.asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[Callable[[], None]]:
        """Wait for the client's turn; it ends with the block.

        Yields a function to call when the answer is made. Others are then worked on while the client receives it.

        Raises:
            ApiError: 429 if too many requests of this client wait, or this one has waited too long.

        """
        await self._wait(client)
        is_worked_on = True

        def made() -> None:
            nonlocal is_worked_on
            if is_worked_on:
                is_worked_on = False
                _discount(self._worked_on, client)
                self._go_on()

        try:
            yield made
        finally:
            _discount(self._in_hand, client)
            made()
            self._go_on()

    async def _wait(self, client: str) -> None:
        if client not in self._queues and self._has_room(client):
            self._enter(client)
            return
        queue = self._queues.setdefault(client, deque())
        if len(queue) >= self.waiting:
            raise too_many_requests(1)
        turn = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await turn
        except BaseException as error:
            self._give_up(client, turn)
            if isinstance(error, TimeoutError):
                raise too_many_requests(1) from None
            raise

    def _give_up(self, client: str, turn: "asyncio.Future[None]") -> None:
        """Remove a request that no longer waits. Its turn may have come at the same moment; it is given back then."""
        if turn.done() and not turn.cancelled():
            _discount(self._worked_on, client)
            _discount(self._in_hand, client)
            self._go_on()
        elif turn in (queue := self._queues.get(client, deque())):
            queue.remove(turn)
            if not queue:
                del self._queues[client]

    def _has_room(self, client: str) -> bool:
        return (
            self._worked_on.total() < self.at_once
            and self._worked_on[client] < self.of_one
            and self._in_hand[client] < self.in_hand
        )

    def _enter(self, client: str) -> None:
        self._worked_on[client] += 1
        self._in_hand[client] += 1

    def _go_on(self) -> None:
        """Give turns to waiting requests while there is room; a client that got one goes to the end of the line."""
        while (client := next(filter(self._has_room, self._queues), None)) is not None:
            queue = self._queues.pop(client)
            turn = queue.popleft()
            if queue:
                self._queues[client] = queue
            if not turn.done():
                self._enter(client)
                turn.set_result(None)


def _discount(count: Counter[str], client: str) -> None:
    """Count one less; forget a client that has none left."""
    count[client] -= 1
    if not count[client]:
        del count[client]
