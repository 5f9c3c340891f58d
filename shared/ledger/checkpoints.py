"""Where each follower of the ledger keeps how far it has got."""


def checkpoints_of(follower: str) -> str:
    """Return the name of the table that holds a follower's checkpoints, and nobody else's.

    A login that may move a checkpoint may also lock its table, against all who read it.
    """
    return f"ledger.checkpoints_{follower}"
