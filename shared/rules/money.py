"""Exact money: integer micros (10⁻⁶ of the currency unit) inside, decimal strings outside.

Source: the domain page, section 1.
"""

MICROS_PER_UNIT = 1_000_000
LARGEST_BALANCE = 2**63 - 1


def parse_amount(text: str) -> int:
    """Return the micros of a well-formed decimal string with up to six places: `"0.012345"` → 12345."""
    whole, _, fraction = text.partition(".")
    return int(whole + fraction.ljust(6, "0"))


def format_micros(micros: int) -> str:
    """Return an amount in micros as a decimal string with six places: -12345 → `"-0.012345"`."""
    whole, fraction = divmod(abs(micros), MICROS_PER_UNIT)
    return f"{'-' if micros < 0 else ''}{whole}.{fraction:06d}"
