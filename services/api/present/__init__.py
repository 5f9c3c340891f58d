"""The present: routes that answer what is so now, from the read models and the outcomes of records.

Deals are given here too. Each module with a `router` is a way in.
"""
