"""What ends a process with one line instead of a stack trace."""

__all__ = ["CannotGoOnError"]


class CannotGoOnError(Exception):
    """Going on would be wrong or in vain until a person has acted. The message says what to do; it is all they see."""
