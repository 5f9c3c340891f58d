"""Operating: the commands `drawdown offsets …`, with which an operator helps a shard that cannot go on."""
