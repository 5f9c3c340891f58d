"""Checks: each asks the database a few questions about rows that no audit reads one by one, or about its guards."""
