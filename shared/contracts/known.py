"""Vocabulary in outgoing messages: plain strings, because a ledger may hold words of a newer version."""

from typing import Any

from pydantic import Field


def known(*words: str) -> Any:
    """Describe a string field that holds one of these words today. Readers accept others too."""
    return Field(description=f"One of {', '.join(words)}; a newer version may add others", examples=[words[0]])
