"""Memory: what a shard holds in memory, how it is kept and loaded again, and what is looked up because it rests."""
