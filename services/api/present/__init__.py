"""Reads of the present: what the read models hold now. Each module with a `router` is a way in."""
