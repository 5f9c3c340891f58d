"""Canonical bytes and the Merkle tree, which an auditor can compute without our code."""

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.ledger.decoding import EntryReader
from shared.ledger.encoding import COPY_HEADER, COPY_TRAILER, FIELDS, encode_entries
from shared.ledger.merkle import EMPTY_ROOT, CompactRange, leaf_hashes
from shared.rules.entries import Entry, Line, canonical_json

MICROS = st.integers(-(2**63), 2**63 - 1)
TIMES = st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999)
DAYS = st.integers(1, 3_652_059)
TEXTS = st.none() | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
IDS = st.none() | st.binary(min_size=16, max_size=16)


def line_of(values: tuple[str | None, ...], reverses: bytes | None) -> Line:
    kind, center, account, campaign, holder, pocket, grant, cause, details = values
    return Line(
        kind or "",
        center or "",
        account,
        campaign,
        holder=holder,
        pocket=pocket,
        grant_id=grant,
        cause=cause,
        reverses=reverses,
        details=details,
    )


LINES = st.builds(line_of, st.tuples(*[TEXTS] * 9), IDS)
ENTRIES = st.tuples(
    LINES, st.none() | MICROS, TIMES, IDS, st.integers(0, 2**31 - 1), st.none() | DAYS, st.none() | DAYS
)


@given(st.lists(ENTRIES, max_size=5), st.integers(0, 1023), st.integers(1, 2**62), TIMES)
def test_encoded_entries_are_decoded_unchanged(entries: list[Entry], shard: int, first: int, recorded_at: int) -> None:
    rows = encode_entries(entries, shard, first, recorded_at)
    stored = EntryReader().decode(COPY_HEADER + b"".join(rows) + COPY_TRAILER)
    assert [item.encoded for item in stored] == rows
    assert [item.position for item in stored] == list(range(first, first + len(entries)))
    for item, entry in zip(stored, entries, strict=True):
        assert item.shard == shard
        assert item.recorded_at == recorded_at
        assert item.entry[1:] == entry[1:]
        assert fields_of(item.entry[0]) == fields_of(entry[0])


def fields_of(line: Line) -> list[object]:
    return [getattr(line, name) for name in Line.__slots__ if name != "encoded"]


def test_the_bytes_are_those_that_the_documentation_describes() -> None:
    line = Line("cash_debit", "bc-1", "a-1", "c-1", holder="ad_account", pocket="cash")
    [row] = encode_entries([(line, -5, 946_684_800_000_001, bytes(16), 0, 730_121, 730_120)], 3, 7, 946_684_800_000_002)
    text = [b"cash_debit", b"ad_account", b"cash", None, b"bc-1", b"a-1", b"c-1", None, None, None]
    expected = struct.pack(">hihiqiqiqiq", 19, 2, 3, 8, 7, 8, -5, 8, 1, 8, 2)
    expected += struct.pack(">i", 16) + bytes(16) + struct.pack(">iiiiii", 4, 0, 4, 1, 4, 0)
    for value in text:
        expected += struct.pack(">i", -1) if value is None else struct.pack(">i", len(value)) + value
    assert row == expected
    assert len(FIELDS) == 19


def test_moving_a_boundary_between_fields_changes_the_bytes() -> None:
    first, second = Line("deposit", "bc-1", "ab", "c"), Line("deposit", "bc-1", "a", "bc")
    rows = encode_entries([(line, 1, 0, None, 0, None, None) for line in (first, second)], 0, 1, 0)
    assert rows[0][-30:] != rows[1][-30:]


def rfc_6962_root(leaves: list[bytes]) -> bytes:
    """Return the root by RFC 6962, section 2.1, word for word: split at the largest power of two below n."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + rfc_6962_root(leaves[:split]) + rfc_6962_root(leaves[split:])).digest()


@given(st.lists(st.integers(0, 40), max_size=8))
def test_the_root_is_that_of_rfc_6962_however_the_leaves_are_added(sizes: list[int]) -> None:
    leaves = leaf_hashes(number.to_bytes(4, "big") for number in range(sum(sizes)))
    tree, done = CompactRange(), 0
    for size in sizes:
        tree.append(leaves[done : done + size])
        tree = CompactRange(tree.size, tree.frontier())
        done += size
        assert tree.root() == rfc_6962_root(leaves[:done])


def test_the_root_of_known_leaves_is_the_published_one() -> None:
    """The leaves "", 0x00, 0x10 are test vectors of Certificate Transparency."""
    tree = CompactRange()
    assert tree.root() == EMPTY_ROOT
    tree.append(leaf_hashes((b"", b"\x00", b"\x10")))
    assert tree.root().hex() == "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"


def test_a_frontier_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match="not the frontier"):
        CompactRange(3, bytes(32))


def test_canonical_json_has_one_form() -> None:
    assert canonical_json({"b": [1, 2], "a": "é"}) == '{"a":"\\u00e9","b":[1,2]}'
