"""The table in which each follower of the ledger keeps its position."""


def checkpoints_of(follower: str) -> str:
    """Return the name of the table that holds the checkpoints of this follower alone.

    Each follower has its own, because a login that may move a checkpoint may also lock the table against its readers.
    """
    return f"ledger.checkpoints_{follower}"
