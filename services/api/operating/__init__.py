"""Operating: probes, metrics, the writers of the shards, and tables that grow."""
