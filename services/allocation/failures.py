"""Failures of deciding: which record is to blame, and when a shard has to stop.

A worker that fails is dropped with its memory, and the shard is loaded again. This module remembers what must outlive
the worker: which records to quarantine instead of deciding them, and how many to take at once until one is found.
"""

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Final

import asyncpg
import structlog

from services.allocation import metrics
from services.allocation.lease import LeaseLostError
from services.allocation.records import batch_bounds
from services.allocation.records.batch_decoding import DecodedRecords
from services.allocation.records.record_decoding import Fault, Raw, printable
from shared.ledger.zones import ZonesDifferError
from shared.runtime.errors import CannotGoOnError
from shared.runtime.kafka import SPEND_EVENTS

log = structlog.get_logger()

INTERNAL_ERROR: Final = "internal_error"
MOST_IN_A_ROW: Final = 5
_LONGEST_DETAIL: Final = 500
_TAKEN_ACCOUNT: Final = "ad_accounts_pkey"
# The keys of entries, batches, outcomes and quarantined or forwarded records. Only the owner of a lease writes these.
_PLACES: Final = re.compile(r"(entries_\d+|batches|outcomes|quarantine_\d{4}_\d\d|forwarded)_pkey")
# Classes of SQLSTATE for data that does not fit. All others concern the server or the session.
_DATA, _CONSTRAINT, _TOO_LARGE = "22", "23", "54"

# What identifies a record of a shard: topic and offset, or an empty topic and the id under which it was forwarded.
Place = tuple[str, int]


class RecordFailedError(Exception):
    """Deciding this record raised an unexpected error, which is the cause. Nothing of its batch is written."""

    def __init__(self, record: Any) -> None:
        super().__init__("a record could not be decided")
        self.record = record


class BatchFailedError(Exception):
    """A batch could not be written because of its content, and is undone. The cause is the error of the database."""

    def __init__(self, records: Sequence[Any]) -> None:
        super().__init__(f"a batch of {len(records)} records could not be written")
        self.records = records


class AccountTakenError(Exception):
    """Another shard has just opened an ad account with this id. The batch is undone; no record is to blame."""


class PlaceTakenError(Exception):
    """The ledger holds a row in the place of the next one, which no owner has written. No record is to blame."""


class BeginFailedError(Exception):
    """A timer or a new policy failed before any record was decided. The message says how."""


class ShardStoppedError(Exception):
    """Several records in a row have failed, so no single record is at fault. The message says what to do."""


def is_of_the_records(error: Exception) -> bool:
    """Return whether the written data caused an error, and not a server or the loss of the lease."""
    if isinstance(error, asyncpg.PostgresError):
        return str(error.sqlstate or "")[:2] in (_DATA, _CONSTRAINT, _TOO_LARGE)
    if isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError):
        return isinstance(error, ValueError)  # asyncpg itself has refused a value.
    others = OSError | TimeoutError | LeaseLostError | CannotGoOnError | BeginFailedError | ZonesDifferError
    return not isinstance(error, others)


def is_taken_account(error: Exception) -> bool:
    """Return whether a batch broke the rule that ids of ad accounts are unique across shards."""
    return _taken(error) == _TAKEN_ACCOUNT


def is_taken_place(error: Exception) -> bool:
    """Return whether another row already stands in the place of a new one."""
    return _PLACES.fullmatch(_taken(error)) is not None


def _taken(error: Exception) -> str:
    """Return the name of the unique constraint that an error violates; empty for any other error."""
    return (error.constraint_name or "") if isinstance(error, asyncpg.UniqueViolationError) else ""


def internal_error(error: BaseException) -> Fault:
    """Return the fault with which quarantine describes an unexpected error."""
    return Fault(INTERNAL_ERROR, describe(error))


def describe(error: BaseException) -> str:
    """Return an error as `Type: text`, bounded in length, in characters that any log or table takes."""
    try:
        text = str(error)
    except Exception:
        text = "(it has no text)"
    return printable(f"{type(error).__name__}: {text}")[:_LONGEST_DETAIL]


class Failures:
    """The failures that the records of one shard have caused since this process took it."""

    def __init__(self, shard: int) -> None:
        self._shard = shard
        self._culprits: dict[Place, Fault] = {}
        self._most = batch_bounds.BOUNDS.records
        self._dead_end = ""
        # Internal errors in a row: after the last decided record, and after the last committed one.
        self._in_a_row = self._committed_in_a_row = 0

    def begin_again(self) -> None:
        """Go back to the last commit, because the memory of the worker was dropped."""
        self._in_a_row = self._committed_in_a_row

    def learn(self, error: RecordFailedError | BatchFailedError) -> None:
        """Conclude from the error that ended a worker which record is to blame, or take half as many next."""
        cause = error.__cause__ or error
        if isinstance(error, RecordFailedError):
            self._blame(error.record, cause)
        elif len(error.records) == 1:
            self._blame(error.records[0], cause)
        else:
            self._most = max(1, len(error.records) // 2)
            log.warning(
                "a batch could not be written and is undone: the first half of its records is tried next",
                shard=self._shard,
                records=len(error.records),
                error=describe(cause),
                exc_info=cause,
            )

    def mark(self, decoded: DecodedRecords) -> None:
        """Replace records that are known to fail by their faults, and log those whose decoding failed unexpectedly."""
        parts: tuple[list[Any], list[Any]] = (decoded.commands, decoded.events)
        for part in parts:
            for record, held in part:
                if type(held) is Fault and held.reason == INTERNAL_ERROR and _place(record) not in self._culprits:
                    self._note(record, held, held.error)
            if self._culprits:
                part[:] = [(record, self._culprits.get(_place(record), held)) for record, held in part]

    def portion(self, decoded: DecodedRecords) -> DecodedRecords:
        """Return as many records as should be tried next.

        Raises ShardStoppedError if the next record would be the fifth internal error in a row, or if a record cannot
        even be quarantined.
        """
        if self._dead_end:
            raise ShardStoppedError(self._dead_end)
        portion = decoded.first(self._most)
        if not self._culprits:
            return portion
        portion = portion.first(_last_straw(portion.faults(), self._in_a_row))
        if decoded and not portion:
            raise ShardStoppedError(
                f"shard {self._shard}: {MOST_IN_A_ROW} records in a row failed, so no single record is at fault:"
                " see the errors before this one in the log, fix the fault and start the allocation process again"
                " with the same broker; the shard then continues from the last of these records"
            )
        return portion

    def decided(self, portion: DecodedRecords, decided: DecodedRecords) -> None:
        """Note which records of a portion were decided, and adapt the size of the next portion."""
        if len(decided) == len(portion):
            self._most = min(batch_bounds.BOUNDS.records, 2 * self._most)
        elif decided:
            self._most = 2 * len(decided)
        self._in_a_row = self._at_the_end_of(decided, self._in_a_row)

    def committed(self, decided: DecodedRecords) -> None:
        """Note that these records are in the ledger or in quarantine."""
        self._committed_in_a_row = self._at_the_end_of(decided, self._committed_in_a_row)
        if self._culprits:
            for part in (decided.commands, decided.events):
                for record, _ in part:
                    self._culprits.pop(_place(record), None)

    def _at_the_end_of(self, decided: DecodedRecords, before: int) -> int:
        """Return how many internal errors in a row there are after these records."""
        if not decided:
            return before
        if not self._culprits:
            return 0
        faults = decided.faults()
        run = len(list(takewhile(lambda fault: fault == INTERNAL_ERROR, reversed(faults))))
        return run + (before if run == len(faults) else 0)

    def _blame(self, record: Any, error: BaseException) -> None:
        """Quarantine this record from now on instead of deciding it. If that has failed too, stop the shard."""
        if _place(record) in self._culprits:
            self._dead_end = (
                f"shard {self._shard}: {self._name(record)} cannot even be quarantined: {describe(error)}; fix the"
                " fault and start the allocation process again with the same broker: the shard continues from there"
            )
        else:
            self._note(record, internal_error(error), error)

    def _note(self, record: Any, fault: Fault, error: BaseException | None = None) -> None:
        self._culprits[_place(record)] = fault
        metrics.INTERNAL_ERRORS.labels(self._shard).inc()
        log.error(
            "a record failed unexpectedly: it goes to quarantine as internal_error, and the other records continue;"
            " fix the fault, then send the record back with 'drawdown quarantine replay'",
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
    """Return the index of the internal error that is one too many in a row; the length if there is none."""
    run = before
    for index, fault in enumerate(faults):
        run = run + 1 if fault == INTERNAL_ERROR else 0
        if run == MOST_IN_A_ROW:
            return index
    return len(faults)
