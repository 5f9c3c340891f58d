"""The metrics of the allocation process for Prometheus."""

from prometheus_client import Counter, Gauge, Histogram

from shared.runtime.kafka import CONSUMED

EVENTS = Counter("drawdown_spends", "Spend events by outcome", ["shard", "outcome"])
ENTRIES = Counter("drawdown_entries", "Entries appended to the ledger", ["shard"])
COMMANDS = Counter("drawdown_commands", "Finance commands by outcome", ["shard", "status"])
PAUSES = Counter("drawdown_pauses", "Pause causes added", ["cause"])
RESUMES = Counter("drawdown_resumes", "Pause causes removed", ["cause"])
QUARANTINED = Counter("drawdown_quarantined", "Records quarantined", ["reason"])
QUARANTINED_BYTES = Counter("drawdown_quarantined_bytes", "Bytes of records kept in quarantine", ["reason"])
BATCHES_SET_ASIDE = Counter(
    "drawdown_batches_set_aside", "Kafka batches quarantined as a whole, because too large or damaged", ["shard"]
)
UNPACKED_BYTES = Counter("drawdown_unpacked_bytes", "Bytes of compressed records after decompression")
INTERNAL_ERRORS = Counter("drawdown_internal_errors", "Records that failed unexpectedly", ["shard"])
STOPPED = Gauge("drawdown_shard_stopped", "1: the shard is stopped, because several records in a row failed", ["shard"])
RESTARTS = Counter("drawdown_shard_restarts", "How often a shard's state was dropped and loaded again", ["shard"])
LAG = Gauge("drawdown_lag_records", "Records not yet decided", ["shard", "topic"])
LAG_SECONDS = Gauge("drawdown_lag_seconds", "How long the oldest record not yet decided has waited here", ["shard"])
OUTCOMES_WAITING = Gauge("drawdown_outcomes_waiting", "Outcomes not yet published at the last look", ["shard"])
GAPS = Counter("drawdown_fetch_gaps", "Fetches that left out a batch and were repeated", ["shard", "topic"])
POSITION = Gauge("drawdown_ledger_position", "Last position of the shard", ["shard"])
CLOCK_DIFFERENCE = Gauge("drawdown_clock_difference_seconds", "How far this process's clock is ahead of the database's")
AHEAD = Gauge(
    "drawdown_ledger_time_ahead_seconds", "How far the shard's time is ahead of this process's clock", ["shard"]
)
CAMPAIGNS = Gauge("drawdown_campaigns_in_memory", "Campaigns that are not at rest", ["shard"])
MEMORY_LIMIT = Gauge("drawdown_memory_limit_bytes", "Memory limit of the process; 0: unbounded")
BATCH_RECORDS = Histogram(
    "drawdown_batch_records", "Records in a batch", buckets=(1, 10, 100, 500, 1000, 2000, 5000, 10_000)
)
BATCH_SECONDS = Histogram(
    "drawdown_batch_seconds",
    "Time from the arrival of a batch's records to its commit",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)


def forget(shard: int) -> None:
    """Remove the metrics of a shard that this process no longer writes."""
    for topic in CONSUMED:
        LAG.remove(shard, topic)
    for gauge in (LAG_SECONDS, OUTCOMES_WAITING, POSITION, STOPPED, AHEAD):
        gauge.remove(shard)
