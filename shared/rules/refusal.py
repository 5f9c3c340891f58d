"""Refusal of a command. The codes are those of the contracts page."""

from shared.rules.money import LARGEST_BALANCE


class Refused(Exception):  # noqa: N818 - an outcome, not an error
    """Raised for a command that changes nothing. `code` and `message` are its outcome."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def require(holds: bool, code: str, message: str) -> None:
    """Raise Refused with this code and message unless `holds`."""
    if not holds:
        raise Refused(code, message)


def require_above_zero(amount: int | None) -> int:
    """Return the amount (micros). Raise Refused (`invalid`) if it is missing or not above zero."""
    if amount is None or amount <= 0:
        raise Refused("invalid", "the amount must be above zero")
    return amount


def require_room(balance: int, amount: int) -> None:
    """Raise Refused (`invalid`) if the balance would not fit into 64 bits of micros (domain page, section 1)."""
    require(balance + amount <= LARGEST_BALANCE, "invalid", "the balance would go beyond what 64 bits of micros hold")
