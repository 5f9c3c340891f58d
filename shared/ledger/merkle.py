"""The Merkle tree over a shard's entries, as RFC 6962 section 2.1 defines it.

It is kept as a compact range: the roots of the perfect subtrees that the present leaves form, largest first.
"""

from collections.abc import Iterable
from hashlib import sha256

HASH_BYTES = 32
EMPTY_ROOT = sha256(b"").digest()


def leaf_hashes(encoded: Iterable[bytes]) -> list[bytes]:
    """Return the leaf hash of each entry's canonical bytes. On this hot path a call for each would cost too much."""
    return [sha256(b"\x00" + each).digest() for each in encoded]


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return sha256(b"\x01" + left + right).digest()


class CompactRange:
    """The tree over the first `size` leaves: enough to append leaves and to compute the root."""

    __slots__ = ("_peaks", "size")

    def __init__(self, size: int = 0, frontier: bytes = b"") -> None:
        """Continue from a tree of this size with this frontier. Raise ValueError if they do not fit together."""
        hashes = [frontier[start : start + HASH_BYTES] for start in range(0, len(frontier), HASH_BYTES)]
        heights = [height for height in range(size.bit_length() - 1, -1, -1) if size >> height & 1]
        if len(frontier) != HASH_BYTES * len(heights):
            raise ValueError(f"{len(frontier)} bytes are not the frontier of a tree of {size} leaves")
        self.size = size
        self._peaks = dict(zip(heights, hashes, strict=True))

    def append(self, leaves: Iterable[bytes]) -> None:
        """Append leaf hashes, level by level. This takes about one more hash for each leaf."""
        nodes = list(leaves)
        size = self.size + len(nodes)
        height = 0
        while nodes:
            if height in self._peaks:
                nodes.insert(0, self._peaks.pop(height))
            if len(nodes) % 2:
                self._peaks[height] = nodes.pop()
            pairs = iter(nodes)
            nodes = [sha256(b"\x01" + left + right).digest() for left, right in zip(pairs, pairs, strict=True)]
            height += 1
        self.size = size

    def root(self) -> bytes:
        """Return the root of the tree; the hash of no bytes if it has no leaves."""
        peaks = [self._peaks[height] for height in sorted(self._peaks)]
        if not peaks:
            return EMPTY_ROOT
        root = peaks[0]
        for peak in peaks[1:]:
            root = node_hash(peak, root)
        return root

    def frontier(self) -> bytes:
        """Return the roots of the perfect subtrees, largest first, with which the constructor continues from here."""
        return b"".join(self._peaks[height] for height in sorted(self._peaks, reverse=True))
