"""Faults on purpose: services killed at every step, servers taken away, and an outside checker of what is left."""
