"""The ledger: its schema, and how processes read, follow, hash and decide it again."""
