"""What happens when deciding fails: which record is to blame, and when a shard has to stop.

A worker that fails is thrown away with its memory, and the shard is loaded again. What has to be known across that is
here: the records to quarantine instead of deciding them, and how many records to take at once until one is found.
"""

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import structlog

from services.allocation import bounds, metrics
from services.allocation.decoding import Fault, Raw, printable
from services.allocation.lease import LeaseLostError
from shared.ledger.zones import ZonesDifferError
from shared.runtime.errors import CannotGoOnError
from shared.runtime.kafka import SPEND_EVENTS

if TYPE_CHECKING:
    from services.allocation.batch import Decoded

log = structlog.get_logger()

INTERNAL_ERROR: Final = "internal_error"
MOST_IN_A_ROW: Final = 5
_LONGEST_DETAIL: Final = 500
_TAKEN_ACCOUNT: Final = "ad_accounts_pkey"
# The places of the next entry, batch, outcome and quarantined or forwarded record. Only a lease's owner writes there.
_PLACES: Final = re.compile(r"(entries_\d+|batches|outcomes|quarantine_\d{4}_\d\d|forwarded)_pkey")
# Classes of SQLSTATE: what was written does not fit. All others are about the server, or about who asks it.
_DATA, _CONSTRAINT, _TOO_LARGE = "22", "23", "54"

# A record's own place: its topic and offset, or no topic and the id under which it was forwarded.
Place = tuple[str, int]


class RecordFailedError(Exception):
    """Deciding this record raised what nobody expected; the cause says what. Nothing of its batch is written."""

    def __init__(self, record: Any) -> None:
        super().__init__("a record could not be decided")
        self.record = record


class BatchFailedError(Exception):
    """A batch could not be written because of something that it holds; the cause says what. It is undone."""

    def __init__(self, records: Sequence[Any]) -> None:
        super().__init__(f"a batch of {len(records)} records could not be written")
        self.records = records


class AccountTakenError(Exception):
    """Another shard has opened an ad account of this id at the same moment. The batch is undone, nobody is to blame."""


class PlaceTakenError(Exception):
    """The ledger holds a row in the place of the next one, which nobody of ours has written. No record is to blame."""


class BeginFailedError(Exception):
    """What time or a new policy decides failed before any record was looked at; the cause says what."""


class ShardStoppedError(Exception):
    """Record after record fails, so the fault is not one record's. The message says what to do."""


def is_of_the_records(error: Exception) -> bool:
    """Whether an error came from what was to be written, and not from a server or from who owns the shard."""
    if isinstance(error, asyncpg.PostgresError):
        return str(error.sqlstate or "")[:2] in (_DATA, _CONSTRAINT, _TOO_LARGE)
    if isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError):
        return isinstance(error, ValueError)  # The client's own refusal of a value.
    others = OSError | TimeoutError | LeaseLostError | CannotGoOnError | BeginFailedError | ZonesDifferError
    return not isinstance(error, others)


def is_taken_account(error: Exception) -> bool:
    """Whether a batch broke the rule that ids of ad accounts are unique across shards."""
    return _taken(error) == _TAKEN_ACCOUNT


def is_taken_place(error: Exception) -> bool:
    """Whether a row that is there already stands in the place of a new one."""
    return _PLACES.fullmatch(_taken(error)) is not None


def _taken(error: Exception) -> str:
    """The constraint by which something is there already; empty for any other error."""
    return (error.constraint_name or "") if isinstance(error, asyncpg.UniqueViolationError) else ""


def internal_error(error: BaseException) -> Fault:
    """How the quarantine tells of an error that should not happen."""
    return Fault(INTERNAL_ERROR, said(error))


def said(error: BaseException) -> str:
    """`Type: text`, bounded, in characters that any log or table takes."""
    try:
        text = str(error)
    except Exception:
        text = "(it has no text)"
    return printable(f"{type(error).__name__}: {text}")[:_LONGEST_DETAIL]


class Failures:
    """What one shard's records have made fail, as long as this process writes it."""

    def __init__(self, shard: int) -> None:
        self._shard = shard
        self._culprits: dict[Place, Fault] = {}
        self._most = bounds.BOUNDS.records
        self._dead_end = ""
        # Internal errors since a record was last decided well: up to what is decided, and up to what is committed.
        self._in_a_row = self._committed_in_a_row = 0

    def begin_again(self) -> None:
        """The worker's memory was dropped: it goes on from what is committed."""
        self._in_a_row = self._committed_in_a_row

    def learn(self, error: RecordFailedError | BatchFailedError) -> None:
        """Draw the conclusion from what ended a worker: which record is to blame, or in which half it is."""
        cause = error.__cause__ or error
        if isinstance(error, RecordFailedError):
            self._blame(error.record, cause)
        elif len(error.records) == 1:
            self._blame(error.records[0], cause)
        else:
            self._most = max(1, len(error.records) // 2)
            log.warning(
                "a batch could not be written and is undone: half of its records are tried next",
                shard=self._shard,
                records=len(error.records),
                error=said(cause),
                exc_info=cause,
            )

    def mark(self, decoded: "Decoded") -> None:
        """Put in their faults where records are known to fail, and tell of those whose decoding failed."""
        parts: tuple[list[Any], list[Any]] = (decoded.commands, decoded.events)
        for part in parts:
            for record, held in part:
                if type(held) is Fault and held.reason == INTERNAL_ERROR and _place(record) not in self._culprits:
                    self._note(record, held, held.error)
            if self._culprits:
                part[:] = [(record, self._culprits.get(_place(record), held)) for record, held in part]

    def portion(self, decoded: "Decoded") -> "Decoded":
        """As many records as are to be tried next.

        Raises ShardStoppedError where the next one would be the fifth internal error in a row, or where one cannot even
        be quarantined.
        """
        if self._dead_end:
            raise ShardStoppedError(self._dead_end)
        portion = decoded.first(self._most)
        if not self._culprits:
            return portion
        portion = portion.first(_last_straw(portion.faults(), self._in_a_row))
        if decoded and not portion:
            raise ShardStoppedError(
                f"shard {self._shard}: {MOST_IN_A_ROW} records failed one after the other, so this is no matter of"
                " single records: see the errors before this one in the log; the shard goes on from the last of them"
                " when the allocation process starts again, with the fault mended and on the same broker"
            )
        return portion

    def decided(self, portion: "Decoded", decided: "Decoded") -> None:
        """So many of a portion were decided: the size of the next one follows what a batch can hold."""
        if len(decided) == len(portion):
            self._most = min(bounds.BOUNDS.records, 2 * self._most)
        elif decided:
            self._most = 2 * len(decided)
        self._in_a_row = self._at_the_end_of(decided, self._in_a_row)

    def committed(self, decided: "Decoded") -> None:
        """They are in the ledger, or in quarantine."""
        self._committed_in_a_row = self._at_the_end_of(decided, self._committed_in_a_row)
        if self._culprits:
            for part in (decided.commands, decided.events):
                for record, _ in part:
                    self._culprits.pop(_place(record), None)

    def _at_the_end_of(self, decided: "Decoded", before: int) -> int:
        """How many internal errors in a row there are after these records."""
        if not decided:
            return before
        if not self._culprits:
            return 0
        faults = decided.faults()
        run = len(list(takewhile(lambda fault: fault == INTERNAL_ERROR, reversed(faults))))
        return run + (before if run == len(faults) else 0)

    def _blame(self, record: Any, error: BaseException) -> None:
        """Quarantine this record from now on instead of deciding it."""
        if _place(record) in self._culprits:
            self._dead_end = (
                f"shard {self._shard}: {self._name(record)} cannot even be quarantined: {said(error)}; the shard goes"
                " on from there when the allocation process starts again, with the fault mended and on the same broker"
            )
        else:
            self._note(record, internal_error(error), error)

    def _note(self, record: Any, fault: Fault, error: BaseException | None = None) -> None:
        self._culprits[_place(record)] = fault
        metrics.INTERNAL_ERRORS.labels(self._shard).inc()
        log.error(
            "a record failed for a reason that nobody expected: it goes to quarantine as internal_error, the rest"
            " goes on; mend the fault and send the record back with 'drawdown quarantine replay'",
            shard=self._shard,
            topic=record.topic if isinstance(record, Raw) else SPEND_EVENTS,
            partition=record.partition if isinstance(record, Raw) else self._shard,
            offset=record.offset,
            error=fault.detail,
            exc_info=error,
        )

    def _name(self, record: Any) -> str:
        topic, partition = (record.topic, record.partition) if isinstance(record, Raw) else (SPEND_EVENTS, self._shard)
        return f"the record at {topic}-{partition}, offset {record.offset},"


def _place(record: Any) -> Place:
    if not isinstance(record, Raw):
        return SPEND_EVENTS, record.offset
    return (record.topic, record.offset) if record.forwarded_id is None else ("", record.forwarded_id)


def _last_straw(faults: Sequence[str | None], before: int) -> int:
    """The index of the internal error that is one too many in a row; where there is none, the end."""
    run = before
    for index, fault in enumerate(faults):
        run = run + 1 if fault == INTERNAL_ERROR else 0
        if run == MOST_IN_A_ROW:
            return index
    return len(faults)
