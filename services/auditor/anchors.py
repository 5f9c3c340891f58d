"""Roots that an earlier report or export noted: the ledger of today must still contain them."""

import json
from pathlib import Path
from typing import Any

from services.auditor.difference import DifferenceError, expect
from shared.ledger.merkle import CompactRange


class Anchors:
    """Noted roots by shard and position. An audit checks each when its tree has that size."""

    def __init__(self, roots: dict[tuple[int, int], str] | None = None) -> None:
        self._roots = {} if roots is None else dict(roots)
        self.checked = 0

    def check(self, shard: int, tree: CompactRange) -> None:
        """Compare the tree, which ends where a batch ends, with the root noted there, if any. Raise DifferenceError."""
        noted = self._roots.pop((shard, tree.size), None)
        if noted is not None:
            root = tree.root().hex()
            expect(
                noted == root,
                f"shard {shard}, position {tree.size}: the root noted earlier is {noted}, the ledger's is {root}:"
                " something at or before that position was rewritten",
            )
            self.checked += 1

    def finish(self, shard: int) -> None:
        """Raise DifferenceError if a root of this shard is unchecked, although the shard was read to its end."""
        for noted_shard, position in self._roots:
            if noted_shard == shard and position:
                raise DifferenceError(
                    f"shard {shard}, position {position}: a root was noted earlier, but no batch ends there"
                )


def read_anchors(file: Path | None) -> Anchors:
    """Return the roots of an earlier `--json` report or of an export's manifest; none if `file` is None.

    Raise ValueError if the file holds none, OSError if it cannot be read.
    """
    if file is None:
        return Anchors()
    try:
        noted: list[dict[str, Any]] = json.loads(file.read_text())["roots"]
        return Anchors({(int(each["shard"]), int(each["position"])): str(each["root"]) for each in noted})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{file} holds no "roots" of an earlier report or export') from error
