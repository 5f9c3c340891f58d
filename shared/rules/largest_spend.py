"""The largest amount that one spend of a Business Center may have. Larger spends wait in quarantine for a person."""

from shared.rules.entries import Step
from shared.rules.state import NO_BOUND, BusinessCenter


def set_largest_spend(step: Step, center: BusinessCenter, amount: int | None) -> None:
    """Quarantine spends above this amount (micros) from now on. None removes the bound."""
    center.largest_spend = NO_BOUND if amount is None else amount
    step.write("largest_spend_set", center.id, details={"amount": amount})
