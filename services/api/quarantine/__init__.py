"""Quarantine: lists the records that could not be decided, and sends them back to their shards after a fix.

The way in is `routes.router`. Nothing here is about an audit's replay, which decides the whole ledger again.
"""
