"""Where PostgreSQL tells who follows the ledger that there is something new; the message is the shard's number.

A notification only wakes. Whoever is woken reads what there is, and reads all the same after a quiet second.
"""

LEDGER_CHANNEL = "ledger"  # after each batch
DELIVERY_CHANNEL = "delivery"  # after batches with pauses or resumes only
