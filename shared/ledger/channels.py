"""The channels on which PostgreSQL notifies followers of the ledger; the message is the shard's number.

A notification only wakes a follower. It then reads what there is, as it also does after a second without notifications.
"""

LEDGER_CHANNEL = "ledger"  # after each batch
DELIVERY_CHANNEL = "delivery"  # after batches with pauses or resumes only
