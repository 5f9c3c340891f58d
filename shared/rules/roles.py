"""Who may do what (domain page, section 4.7)."""

from shared.rules.refusal import require

_ACCOUNT_BUDGET = {"set_budget", "reset_budget"}


def may(role: str, command_type: str, finance_roles: bool) -> bool:
    """May this role give this command in a BC with, or without, finance roles?

    Opening a BC is judged by the finance roles that it asks for.
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
    """Refuse a command that the role may not give."""
    require(may(role, command_type, finance_roles), "permission_denied", f"the role {role} may not {command_type}")
