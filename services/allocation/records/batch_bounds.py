"""The bounds of one batch, which keep its memory, its transaction and the wait of other shards small.

Kafka and all limits of a fetch bound packed bytes, not what these unpack to. None of the bounds is a setting, because a
producer must meet the same ones everywhere.

Three more bounds stand with what they bound: the entries of timers (`shared/rules/shard.py`), the ad accounts that a
batch opens (`account_locks.py`) and the campaigns that it brings back into memory (`looking_up.py`).
"""

from dataclasses import dataclass
from math import inf
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Bounds:
    """The first bound that is reached closes a batch. A record is never split between batches.

    A bound on records alone is not enough: a reversal on an exhausted Business Center of 10,000 accounts writes 10,000
    entries. `bytes` bounds the records that are held at once, and also those that go to quarantine, to other shards and
    into outcomes.
    """

    records: int
    bytes: int
    entries: int
    seconds: float


BOUNDS: Final = Bounds(records=5_000, bytes=8 * MIB, entries=20_000, seconds=0.25)
UNBOUNDED: Final = Bounds(records=2**62, bytes=2**62, entries=2**62, seconds=inf)

# A batch of Kafka that unpacks to more than this goes to quarantine as a whole.
UNPACKED_KAFKA_BATCH_BYTES: Final = 16 * MIB
# One with more records than this does too. The shortest valid command takes 191 bytes unpacked and the shortest spend
# 205, so at most 87,838 valid ones fit into the bytes. Millions of empty records pack to less than a byte each.
RECORDS_OF_A_KAFKA_BATCH: Final = 100_000
# A record is too large if its value is above the first bound, or its key, value and headers together above the second.
LARGEST_VALUE_BYTES: Final = 64 * KIB
LARGEST_RECORD_BYTES: Final = 80 * KIB
# A header takes this much besides its bytes, in memory and in quarantine.
HEADER_BYTES: Final = 64
# Of a record that is too large, quarantine keeps this much of the value, and this much of key and headers together.
KEPT_BYTES: Final = 4 * KIB
