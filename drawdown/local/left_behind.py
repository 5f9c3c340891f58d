"""The records that a run leaves undecided. An embedded broker loses them, because it keeps records in memory."""

from drawdown.api_client import Figures


def left_behind(seen: Figures | None, *, broker_keeps: bool) -> str | None:
    """Return a sentence about the undecided records, or None if there are none.

    Args:
        seen: allocation's metrics; None if it did not answer.
        broker_keeps: whether the broker outlives the run.

    """
    parts = ["an unknown number of records"] if seen is None else _undecided(seen)
    if not parts:
        return None
    fate = "the broker keeps them for the next run" if broker_keeps else "they are lost with the embedded broker"
    return f"not decided: {', '.join(parts)}; {fate}"


def _undecided(seen: Figures) -> list[str]:
    records = seen.sums_by("drawdown_lag_records", "shard")
    counted = [
        f"{count:,.0f} record{'s'[: count > 1]} of shard {shard}" for shard, count in sorted(records.items()) if count
    ]
    return counted + _uncounted(seen, "and " if counted else "")


def _uncounted(seen: Figures, link: str) -> list[str]:
    """Return a phrase about the shards that have stopped, because their new records are not counted."""
    stopped = sorted(shard for shard, is_so in seen.sums_by("drawdown_shard_stopped", "shard").items() if is_so)
    return [f"{link}all since shard {' and shard '.join(stopped)} stopped"] if stopped else []
