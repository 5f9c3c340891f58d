"""The state of a scenario while it runs: its names, what it sent last, and the outcome of that.

A sentence that asks for something (`100 cash is deposited to shop`) sends a finance command or publishes an event. It
must succeed unless the next sentence says that it is refused. Every other sentence claims something that must be true.
Names such as `shop` belong to one scenario: each has its own Business Center, so that all can run on one system.
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from tests.acceptance.platform import Platform, Record
from tests.model.forms import micros, rfc3339

PATIENCE_SECONDS = 10.0
_numbers = itertools.count(1)


def plain(amount: str) -> int:
    """Return an amount of a scenario in micros."""
    return -micros(amount[1:]) if amount.startswith("-") else micros(amount)


class Stage:
    """A scenario that runs on a platform."""

    def __init__(self, platform: Platform, loop: asyncio.AbstractEventLoop) -> None:
        self.platform = platform
        self.center = ""
        self.outcome: tuple[str, str | None] = ("accepted", None)
        self.first_outcome: tuple[str, str | None] = self.outcome
        self.refused = False
        self.sent: Record = {}
        self.spend: Record = {}
        self.event: Record = {}
        self.fate = ""
        self.written_before = 0
        self.entities: list[tuple[str, str | None]] = []
        self.seen: dict[tuple[str, str | None], int] = {}
        self.is_patient = False
        self._is_acting = False
        self._loop = loop
        self._prefix = f"s{next(_numbers):02d}"

    def name(self, name: str) -> str:
        """Return the platform's id of a name of the scenario."""
        return f"{self._prefix}-{name}"

    def holder(self, name: str) -> str | None:
        """Return the ad account of a name, or None for the Business Center."""
        return None if self.name(name) == self.center else self.name(name)

    def tell(self, sentence: Callable[[], Awaitable[None]]) -> None:
        """Run the step of a sentence. After the clock has moved, a claim may take a moment to become true."""
        self._loop.run_until_complete(self._tell(sentence))

    async def _tell(self, sentence: Callable[[], Awaitable[None]]) -> None:
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return await sentence()
            except AssertionError:
                if not self.is_patient or time.monotonic() > give_up_at:
                    raise
            await asyncio.sleep(0.02)

    def act(self) -> None:
        """Begin the part that the scenario is about: signals count from here."""
        if not self._is_acting:
            self._is_acting = True
            self._loop.run_until_complete(self._remember_signals())

    async def _remember_signals(self) -> None:
        self.seen = {entity: len(await self.platform.signals(*entity)) for entity in self.entities}

    async def ask(self, type_: str, *, role: str = "admin", **fields: Any) -> None:
        """Send a command. A field that is None is left out."""
        now_us = await self.platform.now_us()
        command = {
            "command_id": str(uuid4()),
            "type": type_,
            "business_center_id": self.center,
            "issued_at": rfc3339(now_us),
            "actor": {"id": "somebody", "role": role},
            **{name: value for name, value in fields.items() if value is not None},
        }
        await self.send(command)

    async def send(self, command: Record) -> None:
        """Send a command without changes."""
        if command["type"] != "open_business_center":
            self.written_before = len(await self.platform.ledger(self.center))
        self.sent = command
        self.is_patient = False
        self.outcome = await self.platform.command(command)
        self.refused = self.outcome[0] == "rejected"

    async def publish(self, event: Record) -> None:
        """Publish a spend or reversal, to which `that` refers from now on."""
        self.event = event
        self.is_patient = False
        self.fate = await self.platform.publish(event)

    async def signals(self, account: str, campaign: str | None) -> list[list[str]]:
        """Return the signals since the first `When`: change, cause, and the causes after it."""
        entity = self.name(account), campaign
        signals = (await self.platform.signals(*entity))[self.seen.get(entity, 0) :]
        return [[each["change"], each["cause"], ", ".join(each["causes"])] for each in signals]

    async def money(self) -> list[Record]:
        """Return the money entries of the last spend or reversal."""
        entries = await self.platform.entries(self.event["event_id"])
        return [entry for entry in entries if entry["kind"] not in ("pause", "resume")]
