"""Words of the vocabulary in messages that go out: texts, for a ledger may hold words of a newer version."""

from typing import Any

from pydantic import Field


def known(*words: str) -> Any:
    """A text that is one of these words today; readers take others too."""
    return Field(description=f"One of {', '.join(words)}; a newer version may add others", examples=[words[0]])
