"""Commands: publishes them and waits for their outcomes.

The way in is `publishing.router`.
"""
