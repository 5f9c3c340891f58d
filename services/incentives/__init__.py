"""Incentives: deals, and what their cash spend unlocks (domain page, section 7).

- The rules are in `rating`, which does no I/O, and in `terms`, which says what a deal is.
- The read model is the schema `incentives`: `service` folds the ledger into it.
- The reads are in `deals`, `cash_spend`, `pacing` and `spend_detail`. They know nothing of HTTP: the API calls them.
"""
