"""Turns: few requests run at once, few of one client, clients take turns, and no client is forgotten."""

import asyncio
from collections.abc import Callable
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.door import turns
from services.api.door.errors import ApiError
from services.api.door.turns import Turns


class _Work:
    """Requests that run until the test ends them."""

    def __init__(self, of: Turns) -> None:
        self.turns = of
        self.begun: list[str] = []
        self.made: dict[str, Callable[[], None]] = {}
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, name: str) -> None:
        """Start a request. Its name begins with that of its client."""
        self._ends[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._run(name))
        await _settle()

    async def end(self, name: str) -> None:
        """Let a request end, and wait until it has."""
        self._ends[name].set()
        await self._tasks[name]
        await _settle()

    async def give_up(self, name: str) -> None:
        """Cancel a request, whether it waits or runs."""
        self._tasks[name].cancel()
        await asyncio.gather(self._tasks[name], return_exceptions=True)
        await _settle()

    async def give_up_all(self) -> None:
        """Cancel all requests, so that none runs into the time-out of waiting."""
        for name in self._tasks:
            await self.give_up(name)

    async def _run(self, name: str) -> None:
        async with self.turns.turn(name[0]) as made:
            self.begun.append(name)
            self.made[name] = made
            await self._ends[name].wait()


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_clients_that_wait_are_served_in_turn() -> None:
    work = _Work(Turns(1, 1, 1, 9))
    for name in ("a1", "a2", "a3", "b1", "c1", "b2"):
        await work.ask(name)
    for number in range(6):
        await work.end(work.begun[number])
    assert work.begun == ["a1", "a2", "b1", "c1", "a3", "b2"]


async def test_a_client_with_many_requests_does_not_make_others_wait() -> None:
    work = _Work(Turns(4, 1, 2, 9))
    for number in range(10):
        await work.ask(f"a{number}")
    await work.ask("b0")
    assert work.begun == ["a0", "b0"]
    await work.give_up_all()


async def test_other_requests_are_worked_on_while_an_answer_is_sent_but_only_up_to_a_bound() -> None:
    work = _Work(Turns(1, 1, 2, 9))
    for name in ("a1", "a2", "a3", "b1"):
        await work.ask(name)
    for name in ("a1", "a2", "b1"):
        work.made[name]()
        work.made[name]()
        await _settle()
    assert work.begun == ["a1", "a2", "b1"]
    await work.end("a2")
    assert work.begun == ["a1", "a2", "b1", "a3"]


async def test_too_many_waiting_requests_and_too_long_a_wait_are_answered_429(monkeypatch: pytest.MonkeyPatch) -> None:
    work = _Work(Turns(1, 1, 1, 2))
    for name in ("a1", "a2", "a3", "b1"):
        await work.ask(name)
    await work.ask("a4")
    with pytest.raises(ApiError, match="try again"):
        await work.end("a4")
    monkeypatch.setattr(turns, "WAIT_SECONDS", 0.0)
    await work.ask("c1")
    with pytest.raises(ApiError, match="try again"):
        await work.end("c1")
    for number in range(4):
        await work.end(work.begun[number])
    assert work.begun == ["a1", "a2", "b1", "a3"]


@given(st.lists(st.tuples(st.sampled_from(["ask", "end", "made", "give up"]), st.integers(0, 20)), max_size=60))
def test_bounds_hold_and_nothing_is_left_over_in_any_sequence(steps: list[tuple[str, int]]) -> None:
    asyncio.run(_bounds_hold(steps))


async def _bounds_hold(steps: list[tuple[str, int]]) -> None:
    work, asked, made = _Work(Turns(2, 1, 2, 99)), list[str](), set[str]()
    for step, (what, number) in enumerate(steps):
        if what == "ask":
            asked.append(f"{'abc'[number % 3]}{step}")
            await work.ask(asked[-1])
        elif asked:
            name = asked[number % len(asked)]
            if what == "made" and name in work.made:
                work.made[name]()
                made.add(name)
                await _settle()
            elif what == "give up" or (what == "end" and name in work.begun):
                await (work.end(name) if what == "end" else work.give_up(name))
                made.add(name)
                asked.remove(name)
        worked_on = [name for name in work.begun if name not in made]
        assert len(worked_on) <= 2
        assert len({name[0] for name in worked_on}) == len(worked_on)
        in_hand = sorted(name[0] for name in work.begun if name in asked)
        assert all(len(list(group)) <= 2 for _, group in groupby(in_hand))
    while remaining := [name for name in asked if name in work.begun]:
        await work.end(remaining[0])
        asked.remove(remaining[0])
    assert not asked, "somebody waits though nobody is worked on"
    assert not work.turns._queues
    assert not work.turns._in_hand
    assert not work.turns._worked_on
