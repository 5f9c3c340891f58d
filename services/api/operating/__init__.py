"""What operators ask: probes, metrics, who writes the shards, and what grows."""
