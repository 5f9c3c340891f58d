"""Entries as the rules write them. docs/ledger.md describes every kind.

An entry is a plain tuple: a NamedTuple took 8 to 12 % more instructions for each spend, from the rules to the bytes.
The fields that many entries share (everything but numbers and times) are its `Line`, which is made once and used again.
"""

import json
from typing import Any

from shared.rules.vocabulary import KIND

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))

# line, amount in micros, occurred_at in µs since the Unix epoch, source id, part, day, period (ordinals)
Entry = tuple["Line", int | None, int, bytes | None, int, int | None, int | None]


class Line:
    """The fields of an entry that do not depend on its amount and time.

    `encoded` belongs to the encoder of entries: it holds the canonical bytes of these fields once they were made.
    """

    __slots__ = (
        "ad_account_id",
        "business_center_id",
        "campaign_id",
        "cause",
        "details",
        "encoded",
        "grant_id",
        "holder",
        "kind",
        "pocket",
        "reverses",
    )

    def __init__(
        self,
        kind: str,
        business_center_id: str,
        ad_account_id: str | None = None,
        campaign_id: str | None = None,
        *,
        holder: str | None = None,
        pocket: str | None = None,
        grant_id: str | None = None,
        cause: str | None = None,
        reverses: bytes | None = None,
        details: str | None = None,
    ) -> None:
        self.kind = kind
        self.holder = holder
        self.pocket = pocket
        self.grant_id = grant_id
        self.business_center_id = business_center_id
        self.ad_account_id = ad_account_id
        self.campaign_id = campaign_id
        self.cause = cause
        self.reverses = reverses
        self.details = details
        self.encoded: bytes | None = None


def canonical_json(value: Any) -> str:
    """Return the canonical JSON of a value: sorted keys, no white space, ASCII only."""
    return _CANONICAL.encode(value)


class Step:
    """The entries that one input causes. They stand together and carry its id, `source`.

    `command` is the content of a command; its first entry records it, with `via`, which says how it came (`ways`).
    """

    __slots__ = ("command", "entries", "occurred_at", "part", "source", "via")

    def __init__(
        self,
        entries: list[Entry],
        occurred_at: int,
        source: bytes | None = None,
        command: dict[str, Any] | None = None,
        via: str | None = None,
    ) -> None:
        self.entries = entries
        self.occurred_at = occurred_at
        self.source = source
        self.part = 0
        self.command = command
        self.via = via

    def write(
        self,
        kind: str,
        business_center_id: str,
        ad_account_id: str | None = None,
        campaign_id: str | None = None,
        *,
        amount: int | None = None,
        day: int | None = None,
        period: int | None = None,
        holder: str | None = None,
        pocket: str | None = None,
        grant_id: str | None = None,
        cause: str | None = None,
        reverses: bytes | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        """Append an entry. The first entry of a command also records the command, and how it came.

        `amount` is in micros, `day` and `period` are ordinals. The sign of the amount must be that of the kind, and a
        pocket must have a holder. Both are asserted here, because nothing else checks them before the write.
        """
        sign = KIND[kind].sign
        assert (amount is None) == (sign is None), f"an entry of the kind {kind} has the amount {amount}"
        assert not amount or not sign or (amount > 0) == (sign > 0), f"{kind} has the amount {amount} of the wrong sign"
        assert (holder is None) == (pocket is None), f"{kind} names only one of holder and pocket"
        if self.command is not None and self.part == 0:
            details = {**(details or {}), "command": self.command}
            if self.via is not None:
                details["via"] = self.via
        line = Line(
            kind,
            business_center_id,
            ad_account_id,
            campaign_id,
            holder=holder,
            pocket=pocket,
            grant_id=grant_id,
            cause=cause,
            reverses=reverses,
            details=None if details is None else canonical_json(details),
        )
        self.write_line(line, amount, day, period)

    def write_line(self, line: Line, amount: int | None, day: int | None = None, period: int | None = None) -> None:
        """Append an entry with a line that was made before. `amount` is in micros, `day` and `period` are ordinals."""
        self.entries.append((line, amount, self.occurred_at, self.source, self.part, day, period))
        self.part += 1
