"""What one batch may hold, so that its memory, its transaction and the time in which other shards wait stay small."""

from dataclasses import dataclass
from math import inf
from typing import Final


@dataclass(frozen=True, slots=True)
class Bounds:
    """A batch is closed by whichever of them is reached first; one record is never cut in two.

    A reversal on an exhausted Business Center of 10,000 accounts writes 10,000 entries: records alone bound nothing.
    """

    records: int
    entries: int
    seconds: float


BOUNDS: Final = Bounds(records=5_000, entries=20_000, seconds=0.25)
UNBOUNDED: Final = Bounds(records=2**62, entries=2**62, seconds=inf)
MOST_FORWARDED_BYTES: Final = 8 * 1024 * 1024
