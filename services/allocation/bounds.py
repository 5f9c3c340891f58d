"""What one batch may hold, so that its memory, its transaction and the time in which other shards wait stay small.

Kafka bounds what a producer packs, not what that unpacks to; so does every limit of a fetch. Nothing here is a setting:
whoever writes a topic must find the same bounds everywhere.
"""

from dataclasses import dataclass
from math import inf
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Bounds:
    """A batch is closed by whichever of them is reached first; one record is never cut in two.

    A reversal on an exhausted Business Center of 10,000 accounts writes 10,000 entries: records alone bound nothing.
    `bytes` are those of the records that are held at once, and those that go to quarantine, to other shards and into
    outcomes.
    """

    records: int
    bytes: int
    entries: int
    seconds: float


BOUNDS: Final = Bounds(records=5_000, bytes=8 * MIB, entries=20_000, seconds=0.25)
UNBOUNDED: Final = Bounds(records=2**62, bytes=2**62, entries=2**62, seconds=inf)

# What a batch of Kafka's may unpack to. Above it the batch goes to quarantine as a whole.
UNPACKED_BYTES: Final = 16 * MIB
# And how many records it may hold. The shortest valid command takes 191 bytes unpacked, the shortest spend 205, so at
# most 87,838 of them fit, whatever the codec. Empty records come by the million, packed to less than a byte each.
RECORDS_OF_A_BATCH: Final = 100_000
# A value above the first, or a record above the second with its key and headers, is too large.
LARGEST_VALUE_BYTES: Final = 64 * KIB
LARGEST_RECORD_BYTES: Final = 80 * KIB
# What a header takes beside its bytes, in memory and in quarantine.
HEADER_BYTES: Final = 64
# What quarantine keeps of what is too large: of its value, and of its key and headers together.
KEPT_BYTES: Final = 4 * KIB
