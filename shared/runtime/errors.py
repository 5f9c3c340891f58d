"""The error that ends a process with one line instead of a stack trace."""

__all__ = ["CannotGoOnError"]


class CannotGoOnError(Exception):
    """The process cannot continue until a person has acted. They see only the message, so it says what to do."""
