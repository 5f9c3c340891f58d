"""The log: its schema, appending, reading, following, hashing."""
