"""A journal of what was sent to the platform, kept by the senders: the checker's only source of what must be true."""

from dataclasses import dataclass, field
from typing import Any

Record = dict[str, Any]


@dataclass(slots=True)
class Published:
    """A valid spend or reversal. `amount` is in micros.

    `places` are the acknowledged copies on the home partition, as (generation of the topic, offset). `is_ordered` is
    False once a copy may be at an unknown place: on another partition, or sent without an answer.
    """

    event: Record
    amount: int
    shard: int
    places: list[tuple[int, int]] = field(default_factory=list)
    is_ordered: bool = True


@dataclass(slots=True)
class Commanded:
    """A finance command, and every answer to it."""

    command: Record
    answers: list[Record] = field(default_factory=list)


@dataclass(slots=True)
class Journal:
    """Everything that was sent. A record that was not acknowledged is sent again until it is."""

    events: dict[str, Published] = field(default_factory=dict)
    commands: dict[str, Commanded] = field(default_factory=dict)
    # Records that must be quarantined: the reason, how often each value was acknowledged, and sent without an answer.
    bad: dict[tuple[str, bytes], int] = field(default_factory=dict)
    doubtful: dict[tuple[str, bytes], int] = field(default_factory=dict)
    accounts: dict[str, str] = field(default_factory=dict)  # Each account's Business Center.
