"""Replayed: decides a shard's ledger again, folds its entries, and compares both with what was recorded and derived."""
