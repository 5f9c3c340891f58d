"""Whether a role may give a command (domain page, section 4.7). The table is `vocabulary.ACTOR_ROLES`."""

from shared.rules.refusal import require
from shared.rules.vocabulary import ROLE


def may(role: str, command_type: str, finance_roles: bool) -> bool:
    """Return whether this role may give this command in a BC with or without finance roles.

    For the opening of a BC, `finance_roles` is what the command asks for. An unknown role may give none.
    """
    found = ROLE.get(role)
    return found is not None and command_type in found.commands and (finance_roles or not found.needs_finance_roles)


def require_permission(role: str, command_type: str, finance_roles: bool) -> None:
    """Raise Refused (`permission_denied`) if the role may not give this command."""
    require(may(role, command_type, finance_roles), "permission_denied", f"the role {role} may not {command_type}")
