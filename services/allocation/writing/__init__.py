"""Writing: the transaction that appends a batch, and what follows from it."""
