"""The present: routes that show the present state, from the read models and the outcomes of records.

Each module with a `router` is a way in.
"""
