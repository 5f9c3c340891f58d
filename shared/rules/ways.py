"""How a command came, and what a command on the topic may name.

`api`: the API has signed the command after it authenticated the caller. `topic`: a client with the right to write to
the topic sent it, and nothing else vouches for the actor that it names.
"""

import re
from dataclasses import dataclass
from typing import Any, Final

from shared.rules.command_types import AMOUNTS, Command
from shared.rules.money import format_micros, parse_amount
from shared.rules.refusal import require
from shared.rules.vocabulary import COMMAND_TYPES, ROLES

API: Final = "api"
TOPIC: Final = "topic"
_AMOUNT_FORM = re.compile(r"(0|[1-9][0-9]{0,11})(\.[0-9]{1,6})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class TopicTerms:
    """The roles, types and largest amount that commands from the topic may name. None means any."""

    roles: tuple[str, ...] | None = None
    types: tuple[str, ...] | None = None
    largest_amount_micros: int | None = None

    def content(self) -> dict[str, Any]:
        """Return the JSON that `terms_of` reads."""
        amount = None if self.largest_amount_micros is None else format_micros(self.largest_amount_micros)
        named = {"roles": self.roles, "types": self.types, "largest_amount": amount}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in named.items()
            if value is not None
        }

    def require(self, command: Command) -> None:
        """Raise Refused (`permission_denied`) if the command names what a command from the topic may not."""
        _require_named("role", command.role, self.roles)
        _require_named("type", command.type, self.types)
        most = self.largest_amount_micros
        for name in AMOUNTS:
            within = most is None or (getattr(command, name, None) or 0) <= most
            require(
                within,
                "permission_denied",
                f"the policy lets no {name} above {format_micros(most or 0)} come by the topic",
            )


def _require_named(what: str, named: str, allowed: tuple[str, ...] | None) -> None:
    may = allowed is None or named in allowed
    require(may, "permission_denied", f"the policy lets no command of the {what} {named} come by the topic")


def terms_of(content: Any) -> TopicTerms:
    """Return the terms of `{"roles": [role], "types": [type], "largest_amount": amount}`, all of them optional.

    Raise ValueError if the JSON object holds anything else, or null, because a misspelt word would allow everything.
    """
    if not isinstance(content, dict) or not content.keys() <= {"roles", "types", "largest_amount"}:
        raise ValueError('"topic" must be an object with some of roles, types, largest_amount')
    amount = content.get("largest_amount")
    if "largest_amount" in content and not (isinstance(amount, str) and _AMOUNT_FORM.fullmatch(amount)):
        raise ValueError('"largest_amount" must be a string such as "1000.00"')
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
