"""A second model of the domain, plain and slow, written from the domain page alone.

It shares no code with the rules that it checks. `Model` takes commands and events in the order in which a shard decides
them, with the ledger time, and predicts their outcomes.
"""

from tests.model.model import Model, Outcome

__all__ = ["Model", "Outcome"]
