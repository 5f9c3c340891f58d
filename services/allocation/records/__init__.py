"""Records: from the bytes that the broker sends to events and commands that can be decided, and rows for quarantine."""
