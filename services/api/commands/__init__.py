"""Commands: publishes them, waits for their outcomes, and sends quarantined records back.

The way in is `publishing.router`.
"""
