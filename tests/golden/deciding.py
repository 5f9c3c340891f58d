"""Deciding the golden ledger again from its file, without a database."""

from collections.abc import Iterable
from typing import Any

from shared.contracts.commands import SentCommand, sent_command
from shared.ledger.decoding import EntryReader, StoredEntry
from shared.ledger.encoding import COPY_HEADER, COPY_TRAILER, MOST_BYTES, UNBOUNDED_BYTES, encode_entries
from shared.ledger.lookup import grants_of
from shared.ledger.merkle import CompactRange, leaf_hashes
from shared.ledger.replay import add_inputs
from shared.rules.entries import Entry
from shared.rules.events import REVERSES, with_currency
from shared.rules.grants import GrantKey, RecordedGrant
from shared.rules.reversals import ChargedSpend
from shared.rules.shard import Shard
from shared.rules.versions import BATCHES_BOUNDED
from shared.rules.ways import TOPIC
from tests.golden.recorded import SHARD, GoldenBatch, GoldenLedger
from tests.unit.pure_ledger import grants_in, spend_of


class Again:
    """The rules, with the state that each batch of the golden ledger leaves."""

    def __init__(self, ledger: GoldenLedger) -> None:
        self.rules = Shard(deduplication_days=None)
        self.tree = CompactRange()
        self.entries: list[Entry] = []
        self.starts: dict[bytes, int] = {}
        self._ledger = ledger
        self._reader = EntryReader()

    def decide(self, batch: GoldenBatch) -> tuple[list[bytes], bytes]:
        """Return the canonical bytes that the rules write for the batch's inputs, and the root after them."""
        stored = self._reader.decode(COPY_HEADER + b"".join(batch.rows) + COPY_TRAILER)
        inputs: list[Any] = []
        add_inputs(inputs, stored)
        policy, zones = self._ledger.terms(batch)
        reversed_ids = [item[REVERSES] for item in inputs if isinstance(item, tuple) and item[REVERSES] in self.starts]
        spends = {id: self._spend(id) for id in reversed_ids}
        named = grants_of([item.command for item in inputs if isinstance(item, SentCommand)], spends.values())
        self.rules.begin(batch.recorded_at, policy, None, spends, self._grants(named), zones)
        for item in inputs:
            if isinstance(item, SentCommand):
                assert self.rules.command(item.command, item.id, item.content, item.via) is None, item
            else:
                currency = self.rules.business_centers[item[1]].currency
                assert self.rules.event(with_currency(item, currency)) == ("charged", ""), item
        return self._append(batch, stored)

    def refused(self, batch: GoldenBatch) -> list[str | None]:
        """Return the present codes of the commands that a batch without entries refused."""
        policy, zones = self._ledger.terms(batch)
        refusals = [sent_command(content, TOPIC) for _, content, _ in batch.refusals]
        grants = self._grants(grants_of([sent.command for sent in refusals], ()))
        self.rules.begin(batch.recorded_at, policy, grants=grants, zones=zones)
        codes: list[str | None] = []
        for sent in refusals:
            answer = self.rules.command(sent.command, sent.id, sent.content)
            codes.append(None if answer is None else answer.code)
        return codes

    def _append(self, batch: GoldenBatch, stored: list[StoredEntry]) -> tuple[list[bytes], bytes]:
        first = len(self.entries) + 1
        for index, (_, _, _, source, part, day, _) in enumerate(self.rules.entries, len(self.entries)):
            if source is not None and part == 0 and day is not None:
                self.starts[source] = index
        self.entries += self.rules.entries
        most = MOST_BYTES if batch.rules >= BATCHES_BOUNDED else UNBOUNDED_BYTES
        rows = encode_entries(self.rules.entries, SHARD, first, batch.recorded_at, most)
        self.tree.append(leaf_hashes(rows))
        return rows, self.tree.root()

    def _grants(self, named: Iterable[GrantKey]) -> dict[GrantKey, RecordedGrant]:
        return grants_in(self.entries, self.rules.forgotten(named))

    def _spend(self, event_id: bytes) -> ChargedSpend:
        return spend_of(self.entries, event_id, self.starts[event_id])
