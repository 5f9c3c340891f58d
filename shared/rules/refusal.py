"""How a command is refused. Codes are those of the contracts page."""

from shared.rules.money import LARGEST_BALANCE


class Refused(Exception):  # noqa: N818 - an outcome, not an error
    """The command changes nothing; `code` and `message` are its outcome."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def require(holds: bool, code: str, message: str) -> None:
    """Refuse with the code and message unless something holds."""
    if not holds:
        raise Refused(code, message)


def require_above_zero(amount: int | None) -> int:
    """The amount, if it is above zero; a command without, or with zero, breaks a rule by itself."""
    if amount is None or amount <= 0:
        raise Refused("invalid", "the amount must be above zero")
    return amount


def require_room(balance: int, amount: int) -> None:
    """No balance goes beyond 64 bits (domain page, section 1)."""
    require(balance + amount <= LARGEST_BALANCE, "invalid", "the balance would go beyond what 64 bits of micros hold")
