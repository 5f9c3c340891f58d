"""Settings, clock, logging, connections and health: what every process needs."""
