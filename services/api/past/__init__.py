"""The past: figures as they stood at a time, day by day, and the entries behind them.

The present's routes call `history` for `?at=`; `series` and `ledger` have routes of their own.
"""
