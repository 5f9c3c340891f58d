"""The chain of a shard: positions, canonical bytes, leaf hashes, roots. It splits rows but does not decode them."""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256

import asyncpg

from services.auditor.difference import DifferenceError, expect
from shared.ledger.decoding import copy_entries, split_rows
from shared.ledger.merkle import CompactRange
from shared.ledger.replay import ReplayDiffersError, StoredBatch, batches_after, read_in_groups

_POSITION = slice(12, 20)  # after the number of fields and the shard; each field follows its length


@dataclass(slots=True)
class Link:
    """A batch with the canonical bytes of its entries."""

    batch: StoredBatch
    rows: list[bytes]


async def links(
    connection: asyncpg.Connection, shard: int, last: int, progress: Callable[[int], None]
) -> AsyncIterator[Link]:
    """Yield the batches of a shard from the first one up to the position `last`.

    Call `progress` with each position reached. Raise DifferenceError where positions have a gap.
    """

    async def read(first: int, last: int, most_bytes: int) -> list[bytes]:
        return split_rows(await copy_entries(connection, shard, first, last, most_bytes))

    def where(position: int) -> str:
        return f"shard {shard}, position {position}"

    position = 0
    try:
        async for batches in batches_after(connection, shard, 0, last):
            async for group, rows in read_in_groups(batches, read, where):
                first = group[0].first
                expect(first == position + 1, f"{where(position + 1)}: the next batch begins at {first}")
                for link in _cut(shard, group, rows):
                    yield link
                position = group[-1].last
                progress(position)
    except ReplayDiffersError as error:
        raise DifferenceError(str(error)) from error
    expect(position == last, f"{where(position + 1)}: no batch holds it, but {last} is the last")


def _cut(shard: int, group: list[StoredBatch], rows: list[bytes]) -> Iterator[Link]:
    start, expected = 0, group[0].first
    for row in rows:
        if int.from_bytes(row[_POSITION], "big") != expected:
            break
        expected += 1
    expect(expected == group[-1].last + 1, f"shard {shard}, position {expected}: the entry is missing")
    for batch in group:
        end = start + batch.last - batch.first + 1
        expect(
            batch.first == group[0].first + start and end > start,
            f"shard {shard}, position {group[0].first + start}: the next batch begins at {batch.first}",
        )
        yield Link(batch, rows[start:end])
        start = end


def grow(tree: CompactRange, link: Link, shard: int) -> None:
    """Append a batch to the tree. Raise DifferenceError if the batch names another root."""
    tree.append([sha256(b"\0" + row).digest() for row in link.rows])
    root = tree.root()
    expect(
        root == link.batch.root,
        f"shard {shard}, position {link.batch.first} to {link.batch.last}: the entries add up to the root {root.hex()},"
        f" but the batch holds {link.batch.root.hex()}",
    )
