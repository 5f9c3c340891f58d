"""Allocation: the writer. It decides which pocket pays for each spend, and appends that to the ledger."""
