"""Allocation is the writer: it decides which pocket pays for each spend, and appends the result to the ledger."""
