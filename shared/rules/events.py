"""A spend or reversal in the form that the rules take.

It is a plain tuple for the same reason as an entry is (`entries`). Code that needs most of its fields unpacks it; code
that needs one names its place.
"""

from typing import Final

# event id, business center, ad account, campaign, amount in micros, currency, occurred_at in µs, reverses, reason.
# Two events are the same if all of it is equal. `reverses` is the id of the reversed spend, and None for a spend.
Event = tuple[bytes, str, str, str, int, str, int, bytes | None, str | None]

EVENT_ID: Final = 0
BUSINESS_CENTER_ID: Final = 1
AMOUNT: Final = 4
REVERSES: Final = 7


def with_currency(event: Event, currency: str) -> Event:
    """Return the event with the currency of its Business Center, which its entries do not repeat."""
    event_id, center_id, account_id, campaign_id, amount, _, occurred_at, reverses, reason = event
    return event_id, center_id, account_id, campaign_id, amount, currency, occurred_at, reverses, reason
