"""The most that one spend of a Business Center may be: what is above it waits in quarantine for somebody to look."""

from shared.rules.entries import Step
from shared.rules.state import NO_BOUND, BusinessCenter


def set_largest_spend(step: Step, center: BusinessCenter, amount: int | None) -> None:
    """From now on a spend above the amount is unusual; None: no spend is."""
    center.largest_spend = NO_BOUND if amount is None else amount
    step.write("largest_spend_set", center.id, details={"amount": amount})
