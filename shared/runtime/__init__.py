"""Settings, clock, logging, connections, health and the embedded servers."""
