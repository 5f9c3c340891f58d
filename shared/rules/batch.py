"""The decisions of one batch. The next batch needs it, because it may be decided before this one is committed."""

from shared.rules.entries import Entry
from shared.rules.events import REVERSES, Event
from shared.rules.reversals import ChargedSpend, Part


class Batch:
    """The inputs that a batch has taken, and the entries that it appends from `position + 1` on.

    `events` holds the spends and reversals that it charged, by event id. `spends` holds the spends that it reversed,
    with what is left of each. `zones` holds the TZif bytes of the time zones that the shard uses for the first time, by
    name: the ledger records them. `position` is that of the last entry before the batch.
    """

    __slots__ = ("commands", "entries", "events", "indexed", "position", "spends", "starts", "zones")

    def __init__(self, position: int) -> None:
        self.position = position
        self.commands = 0
        self.entries: list[Entry] = []
        self.events: dict[bytes, Event] = {}
        self.spends: dict[bytes, ChargedSpend] = {}
        self.starts: dict[bytes, int] = {}
        self.zones: dict[str, bytes] = {}
        self.indexed = 0

    def last_position(self) -> int:
        """Return the position of the last entry so far, or the position before the batch if it has none."""
        return self.position + len(self.entries)

    def spend(self, event_id: bytes) -> ChargedSpend | None:
        """Return a spend that this batch has charged, with nothing of it reversed, or None if it did not."""
        event = self.events.get(event_id)
        if event is None or event[REVERSES] is not None:
            return None
        _, center_id, account_id, campaign_id, *_ = event
        start = self._start_of(event_id)
        _, _, occurred_at, _, _, day, period = self.entries[start]
        assert day is not None, "a spend has a day"
        assert period is not None, "a spend has a period"
        position = self.position + start + 1
        spend = ChargedSpend(center_id, account_id, campaign_id, occurred_at, position, day, period, [])
        for line, amount, _, source, _, _, _ in self.entries[start:]:
            if source != event_id or amount is None:
                break
            spend.parts.append(Part(line.holder, line.pocket, line.grant_id, line.cause, abs(amount)))
        return spend

    def _start_of(self, event_id: bytes) -> int:
        """Return the index of the first entry of a spend or reversal of this batch. Only their entries have a day."""
        for index in range(self.indexed, len(self.entries)):
            _, _, _, source, part, day, _ = self.entries[index]
            if part == 0 and source is not None and day is not None:
                self.starts[source] = index
        self.indexed = len(self.entries)
        return self.starts[event_id]
