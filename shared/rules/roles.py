"""The commands that each role may give (domain page, section 4.7)."""

from shared.rules.refusal import require

_ACCOUNT_BUDGET = {"set_budget", "reset_budget"}


def may(role: str, command_type: str, finance_roles: bool) -> bool:
    """Return whether this role may give this command in a BC with or without finance roles.

    For the opening of a BC, `finance_roles` is what the command asks for.
    """
    if role == "admin":
        return True
    if role == "finance_manager":
        return finance_roles
    if role == "standard":
        return command_type == "set_campaign_budget"
    if role == "system":
        return command_type not in _ACCOUNT_BUDGET and command_type != "set_campaign_budget"
    return False


def require_permission(role: str, command_type: str, finance_roles: bool) -> None:
    """Raise Refused (`permission_denied`) if the role may not give this command."""
    require(may(role, command_type, finance_roles), "permission_denied", f"the role {role} may not {command_type}")
