"""What one batch has decided: the next one needs it, because it may be decided before this one is committed."""

from shared.rules.corrections import ChargedSpend, Part
from shared.rules.entries import Entry

# event id, business center, ad account, campaign, amount in micros, currency, occurred_at in µs, reverses, reason.
# All of it is the event's content; `reverses` is None for a spend.
Event = tuple[bytes, str, str, str, int, str, int, bytes | None, str | None]


class Batch:
    """The inputs that a batch has taken, and the entries that it appends from `position + 1` on.

    `spends` are those that it has reversed, with what is left of them. `zones` are the time zones that the shard had no
    use for before, with their TZif bytes: the ledger records them.
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
        """Return the position of the last entry so far; that before the batch where it has none."""
        return self.position + len(self.entries)

    def spend(self, event_id: bytes) -> ChargedSpend | None:
        """Return a spend that this batch has charged, with nothing of it reversed; None: it has not."""
        event = self.events.get(event_id)
        if event is None or event[7] is not None:
            return None
        start = self._start_of(event_id)
        _, _, occurred_at, _, _, day, period = self.entries[start]
        assert day is not None, "a spend has a day"
        assert period is not None, "a spend has a period"
        spend = ChargedSpend(event[1], event[2], event[3], occurred_at, self.position + start + 1, day, period, [])
        for line, amount, _, source, _, _, _ in self.entries[start:]:
            if source != event_id or amount is None:
                break
            spend.parts.append(Part(line.holder, line.pocket, line.grant_id, line.cause, abs(amount)))
        return spend

    def _start_of(self, event_id: bytes) -> int:
        """The index of the first entry of a spend or reversal of this batch: only they have a day."""
        for index in range(self.indexed, len(self.entries)):
            entry = self.entries[index]
            if entry[4] == 0 and entry[3] is not None and entry[5] is not None:
                self.starts[entry[3]] = index
        self.indexed = len(self.entries)
        return self.starts[event_id]
