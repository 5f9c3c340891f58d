"""The error with which an audit stops: the first difference."""


class DifferenceError(Exception):
    """The first difference found. The message is one sentence: where it is, what is there, what should be there."""


def expect(holds: bool, message: str) -> None:
    """Raise DifferenceError with this message unless `holds` is true."""
    if not holds:
        raise DifferenceError(message)
