"""Compares the answers to commands with what the ledger holds and the rules decide."""

import json
from collections import deque
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg

from services.auditor.baseline import Head
from services.auditor.difference import DifferenceError, expect
from shared.contracts.commands import MOST_REFUSED_BYTES, is_hash, kept_content, meaning_hash, refused_content
from shared.ledger.decoding import StoredEntry
from shared.rules.entries import canonical_json
from shared.rules.instants import from_datetime

ACCEPTED, REJECTED = "accepted", "rejected"
_READ_AT_ONCE = 200  # Outcomes of a mebibyte at most.
_MOST_SHOWN = 200
# Of all long refused commands of a shard that are kept whole.
_MOST_LONG_BYTES = 64 * 2**20


class Answer(NamedTuple):
    """The answer to a command.

    `position` is the command's last entry if it was accepted, else the shard's last position when it was refused.
    `recorded_at` is the ledger time of the batch that decided it, in µs.
    """

    status: str
    code: str | None
    message: str
    first_position: int | None
    position: int
    recorded_at: int


@dataclass(slots=True)
class RecordedOutcome:
    """A row of ledger.outcomes.

    `rules_version`, `zones_release` and `policy_version` name what decided the command or, for a repetition, what was
    in force when it was repeated. `via` says how the decided command came. Older outcomes lack `via` and
    `policy_version`.
    """

    sequence: int
    command_id: bytes
    first: bool
    business_center_id: str
    type: str
    content: dict[str, Any]
    answer: Answer
    via: str | None
    rules_version: int
    zones_release: str
    policy_version: str | None

    @property
    def status(self) -> str:
        """Return "accepted" or "rejected"."""
        return self.answer.status

    @property
    def position(self) -> int:
        """Return the position of the command's last entry; of a refused one, the shard's last position at that time."""
        return self.answer.position

    @property
    def recorded_at(self) -> int:
        """Return the ledger time of the batch that decided it, in µs."""
        return self.answer.recorded_at


class _Decision(NamedTuple):
    """What a repetition of a command is compared with."""

    meaning: str
    answer: Answer
    via: str | None


class RecordedOutcomes:
    """All answers of one shard: refusals in their order, and acceptances not yet found in the ledger.

    Of an accepted command only a hash stays in memory, because the ledger's entries hold it. Of a long refused one the
    ledger holds a hash. The first releases kept it whole, but few such ledgers exist, and none has many.
    """

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.count = 0
        self.refusals: deque[RecordedOutcome] = deque()
        self.accepted = self.repeated = 0
        self._accepted: dict[int, RecordedOutcome] = {}
        self._decided: dict[bytes, _Decision] = {}
        self._long_bytes = 0
        self._before: tuple[int, int] = (0, 0)  # the position and the time of the previous decision

    def add(self, outcome: RecordedOutcome) -> None:
        """Add the next outcome of the shard. Raise DifferenceError if it contradicts those before it."""
        self.count += 1
        expect(outcome.sequence == self.count, f"shard {self.shard}: the outcome {self.count} is missing")
        self._check_fields(outcome)
        decision = self._decided.get(outcome.command_id)
        if not outcome.first:
            self._check_repetition(outcome, decision)
            return
        expect(decision is None, f"{self._say(outcome)}: the command was decided before")
        self._decided[outcome.command_id] = _Decision(meaning_hash(outcome.content), outcome.answer, outcome.via)
        position, recorded_at = self._before
        in_order = position <= outcome.position and recorded_at <= outcome.recorded_at
        expect(in_order, f"{self._say(outcome)}: its position or time lies before that of the previous outcome")
        self._before = outcome.position, outcome.recorded_at
        self._sort(outcome)

    def _check_fields(self, outcome: RecordedOutcome) -> None:
        content = outcome.content
        if is_hash(content):
            is_done = outcome.first and outcome.status == ACCEPTED
            expect(not is_done, f"{self._say(outcome)}: it is accepted, but its content is kept as a hash")
            expect(content["bytes"] > MOST_REFUSED_BYTES, f"{self._say(outcome)}: such short content is kept whole")
        elif outcome.status == REJECTED and is_hash(short := refused_content(content)):
            self._long_bytes += short["bytes"]
            told = f"with it, refused commands that are kept whole have more than {_MOST_LONG_BYTES // 2**20} MiB"
            expect(self._long_bytes <= _MOST_LONG_BYTES, f"{self._say(outcome)}: {told}")

    def _sort(self, outcome: RecordedOutcome) -> None:
        if outcome.status == REJECTED:
            self.refusals.append(outcome)
            return
        first = outcome.answer.first_position
        if outcome.status != ACCEPTED or first is None or first in self._accepted:
            raise DifferenceError(f"{self._say(outcome)}: {outcome.status} with the first position {first}")
        self._accepted[first] = replace(outcome, content={"sha256": _sha256(outcome.content)})

    def _check_repetition(self, outcome: RecordedOutcome, decision: _Decision | None) -> None:
        self.repeated += 1
        if decision is None:
            raise DifferenceError(f"{self._say(outcome)}: it repeats a decision that was never made")
        if meaning_hash(outcome.content) == decision.meaning:
            told, first = (*outcome.answer, outcome.via), (*decision.answer, decision.via)
            expect(told == first, f"{self._say(outcome)}: repeated with the answer {told}, not {first}")
        else:
            conflict = (outcome.status, outcome.answer.code) == (REJECTED, "conflict")
            expect(conflict, f"{self._say(outcome)}: other content under a known id must be refused as a conflict")

    def match(self, command: StoredEntry, last: int) -> None:
        """Find the answer to a command of the ledger by its first entry; `last` is the position of its last.

        Raise DifferenceError if no outcome accepts it there, or says something else about it.
        """
        line, source = command.line, command.source
        outcome = self._accepted.pop(command.position, None)
        where = f"shard {self.shard}, position {command.position}"
        if outcome is None:
            raise DifferenceError(
                f"{where}: the ledger holds the command {_hex(source)}, but no outcome accepts it there"
            )
        expect(outcome.command_id == source, f"{where}: the ledger holds {_hex(source)}, {self._say(outcome)} names it")
        expect(
            outcome.position == last and outcome.recorded_at == command.recorded_at,
            f"{where}: {self._say(outcome)} ends at {outcome.position}, its entries at {last}; or their times differ",
        )
        details = json.loads(line.details or "{}")
        kept, via = details["command"], details.get("via")
        same = outcome.content == {"sha256": _sha256(kept)}
        expect(same, f"{where}: the ledger holds {kept}, {self._say(outcome)} holds something else")
        # The first two versions of the rules did not record how a command came.
        expect(
            via in (None, outcome.via), f"{where}: the command came by {via}, {self._say(outcome)} says {outcome.via}"
        )
        self.accepted += 1

    def finish(self) -> None:
        """Raise DifferenceError if the ledger lacks an accepted command, or a refusal was not decided again."""
        for outcome in [*self._accepted.values(), *self.refusals]:
            raise DifferenceError(
                f"{self._say(outcome)} is {outcome.status} at position"
                f" {outcome.answer.first_position or outcome.position}, where the ledger holds nothing of the kind"
            )

    def _say(self, outcome: RecordedOutcome) -> str:
        return f"shard {self.shard}, outcome {outcome.sequence} of command {_hex(outcome.command_id)}"


async def read_outcomes(connection: asyncpg.Connection, shard: int, last: int) -> RecordedOutcomes:
    """Return the outcomes of a shard up to the sequence number `last`. The connection has `plain_types`.

    Raise DifferenceError if one does not hold the command that its row names, or contradicts those before it.
    """
    query = (
        "SELECT sequence, command_id, first, business_center_id, type, content::text, status, code, message,"
        " first_position, position, recorded_at, via, rules_version, zones_release, policy_version"
        " FROM ledger.outcomes WHERE shard = $1 AND sequence <= $2 ORDER BY sequence"
    )
    outcomes = RecordedOutcomes(shard)
    async with connection.transaction():
        async for row in connection.cursor(query, shard, last, prefetch=_READ_AT_ONCE):
            outcomes.add(_outcome(shard, *row))
    return outcomes


def _outcome(
    shard: int, sequence: int, command_id: bytes, first: bool, center: str, type_: str, *rest: Any
) -> RecordedOutcome:
    kept, status, code, message, first_position, position, recorded_at, *under = rest
    content = _content(shard, sequence, command_id, center, type_, kept)
    told = Answer(status, code, message, first_position, position, from_datetime(recorded_at))
    return RecordedOutcome(sequence, command_id, first, center, type_, content, told, *under)


async def check_contents(connection: asyncpg.Connection, head: Head) -> None:
    """Raise DifferenceError if an outcome holds no readable command, or another one than its row names."""
    query = (
        "SELECT sequence, command_id, business_center_id, type, content::text FROM ledger.outcomes"
        " WHERE shard = $1 AND sequence <= $2 ORDER BY sequence"
    )
    async with connection.transaction():
        async for row in connection.cursor(query, head.shard, head.outcome_sequence, prefetch=_READ_AT_ONCE):
            _content(head.shard, *row)


def _content(shard: int, sequence: int, command_id: bytes, center: str, type_: str, kept: str) -> dict[str, Any]:
    """Return the content of an outcome. Raise DifferenceError if it is unreadable or not of the command of its row."""
    where = f"shard {shard}, outcome {sequence} of command {_hex(command_id)}"
    try:
        content = kept_content(kept)
    except ValueError as error:
        raise DifferenceError(f"{where} cannot be read: {str(error)[:_MOST_SHOWN]}") from error
    told = (UUID(bytes=command_id), center, type_)
    named = (UUID(content["command_id"]), content["business_center_id"], content["type"])
    expect(told == named, f"{where}: the row names {told}, its content {named}")
    return content


def _sha256(content: Any) -> str:
    return sha256(canonical_json(content).encode()).hexdigest()


def _hex(id_: bytes | None) -> str:
    return "none" if id_ is None else str(UUID(bytes=id_))
