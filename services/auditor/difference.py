"""What an audit stops at."""


class DifferenceError(Exception):
    """The first difference found. The message is one sentence: where, what stands there, what should."""


def expect(holds: bool, message: str) -> None:
    """Raise the difference unless something holds."""
    if not holds:
        raise DifferenceError(message)
