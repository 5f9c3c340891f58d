"""By which way a command came, and what one that came by the topic may name.

`api`: the API has signed it, having seen who asks. `topic`: whoever may write to the topic said so, nobody else.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from shared.rules.money import format_micros, parse_amount
from shared.rules.refusal import require
from shared.rules.vocabulary import COMMAND_TYPES, ROLES

API: Final = "api"
TOPIC: Final = "topic"
_AMOUNTS = ("amount", "limit")
_AMOUNT_FORM = re.compile(r"(0|[1-9][0-9]{0,11})(\.[0-9]{1,6})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class TopicTerms:
    """What commands that came by the topic may name: roles, types of commands, an amount or limit. None: any."""

    roles: tuple[str, ...] | None = None
    types: tuple[str, ...] | None = None
    largest_amount: int | None = None

    def content(self) -> dict[str, Any]:
        """The terms as JSON, as `terms_of` reads them."""
        amount = None if self.largest_amount is None else format_micros(self.largest_amount)
        named = {"roles": self.roles, "types": self.types, "largest_amount": amount}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in named.items()
            if value is not None
        }

    def require(self, command: Mapping[str, Any]) -> None:
        """Refuse a command that names what the topic may not."""
        _require_named("role", command["role"], self.roles)
        _require_named("type", command["type"], self.types)
        most = self.largest_amount
        for name in _AMOUNTS:
            within = most is None or (command.get(name) or 0) <= most
            require(
                within,
                "permission_denied",
                f"the policy lets no {name} above {format_micros(most or 0)} come by the topic",
            )


def _require_named(what: str, named: str, allowed: tuple[str, ...] | None) -> None:
    may = allowed is None or named in allowed
    require(may, "permission_denied", f"the policy lets no command of the {what} {named} come by the topic")


def terms_of(content: Any) -> TopicTerms:
    """The terms of a JSON object `{"roles": [role], "types": [type], "largest_amount": amount}`, each of them optional.

    Raises ValueError where it names something else, or null: a misspelt word would let everything in.
    """
    if not isinstance(content, dict) or not content.keys() <= {"roles", "types", "largest_amount"}:
        raise ValueError('"topic" must be an object of some of roles, types, largest_amount')
    amount = content.get("largest_amount")
    if "largest_amount" in content and not (isinstance(amount, str) and _AMOUNT_FORM.fullmatch(amount)):
        raise ValueError('"largest_amount" must be a text like "1000.00"')
    return TopicTerms(
        _words(content, "roles", ROLES),
        _words(content, "types", COMMAND_TYPES),
        None if amount is None else parse_amount(amount),
    )


def _words(content: dict[str, Any], name: str, allowed: tuple[str, ...]) -> tuple[str, ...] | None:
    if name not in content:
        return None
    words = content[name]
    if not isinstance(words, list) or not all(word in allowed for word in words):
        raise ValueError(f'"{name}" must be a list of some of {", ".join(allowed)}')
    return tuple(sorted(set(words)))
