"""The outcome of spend that was sent, as the API reports it: charged, duplicate, quarantined, or undecided."""

import asyncio
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from drawdown.api_client import ApiClient, RequestRefusedError
from drawdown.local.spend_files import Event
from shared.contracts.fields import UUID_PATTERN

Say = Callable[[str], None]

_EVENTS_A_REQUEST = 500
_REQUESTS_AT_ONCE = 4
_POLL_SECONDS = 0.1
# Stop waiting if nothing has been decided for this long.
_PATIENCE_SECONDS = 60.0
# How long to wait for a record that was read, and is in neither ledger nor quarantine. Another shard may have to take
# it first, or the token does not allow seeing it.
_UNKNOWN_SECONDS = 5.0
_EXAMPLES = 3
_DECIDED = frozenset({"charged", "quarantined"})


@dataclass(frozen=True, slots=True)
class Sent:
    """A row that the broker has acknowledged: its number in the file (from 1), event id, and place in the topic."""

    number: int
    event_id: str | None
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Before:
    """The state before some rows were sent: those of their event ids that the ledger had, and a cursor."""

    charged: frozenset[str]
    cursor: str


@dataclass
class Tally:
    """The outcomes of a file's rows. `examples` has a few sentences for each reason of quarantine."""

    sent: int = 0
    charged: int = 0
    duplicate: int = 0
    undecided: int = 0
    unsent: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    examples: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def decided(self) -> int:
        """Return the number of decided rows."""
        return self.charged + self.duplicate + self.quarantined.total()

    @property
    def is_complete(self) -> bool:
        """Return whether every row was sent and decided."""
        return not (self.undecided or self.unsent)

    def take(self, rows: Sequence[Sent], answers: dict[int, dict[str, Any]], charged_before: frozenset[str]) -> None:
        """Count rows. The first row of an id that is not quarantined counts as charged, unless the ledger had the id.

        Args:
            rows: the rows, in the order of the file.
            answers: the API's answers by row number.
            charged_before: the event ids that the ledger had before these rows were sent.

        """
        charged = set(charged_before)
        for row in rows:
            answer = answers.get(row.number, {})
            if answer.get("state") == "quarantined":
                self._take_quarantined(row, answer)
            elif answer.get("state") != "charged" or row.event_id is None:
                self.undecided += 1
            elif row.event_id in charged:
                self.duplicate += 1
            else:
                charged.add(row.event_id)
                self.charged += 1

    def _take_quarantined(self, row: Sent, answer: dict[str, Any]) -> None:
        reason = answer["reason"]
        self.quarantined[reason] += 1
        if len(self.examples[reason]) < _EXAMPLES:
            self.examples[reason].append(f"row {row.number:,}, record {answer['record_id']}: {answer['detail']}")

    def lines(self, name: str) -> Iterator[str]:
        """Yield the lines of the report. `name` is the file's name."""
        undecided = f", {self.undecided:,} undecided" if self.undecided else ""
        yield (
            f"{name}: {self.sent:,} sent, {self.charged:,} charged, {self.duplicate:,} duplicate, "
            f"{self.quarantined.total():,} quarantined{undecided}"
        )
        if self.unsent:
            yield f"  too large for the broker, not sent: {self.unsent:,}"
        for reason, count in sorted(self.quarantined.items()):
            yield f"  quarantined, {reason}: {count:,}; see: drawdown quarantine list --reason {reason}"
            yield from (f"    {example}" for example in self.examples[reason])


class Outcomes:
    """Asks the API for the outcomes of rows, and waits until they are decided."""

    def __init__(self, client: ApiClient, say: Say) -> None:
        self._client = client
        self._say = say
        self._unknown_seconds = _UNKNOWN_SECONDS
        # True once the API does not answer or nothing is decided any longer. Then this does not wait for the rest.
        self.is_blind = False

    async def before(self, event_ids: Sequence[str | None]) -> Before | None:
        """Ask for the state before rows with these ids are sent. Returns None if the API does not answer."""
        asked = [{"event_id": each} for each in event_ids if each is not None] or [{}]
        answers = await self._ask(asked)
        if answers is None:
            return None
        found = zip(asked, answers[0], strict=True)
        charged = frozenset(each["event_id"] for each, answer in found if answer["state"] == "charged")
        return Before(charged, answers[1])

    async def of(self, rows: Sequence[Sent], before: Before | None) -> dict[int, dict[str, Any]]:
        """Return the API's answers by row number. A row that stays undecided is left out, or its answer says so."""
        if before is None or not rows or not await self._are_read(rows, before):
            return {}
        found: dict[int, dict[str, Any]] = {}
        open_rows, give_up_at = list(rows), time.monotonic() + self._unknown_seconds
        while True:
            answers = await self._ask(list(map(_asked, open_rows)), before.cursor)
            if answers is None:
                return found
            found |= {row.number: answer for row, answer in zip(open_rows, answers[0], strict=True)}
            left = [row for row in open_rows if found[row.number]["state"] not in _DECIDED]
            if len(left) < len(open_rows):
                give_up_at = time.monotonic() + self._unknown_seconds
            if not left or time.monotonic() > give_up_at:
                self._unknown_seconds = _UNKNOWN_SECONDS if not left else _POLL_SECONDS
                return found
            open_rows = left
            await asyncio.sleep(_POLL_SECONDS)

    async def _are_read(self, rows: Sequence[Sent], before: Before) -> bool:
        """Wait until allocation has read the last row of each partition. Returns False if that takes too long."""
        last = list({row.partition: _asked(row) for row in rows}.values())
        waiting, changed_at = len(last), time.monotonic()
        while waiting:
            answers = await self._ask(last, before.cursor)
            if answers is None:
                return False
            left = sum(answer["state"] == "waiting" for answer in answers[0])
            if left != waiting:
                waiting, changed_at = left, time.monotonic()
            elif time.monotonic() - changed_at > _PATIENCE_SECONDS:
                self._lose(f"nothing more has been decided for {_PATIENCE_SECONDS:.0f} s")
                return False
            if waiting:
                await asyncio.sleep(_POLL_SECONDS)
        return True

    async def _ask(
        self, events: Sequence[dict[str, Any]], after: str | None = None
    ) -> tuple[list[dict[str, Any]], str] | None:
        """Return the answers in the order of the events, and a cursor; None if the API does not answer."""
        if self.is_blind:
            return None
        parts = [events[start : start + _EVENTS_A_REQUEST] for start in range(0, len(events), _EVENTS_A_REQUEST)]
        limit = asyncio.Semaphore(_REQUESTS_AT_ONCE)

        async def ask(part: Sequence[dict[str, Any]]) -> dict[str, Any]:
            async with limit:
                return await self._client.look_up(part, after)

        try:
            answered = await asyncio.gather(*map(ask, parts))
        except (httpx.HTTPError, RequestRefusedError) as error:
            self._lose(f"the API does not report the outcomes: {str(error) or type(error).__name__}")
            return None
        return [answer for part in answered for answer in part["events"]], answered[0]["next"]

    def _lose(self, why: str) -> None:
        if not self.is_blind:
            self._say(f"{why}; sending the rest without waiting for outcomes")
        self.is_blind = True


def _asked(row: Sent) -> dict[str, Any]:
    place: dict[str, Any] = {"partition": row.partition, "offset": row.offset}
    return place if row.event_id is None else {"event_id": row.event_id, **place}


def event_id_of(event: Event | None) -> str | None:
    """Return an event's id in lower case, as the ledger stores it; None if it has none. CloudEvents call it `id`."""
    if event is None:
        return None
    text = event.get("id") if "specversion" in event else event.get("event_id")
    if not isinstance(text, str) or re.fullmatch(UUID_PATTERN, text, re.ASCII) is None:
        return None
    return text.lower()
