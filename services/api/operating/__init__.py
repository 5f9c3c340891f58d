"""Operating: the routes of probes and metrics.

The way in is `operations.router`.
"""
