"""Reads of the past: figures as they stood at a time, day by day, and the entries behind them.

The way in for figures is `history`, which `?at=` of the present's routes asks; `series` and `ledger` have routes of
their own.
"""
