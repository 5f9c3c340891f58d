"""The present: routes that answer what is so now, from the read models and the outcomes of records.

Each module with a `router` is a way in.
"""
