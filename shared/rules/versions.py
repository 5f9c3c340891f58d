"""The versions of the rules. Every batch in the ledger names the version that decided it.

A rule that changes branches on `policy.rules` and keeps its old branch, so that a replay decides old batches as they
were decided. docs/decisions/changing-a-rule.md says how.
"""

from typing import Final

CHANGES: Final = {
    1: "the rules of the first ledgers",
    2: "a batch bounds the timers that it fires; long lists go on in further entries; a command's content is bounded;"
    " enabling checks that the credit line fits in 64 bits; timers that are due fire before another policy, version or"
    " time-zone release comes into force",
    3: "the first entry of a command says by which way it came, and a policy may bound what the topic names; what a"
    " Business Center may have is bounded, and it may bound a single spend; in an account with many campaigns, one that"
    " nothing can pay for stops when it spends next",
    4: "a Business Center holds at most its share of a shard's memory",
    5: "a reversal is refused for 64 bits only if a balance to which it returns money would go beyond them",
}
BATCHES_BOUNDED: Final = 2
CENTERS_BOUNDED: Final = 3
MEMORY_SHARED: Final = 4
RETURNS_COUNTED: Final = 5
CURRENT: Final = max(CHANGES)
